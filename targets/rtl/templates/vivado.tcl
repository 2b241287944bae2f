# The network between the two AXI4-Streams of a DMA, the processing system beside it, a bitstream of the whole:
#   vivado -mode batch -source build.tcl
# Written by gatewright. Leaves gatewright.bit and gatewright.hwh (what PYNQ loads), utilization.rpt and timing.rpt in this folder.

set here [file dirname [file normalize [info script]]]
set clock_mhz @CLOCK_MHZ@

proc latest {name} {
  set found [lsort -dictionary [get_ipdefs -all -filter "VENDOR == xilinx.com && NAME == $name"]]
  if {[llength $found] == 0} { error "this Vivado has no IP $name" }
  return [lindex $found end]
}

proc ip {name cell properties} {
  create_bd_cell -type ip -vlnv [latest $name] $cell
  if {[llength $properties]} { set_property -dict $properties [get_bd_cells $cell] }
}

proc wire {from to} { connect_bd_net [get_bd_pins $from] [get_bd_pins $to] }
proc bus {from to} { connect_bd_intf_net [get_bd_intf_pins $from] [get_bd_intf_pins $to] }

create_project -force gatewright [file join $here vivado] -part @PART@
if {[llength [get_board_parts -quiet @BOARD_PART@]]} { set_property board_part @BOARD_PART@ [current_project] }
foreach name {@SOURCES@} { add_files [file join $here $name] }
add_files -fileset constrs_1 [file join $here clock.xdc]
set_property USED_IN {synthesis implementation out_of_context} [get_files clock.xdc]
update_compile_order -fileset sources_1

create_bd_design system
@PROCESSOR@
ip proc_sys_reset reset {}
ip axi_dma dma {CONFIG.c_include_sg 0 CONFIG.c_sg_length_width 26 CONFIG.c_m_axi_mm2s_data_width @BUS@ CONFIG.c_m_axis_mm2s_tdata_width @BUS@ CONFIG.c_m_axi_s2mm_data_width @BUS@}
ip smartconnect control {CONFIG.NUM_SI 1 CONFIG.NUM_MI 1}
ip smartconnect memory {CONFIG.NUM_SI 2 CONFIG.NUM_MI 1}
create_bd_cell -type module -reference gatewright_stream network

bus dma/M_AXIS_MM2S network/s_axis
bus network/m_axis dma/S_AXIS_S2MM
bus $master control/S00_AXI
bus control/M00_AXI dma/S_AXI_LITE
bus dma/M_AXI_MM2S memory/S00_AXI
bus dma/M_AXI_S2MM memory/S01_AXI
bus memory/M00_AXI $slave
foreach pin [concat $processor_clocks {
  reset/slowest_sync_clk dma/s_axi_lite_aclk dma/m_axi_mm2s_aclk dma/m_axi_s2mm_aclk network/aclk control/aclk memory/aclk
}] { wire $clock $pin }
wire $reset reset/ext_reset_in
foreach pin {dma/axi_resetn network/aresetn control/aresetn memory/aresetn} { wire reset/peripheral_aresetn $pin }
assign_bd_address
validate_bd_design
save_bd_design
make_wrapper -files [get_files system.bd] -top -import
set_property top system_wrapper [current_fileset]
update_compile_order -fileset sources_1

launch_runs impl_1 -to_step write_bitstream -jobs @JOBS@
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} { error "implementation failed: see vivado/gatewright.runs" }
open_run impl_1
report_utilization -file [file join $here utilization.rpt]
report_timing_summary -file [file join $here timing.rpt]
set slack [get_property SLACK [get_timing_paths -setup -max_paths 1]]
puts "gatewright: slack $slack ns"
if {$slack < 0} { error "timing is missed by [expr {-$slack}] ns at $clock_mhz MHz" }
file copy -force [file join [get_property DIRECTORY [get_runs impl_1]] system_wrapper.bit] [file join $here gatewright.bit]
foreach file [glob -directory [file join $here vivado] -types f */sources_1/bd/system/hw_handoff/system.hwh] {
  file copy -force $file [file join $here gatewright.hwh]
}
