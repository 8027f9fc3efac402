"""Runs the Metal kernels on any CPU, checked: the same sources, compiled as C++ behind a prelude of their words."""

from .emulator import Fault, compiler, on_cpu

__all__ = ["Fault", "compiler", "on_cpu"]
