"""Checks the text that MLX would hand to Metal, on any machine: with libclang, as "C++ for OpenCL"."""
