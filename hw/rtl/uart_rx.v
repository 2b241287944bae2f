// Serial receiver, 8 data bits, no parity, 1 stop bit. DIVIDER: clock cycles per bit, 4 at least.
// `valid` is 1 for one cycle per byte; a byte whose stop bit is 0 is dropped.
module uart_rx #(parameter DIVIDER = 104) (
  input wire clk, input wire rst, input wire rx,
  output reg valid, output reg [7:0] data
);
  localparam BITS = $clog2(DIVIDER);
  reg [2:0] line;  // two flip-flops against metastability, one to see an edge
  reg [BITS-1:0] wait_cycles;
  reg [3:0] bit_index;  // 0 idle, 1 start bit, 2 to 9 data, 10 stop
  always @(posedge clk) begin
    line <= {line[1:0], rx};
    valid <= 1'b0;
    if (rst) begin
      bit_index <= 4'd0;
      line <= 3'b111;
    end else if (bit_index == 4'd0) begin
      wait_cycles <= DIVIDER / 2 - 1;
      if (line[2] & ~line[1]) bit_index <= 4'd1;
    end else if (wait_cycles != 0) begin
      wait_cycles <= wait_cycles - 1'b1;
    end else begin
      wait_cycles <= DIVIDER - 1;
      bit_index <= bit_index + 1'b1;
      if (bit_index == 4'd1) begin
        if (line[1]) bit_index <= 4'd0;  // a glitch, no start bit
      end else if (bit_index == 4'd10) begin
        bit_index <= 4'd0;
        valid <= line[1];
      end else
        data <= {line[1], data[7:1]};
    end
  end
endmodule
