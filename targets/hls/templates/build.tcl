# AMD Vitis HLS: C simulation against the verification vectors, synthesis, export as IP.
# vitis-run --mode hls --tcl build.tcl, or with releases before 2023.2: vitis_hls -f build.tcl

open_project -reset design_prj
set_top design
add_files firmware/design.cpp -cflags "-std=c++14"
add_files -tb testbench.cpp -cflags "-std=c++14"
add_files -tb firmware/weights
add_files -tb tb_data
open_solution -reset solution1 -flow_target vivado
config_compile -name_max_length 80
config_schedule -enable_dsp_full_reg=false
set_part {@PART@}
create_clock -period @CLOCK_NS@ -name default
set_clock_uncertainty 27% default
csim_design
csynth_design
export_design -format ip_catalog
exit
