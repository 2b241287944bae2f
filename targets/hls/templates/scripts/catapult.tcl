# Siemens Catapult HLS 2023.2 or later: C++ analysis, C simulation against the verification vectors, synthesis to RTL, and
# where the part is AMD's, Vivado's figures. Run by `make`, or by hand: catapult -shell -file build.tcl

set part {@PART@}
set clock_ns @CLOCK_NS@

project new -name Catapult
options set Input/CppStandard c++17
options set Output/OutputVerilog true
options set Output/OutputVHDL false
flow package require /SCVerify
solution file add firmware/design.cpp
solution file add testbench.cpp -exclude true
directive set -RESET_CLEARS_ALL_REGS no
# Arrays below this many bits stay in registers.
directive set -MEM_MAP_THRESHOLD 32769
go analyze
go compile
flow run /SCVerify/launch_make ./scverify/Verify_orig_cxx_osci.mk {} SIMTOOL=osci sim

set library [lindex [library get /CONFIG/PARAMETERS/Vivado/PARAMETERS/Xilinx/PARAMETERS/*/PARAMETERS/*/PARAMETERS/$part/LIBRARIES/*/NAME -match glob -ret v] 0]
if {$library eq ""} {
    error "this Catapult has no library for part $part"
}
solution library add $library -- -rtlsyntool Vivado -part $part
foreach memories {Xilinx_RAMS Xilinx_ROMS Xilinx_FIFO} {
    solution library add $memories
}
directive set -CLOCKS [list clk [list -CLOCK_PERIOD $clock_ns -CLOCK_EDGE rising -CLOCK_UNCERTAINTY 0.0 -RESET_KIND sync -RESET_SYNC_NAME rst -RESET_SYNC_ACTIVE high]]
foreach state {libraries assembly architect allocate schedule extract} {
    puts "gatewright: $state"
    go $state
}
project save
flow run /Vivado/synthesize -shell vivado_concat_v/concat_rtl.v.xv
exit
