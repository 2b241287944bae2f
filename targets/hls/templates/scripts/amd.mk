# `make` runs everything: @WHAT@.

HLS := @HLS@

.PHONY: all
all: @GOAL@

design_prj: build.tcl
	$(HLS) build.tcl
@RULES@
