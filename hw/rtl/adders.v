// For Yosys' techmap: each addition becomes a carry chain of its own. Left to itself, Yosys joins sums of sums into one
// carry-save tree, whose full adders take two look-up tables a bit where a carry chain takes one.
(* techmap_celltype = "$add $sub" *)
module adder (A, B, Y);
  parameter A_SIGNED = 0;
  parameter B_SIGNED = 0;
  parameter A_WIDTH = 1;
  parameter B_WIDTH = 1;
  parameter Y_WIDTH = 1;
  parameter _TECHMAP_CELLTYPE_ = "";
  input [A_WIDTH-1:0] A;
  input [B_WIDTH-1:0] B;
  output [Y_WIDTH-1:0] Y;
  localparam minus = _TECHMAP_CELLTYPE_ == "$sub";
  wire [Y_WIDTH-1:0] x, co;
  \$alu #(.A_SIGNED(A_SIGNED), .B_SIGNED(B_SIGNED), .A_WIDTH(A_WIDTH), .B_WIDTH(B_WIDTH), .Y_WIDTH(Y_WIDTH))
    _TECHMAP_REPLACE_ (.A(A), .B(B), .CI(minus), .BI(minus), .X(x), .CO(co), .Y(Y));
endmodule
