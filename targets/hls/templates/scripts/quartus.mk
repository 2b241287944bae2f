# Intel HLS Compiler: `make` synthesizes the design, simulates it on the verification vectors and places it with Quartus,
# `make emulate` compares the C++ alone.

SOURCES := testbench.cpp firmware/design.cpp
FLAGS := -march=@PART@ --clock @CLOCK_MHZ@MHz --quartus-compile

design-fpga: $(SOURCES)
	i++ $(FLAGS) $(SOURCES) -o $@
	./$@

.PHONY: emulate
emulate: $(SOURCES)
	i++ -march=x86-64 $(SOURCES) -o design-emulated
	./design-emulated
