"""Distillation: a small network learns from a large one."""

from jaxopt_compress.distillation import losses

__all__ = ['losses']
