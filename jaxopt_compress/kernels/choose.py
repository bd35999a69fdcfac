"""Which instruction path a product takes: the best there is, or one measured."""

from jaxopt_compress.kernels.cpu import native

# The rules of the leaf that was packed, in XLA.
PORTABLE = 'portable xla'


def path_for(leaf, rows: int) -> str:
  """The path for `rows` rows: '' for the library's own choice."""
  del leaf, rows
  return '' if native.available() else PORTABLE
