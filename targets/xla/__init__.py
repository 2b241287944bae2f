"""``tpu``: XLA's TPU compiler, ahead of time and without a TPU; the same program runs on any CPU as the emulator.

In: a canonical Model. Out: a portable program per batch size with the weights beside it and, where libtpu is installed, the
executable, its HLO, its memory and its collectives. JAX is only ever imported in processes of our own. Read: ``target.py``.
"""
