"""The target ``rtl``: a quantized network as plain Verilog, fully unrolled, and from there to a bitstream with open tools."""
