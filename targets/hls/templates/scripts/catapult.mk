# `make` runs everything: analysis, C simulation, synthesis, figures.

.PHONY: all
all: Catapult/design.v1/rtl.rpt

Catapult/design.v1/rtl.rpt: build.tcl
	catapult -shell -file build.tcl
