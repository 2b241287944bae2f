# Intel oneAPI DPC++/C++ compiler with its FPGA add-on: `make` compares the design in the FPGA emulator with the verification
# vectors and synthesizes it to RTL with reports; `make fpga` places it with Quartus.

SOURCES := testbench.cpp firmware/design.cpp
FLAGS := -std=c++17 -fsycl -fintelfpga -qactypes -I. -Ifirmware -fconstexpr-steps=134217728
DEVICE := -Xshardware -Xstarget=@PART@ -Xsclock=@CLOCK_MHZ@MHz

.PHONY: all fpga
all: design.report

design.fpga_emu: $(SOURCES)
	icpx $(FLAGS) -DFPGA_EMULATOR $(SOURCES) -o $@
	./$@

design.report: design.fpga_emu $(SOURCES)
	icpx $(FLAGS) -DFPGA_HARDWARE $(SOURCES) $(DEVICE) -fsycl-link=early -o $@

fpga: $(SOURCES)
	icpx $(FLAGS) -DFPGA_HARDWARE $(SOURCES) $(DEVICE) -o design.fpga
