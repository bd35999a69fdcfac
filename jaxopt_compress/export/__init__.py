"""Leaving: programs and weights that run without this library."""

from jaxopt_compress.export import rebuild
from jaxopt_compress.export import stablehlo
from jaxopt_compress.export import weights
from jaxopt_compress.export.program import load
from jaxopt_compress.export.program import Program
from jaxopt_compress.export.stablehlo import save

__all__ = ['Program', 'load', 'rebuild', 'save', 'stablehlo', 'weights']
