// Serial transmitter, 8 data bits, no parity, 1 stop bit. DIVIDER: clock cycles per bit.
// Takes `data` in a cycle in which `valid` and `ready` are 1.
module uart_tx #(parameter DIVIDER = 104) (
  input wire clk, input wire rst,
  input wire valid, output wire ready, input wire [7:0] data,
  output wire tx
);
  localparam BITS = $clog2(DIVIDER);
  reg [BITS-1:0] wait_cycles;
  reg [3:0] left;   // bits still to send, the stop bit included
  reg [8:0] shift;  // the bit on the line lowest
  assign ready = left == 4'd0;
  assign tx = shift[0];
  always @(posedge clk)
    if (rst) begin
      left <= 4'd0;
      shift <= 9'h1ff;
    end else if (ready) begin
      wait_cycles <= DIVIDER - 1;
      if (valid) begin
        left <= 4'd10;
        shift <= {data, 1'b0};
      end
    end else if (wait_cycles != 0)
      wait_cycles <= wait_cycles - 1'b1;
    else begin
      wait_cycles <= DIVIDER - 1;
      left <= left - 1'b1;
      shift <= {1'b1, shift[8:1]};
    end
endmodule
