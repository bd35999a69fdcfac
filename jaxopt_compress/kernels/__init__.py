"""Kernels: products with compressed weights that are faster than dense ones."""
