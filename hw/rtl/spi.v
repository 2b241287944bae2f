// A network behind SPI, mode 0, most significant bit first: the frames of frames.v. The clock line is sampled by `clk`, which
// has to be 12 times as fast. A request comes within one selection; what is cut short by its end is forgotten. The host then
// sends zeros until the reply's mark comes back: a byte that has nothing to say is 0.
module spi #(parameter IN_BYTES = 1, parameter OUT_BYTES = 1, parameter [31:0] IDENTITY = 32'h0) (
  input wire clk, input wire rst,
  input wire sck, input wire cs_n, input wire mosi, output wire miso,
  output wire in_valid, input wire in_ready, output wire [IN_BYTES*8-1:0] in_data,
  input wire out_valid, output wire out_ready, input wire [OUT_BYTES*8-1:0] out_data
);
  // Two flip-flops against metastability, one to see an edge.
  reg [2:0] clock, select;
  reg [1:0] data;
  always @(posedge clk) begin
    clock <= {clock[1:0], sck};
    select <= {select[1:0], cs_n};
    data <= {data[0], mosi};
  end
  wire selected = ~select[1];
  wire rises = selected & clock[1] & ~clock[2];
  wire falls = selected & ~clock[1] & clock[2];

  reg [2:0] count;     // bits of this byte so far
  reg [7:0] received, shift;
  reg got, whole;      // whole: the next falling edge ends a byte
  wire sending;
  wire [7:0] byte_out;
  wire ends = falls & whole;
  always @(posedge clk) begin
    got <= 1'b0;
    if (rst) begin
      count <= 3'd0;
      shift <= 8'h00;
      whole <= 1'b0;
    end else if (~selected) begin
      // A byte that was made ready but not sent waits for the next selection.
      count <= 3'd0;
      whole <= 1'b0;
    end else if (rises) begin
      received <= {received[6:0], data[1]};
      count <= count + 1'b1;
      whole <= count == 3'd7;
      got <= count == 3'd7;
    end else if (ends) begin
      whole <= 1'b0;
      shift <= sending ? byte_out : 8'h00;
    end else if (falls)
      shift <= {shift[6:0], 1'b0};
  end
  assign miso = shift[7];

  frames #(.IN_BYTES(IN_BYTES), .OUT_BYTES(OUT_BYTES), .IDENTITY(IDENTITY)) protocol (
    .clk(clk), .rst(rst), .got(got), .byte_in(received), .forget(select[2]),
    .sending(sending), .can_send(ends), .byte_out(byte_out),
    .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),
    .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data)
  );
endmodule
