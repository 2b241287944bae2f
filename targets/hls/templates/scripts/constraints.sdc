# For the core inside a project of your own: the clock that it was made for.
create_clock -name clock -period @CLOCK_NS@ [get_ports clock]
derive_clock_uncertainty
