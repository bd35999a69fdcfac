"""Leaving: programs and weights that run without this library."""

from jaxopt_compress.export import boundary
from jaxopt_compress.export import stablehlo
from jaxopt_compress.export import trees
from jaxopt_compress.export import weights
from jaxopt_compress.export.boundary import register
from jaxopt_compress.export.program import load
from jaxopt_compress.export.program import Program
from jaxopt_compress.export.shrunk import load_plan
from jaxopt_compress.export.shrunk import rebuild
from jaxopt_compress.export.shrunk import save_shrunk
from jaxopt_compress.export.stablehlo import save

__all__ = [
  'Program',
  'boundary',
  'load',
  'load_plan',
  'rebuild',
  'register',
  'save',
  'save_shrunk',
  'stablehlo',
  'trees',
  'weights',
]
