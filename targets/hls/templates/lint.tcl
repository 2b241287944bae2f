# Runs one of an artifact's scripts against commands that only note that they were called: what is left to go wrong are the
# script's own words: a brace, a variable, a command or a pin that does not exist. argv: the script, the kind of tool.

set gatewright_cells {}

proc gatewright_note {words} {
    puts "CALL $words"
}

rename exit gatewright_exit
proc exit {{code 0}} {
    puts "EXIT $code"
    gatewright_exit 0
}
rename file gatewright_file
proc file {what args} {
    if {$what in {mkdir copy delete}} {
        gatewright_note [list file $what {*}$args]
        return
    }
    return [gatewright_file $what {*}$args]
}
rename glob gatewright_glob
proc glob {args} {
    return [list [string map {* found} [lindex $args end]]]
}
rename source gatewright_source
proc source {name} {
    gatewright_note [list source $name]
}

# Commands by tool; each takes anything and gives nothing, or what it is asked about.
set gatewright_known(hls) {
    open_project set_top add_files open_solution config_compile config_schedule config_array_partition set_part create_clock
    set_clock_uncertainty csim_design csynth_design export_design
}
set gatewright_known(vivado) {
    create_project read_verilog read_xdc synth_design opt_design place_design route_design report_utilization report_timing_summary
    report_timing set_property current_project current_fileset update_ip_catalog create_bd_design apply_bd_automation
    connect_bd_intf_net connect_bd_net assign_bd_address validate_bd_design save_bd_design get_files make_wrapper generate_target
    launch_runs wait_on_run get_runs open_run write_bitstream get_bd_addr_segs get_bd_addr_spaces get_ports create_clock
}
set gatewright_known(catapult) {project options flow solution directive go}
set kind [lindex $argv 1]
foreach name $gatewright_known($kind) {
    proc $name {args} "gatewright_note \[list $name {*}\$args\]; return \[lindex \$args end\]"
}
if {$kind eq "catapult"} {
    proc library {args} { return [list found_library] }
}
if {$kind eq "vivado"} {
    proc get_ipdefs {args} { return [list [string map {:* :1.0} [lindex $args end]]] }
    proc get_board_parts {args} { return [lindex $args end] }
    proc create_bd_cell {args} {
        global gatewright_cells
        gatewright_note [list create_bd_cell {*}$args]
        lappend gatewright_cells [lindex $args end]
        return [lindex $args end]
    }
    proc gatewright_of_cell {name} {
        global gatewright_cells
        if {[lindex [split $name /] 0] ni $gatewright_cells} {
            error "there is no cell of the name in \"$name\""
        }
        return $name
    }
    proc get_bd_cells {name} { return [gatewright_of_cell $name] }
    proc get_bd_pins {name} { return [gatewright_of_cell $name] }
    proc get_bd_intf_pins {name} { return [gatewright_of_cell $name] }
    proc get_property {name object} {
        return [dict get {PROGRESS 100% STATUS done STATS.WNS 0.125} $name]
    }
}

set gatewright_script [lindex $argv 0]
set gatewright_channel [open $gatewright_script]
set gatewright_text [read $gatewright_channel]
close $gatewright_channel
if {![info complete $gatewright_text]} {
    puts "WRONG a brace, a bracket or a quote is not closed"
    gatewright_exit 1
}
set argv {}
if {[catch {uplevel #0 $gatewright_text} gatewright_message]} {
    puts "WRONG $gatewright_message ([string map [list \n { }] [lindex [split $::errorInfo \n] end-1]])"
    gatewright_exit 1
}
puts "EXIT 0"
