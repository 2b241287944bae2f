"""The target ``cuda``: kernels for NVIDIA's GPUs, compiled and emulated without one."""
