# AMD Vivado: the exported core alone through synthesis, placement and routing, out of context, so that its figures are the
# netlist's. Run by `make`, or by hand: vivado -mode batch -source implement.tcl

set part {@PART@}
set top {@TOP@}

file mkdir reports
create_project -in_memory -part $part
set found [glob -nocomplain design_prj/solution1/syn/verilog/*.v]
if {[llength $found] == 0} {
    error "design_prj/solution1/syn/verilog holds no Verilog: run the synthesis of build.tcl first"
}
read_verilog $found
# What HLS keeps in IP cores comes as scripts that make them.
foreach script [glob -nocomplain design_prj/solution1/syn/verilog/*.tcl] {
    source $script
}
read_xdc -mode out_of_context constraints.xdc
synth_design -top $top -part $part -mode out_of_context
opt_design
place_design
route_design
report_utilization -file reports/utilization.rpt
report_timing_summary -file reports/timing.rpt
report_timing -max_paths 5 -file reports/critical_path.rpt
exit
