# AMD Vivado: processor, DMA and the design on @BOARD@, to a bitstream. The bitstream is written only where timing is met.
# Run by `make`, or by hand: vivado -mode batch -source block_design.tcl

set part {@PART@}
set board {@VENDOR_BOARD@}
set clock_mhz @CLOCK_MHZ@
set family {@FAMILY@}

# The newest version of a core that this Vivado has.
proc newest {pattern} {
    set found [lsort -dictionary [get_ipdefs -all $pattern]]
    if {[llength $found] == 0} {
        error "this Vivado has no core $pattern"
    }
    return [lindex $found end]
}

proc cell {pattern name} {
    return [create_bd_cell -type ip -vlnv [newest $pattern] $name]
}

file mkdir reports
create_project -force accelerator accelerator_prj -part $part
if {[llength [get_board_parts -quiet $board]] == 0} {
    error "this Vivado has no board file $board: install it (Tools, Vivado Store, Boards; or the maker's page), it holds the memory's timing"
}
set_property board_part $board [current_project]
set_property ip_repo_paths [list [file normalize design_prj/solution1/impl/ip]] [current_project]
update_ip_catalog

create_bd_design system

# The processor: one port that configures the DMA, one through which the DMA reaches the memory, one clock for everything.
if {$family eq "zynq-7000"} {
    cell {xilinx.com:ip:processing_system7:*} ps
    apply_bd_automation -rule xilinx.com:bd_rule:processing_system7 -config {make_external "FIXED_IO, DDR" apply_board_preset "1"} [get_bd_cells ps]
    set_property -dict [list CONFIG.PCW_USE_M_AXI_GP0 1 CONFIG.PCW_USE_S_AXI_HP0 1 CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ $clock_mhz] [get_bd_cells ps]
    set clock ps/FCLK_CLK0
    set reset ps/FCLK_RESET0_N
    set control ps/M_AXI_GP0
    set memory ps/S_AXI_HP0
    set port_clocks {ps/M_AXI_GP0_ACLK ps/S_AXI_HP0_ACLK}
    set dma_address 0x40400000
} elseif {$family eq "zynq-ultrascale+"} {
    cell {xilinx.com:ip:zynq_ultra_ps_e:*} ps
    apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e -config {apply_board_preset "1"} [get_bd_cells ps]
    set_property -dict [list CONFIG.PSU__USE__M_AXI_GP0 1 CONFIG.PSU__USE__M_AXI_GP1 0 CONFIG.PSU__USE__M_AXI_GP2 0 CONFIG.PSU__USE__S_AXI_GP2 1 CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ $clock_mhz] [get_bd_cells ps]
    set clock ps/pl_clk0
    set reset ps/pl_resetn0
    set control ps/M_AXI_HPM0_FPD
    set memory ps/S_AXI_HP0_FPD
    set port_clocks {ps/maxihpm0_fpd_aclk ps/saxihp0_fpd_aclk}
    set dma_address 0xA0000000
} else {
    error "there is no block design for parts of family $family"
}

cell {xilinx.com:ip:proc_sys_reset:*} resets
cell {xilinx.com:ip:axi_dma:*} dma
set_property -dict [list CONFIG.c_include_sg 0 CONFIG.c_sg_include_stscntrl_strm 0 CONFIG.c_sg_length_width 26 CONFIG.c_m_axi_mm2s_data_width @BUS@ CONFIG.c_m_axis_mm2s_tdata_width @BUS@ CONFIG.c_mm2s_burst_size 64 CONFIG.c_m_axi_s2mm_data_width @BUS@ CONFIG.c_s_axis_s2mm_tdata_width @BUS@ CONFIG.c_s2mm_burst_size 64 CONFIG.c_addr_width 64] [get_bd_cells dma]
cell {xilinx.com:ip:smartconnect:*} control_bus
set_property -dict [list CONFIG.NUM_SI 1 CONFIG.NUM_MI 1] [get_bd_cells control_bus]
cell {xilinx.com:ip:smartconnect:*} memory_bus
set_property -dict [list CONFIG.NUM_SI 2 CONFIG.NUM_MI 1] [get_bd_cells memory_bus]
cell {gatewright:hls:design_axi:*} design

foreach pair [list [list $control control_bus/S00_AXI] {control_bus/M00_AXI dma/S_AXI_LITE} {dma/M_AXI_MM2S memory_bus/S00_AXI} {dma/M_AXI_S2MM memory_bus/S01_AXI} [list memory_bus/M00_AXI $memory] {dma/M_AXIS_MM2S design/taken} {design/given dma/S_AXIS_S2MM}] {
    connect_bd_intf_net [get_bd_intf_pins [lindex $pair 0]] [get_bd_intf_pins [lindex $pair 1]]
}
set clocked {resets/slowest_sync_clk control_bus/aclk memory_bus/aclk dma/s_axi_lite_aclk dma/m_axi_mm2s_aclk dma/m_axi_s2mm_aclk design/ap_clk}
foreach pin [concat $port_clocks $clocked] {
    connect_bd_net [get_bd_pins $clock] [get_bd_pins $pin]
}
connect_bd_net [get_bd_pins $reset] [get_bd_pins resets/ext_reset_in]
foreach pin {control_bus/aresetn memory_bus/aresetn dma/axi_resetn design/ap_rst_n} {
    connect_bd_net [get_bd_pins resets/peripheral_aresetn] [get_bd_pins $pin]
}
assign_bd_address
set_property offset $dma_address [get_bd_addr_segs -of_objects [get_bd_addr_spaces ps/Data] -filter {NAME =~ *dma*}]
validate_bd_design
save_bd_design

set diagram [get_files system.bd]
make_wrapper -files $diagram -top -import
set_property top system_wrapper [current_fileset]
generate_target all $diagram

launch_runs impl_1 -to_step route_design -jobs @JOBS@
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {
    error "the implementation did not end: [get_property STATUS [get_runs impl_1]]"
}
open_run impl_1
report_utilization -file reports/utilization.rpt
report_timing_summary -file reports/timing.rpt
report_timing -max_paths 5 -file reports/critical_path.rpt
set slack_ns [get_property STATS.WNS [get_runs impl_1]]
puts "gatewright: worst slack $slack_ns ns at $clock_mhz MHz"
if {$slack_ns < 0} {
    puts "gatewright: timing is missed, no bitstream is written"
    exit 3
}
write_bitstream -force design.bit
file copy -force [lindex [glob -nocomplain accelerator_prj/accelerator.gen/sources_1/bd/system/hw_handoff/system.hwh accelerator_prj/accelerator.srcs/sources_1/bd/system/hw_handoff/system.hwh] 0] design.hwh
exit
