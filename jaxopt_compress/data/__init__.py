"""Data sets as dicts of numpy arrays, and batches of them.

`digits`, `text` and `masked_text` need no download; `images` reads files that users have. `labels` makes
a set harder, and `held_back` keeps a part of it to choose settings by. `own`
is what a user's function gives, and `slices` are parts of a split.
"""

from jaxopt_compress.data import digits
from jaxopt_compress.data import held_back
from jaxopt_compress.data import images
from jaxopt_compress.data import labels
from jaxopt_compress.data import masked_text
from jaxopt_compress.data import own
from jaxopt_compress.data import slices
from jaxopt_compress.data import text
from jaxopt_compress.data.batches import Batches
from jaxopt_compress.data.batches import batches
from jaxopt_compress.data.batches import eval_batches

__all__ = [
  'Batches',
  'batches',
  'digits',
  'eval_batches',
  'held_back',
  'images',
  'labels',
  'masked_text',
  'own',
  'slices',
  'text',
]
