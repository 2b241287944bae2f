// One byte of CRC-16/CCITT-FALSE (polynomial 0x1021, initial value 0xffff, most significant bit first).
module crc16 (input wire [15:0] crc, input wire [7:0] data, output wire [15:0] next_crc);
  // With t the upper byte plus the data and its own upper half folded in, x^16 = x^12 + x^5 + 1 gives three shifted copies.
  wire [7:0] a = crc[15:8] ^ data;
  wire [7:0] t = a ^ {4'h0, a[7:4]};
  assign next_crc = {crc[7:0], 8'h00} ^ {t[3:0], 12'h000} ^ {3'b000, t, 5'b00000} ^ {8'h00, t};
endmodule
