"""How kernels' loops are ordered: one file a family. A schedule changes speed only, never what is computed."""
