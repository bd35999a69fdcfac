"""Kernels for CPUs: a library of C++ that XLA calls."""
