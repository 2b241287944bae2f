# @RELEASES@: C simulation against the verification vectors, synthesis, export.
# Run by `make`, or by hand: @COMMAND@

set part {@PART@}
set clock_ns @CLOCK_NS@
set top {@TOP@}
set sources {@SOURCES@}
set flags {-std=c++14}

proc step {name body} {
    puts "gatewright: $name"
    uplevel 1 $body
}

open_project -reset design_prj
set_top $top
foreach source $sources {
    add_files $source -cflags $flags
}
add_files -tb testbench.cpp -cflags $flags
add_files -tb firmware/weights
add_files -tb tb_data
@SOLUTION@
config_compile -name_max_length 80
config_schedule -enable_dsp_full_reg=false
set_part $part
create_clock -period $clock_ns -name default
set_clock_uncertainty 27% default
step {C simulation} {
    csim_design
}
step {synthesis} {
    csynth_design
}
step {export} {
    @EXPORT@
}
exit
