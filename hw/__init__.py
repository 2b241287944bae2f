"""Hardware: devices, boards and FPGA parts as data, and what a model would cost on them. Read by all, imports none.

In: TOML files (``processors/``, ``parts/``, ``boards/``, or a user's own), and the work of a model as plain numbers
(``cost.LayerCost``, ``cost.FpgaLayer``). Out: ``device.Device`` values, ``measurement.Measurement`` figures.
Read ``device.py`` next, then ``cost.py``.
"""
