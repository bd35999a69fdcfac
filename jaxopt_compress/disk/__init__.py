"""Files that appear whole or not at all, and records that notice a change."""

from jaxopt_compress.disk import files
from jaxopt_compress.disk import sealed
from jaxopt_compress.disk import tensors

__all__ = ['files', 'sealed', 'tensors']
