// A network behind a UART: the frames of frames.v, 8 data bits, no parity, 1 stop bit. DIVIDER: clock cycles per bit, 4 at least.
// A frame that stops coming is forgotten after 4,096 bit times, so that a host that starts anew is understood.
module serial #(
  parameter IN_BYTES = 1, parameter OUT_BYTES = 1, parameter DIVIDER = 104, parameter [31:0] IDENTITY = 32'h0
) (
  input wire clk, input wire rst,
  input wire rx, output wire tx,
  output wire in_valid, input wire in_ready, output wire [IN_BYTES*8-1:0] in_data,
  input wire out_valid, output wire out_ready, input wire [OUT_BYTES*8-1:0] out_data
);
  wire got, sending, can_send;
  wire [7:0] byte_in, byte_out;
  uart_rx #(.DIVIDER(DIVIDER)) receiver (.clk(clk), .rst(rst), .rx(rx), .valid(got), .data(byte_in));
  uart_tx #(.DIVIDER(DIVIDER)) transmitter (.clk(clk), .rst(rst), .valid(sending), .ready(can_send), .data(byte_out), .tx(tx));

  // Silence is counted in bit times: the lower counter is the divider, the upper one overflows after 4,096.
  reg [$clog2(DIVIDER)-1:0] cycles;
  reg [12:0] silence;
  always @(posedge clk)
    if (rst | got | sending) begin
      cycles <= 0;
      silence <= 0;
    end else if (cycles == DIVIDER - 1) begin
      cycles <= 0;
      if (~silence[12]) silence <= silence + 1'b1;
    end else
      cycles <= cycles + 1'b1;

  frames #(.IN_BYTES(IN_BYTES), .OUT_BYTES(OUT_BYTES), .IDENTITY(IDENTITY)) protocol (
    .clk(clk), .rst(rst), .got(got), .byte_in(byte_in), .forget(silence[12]),
    .sending(sending), .can_send(can_send), .byte_out(byte_out),
    .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),
    .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data)
  );
endmodule
