"""Data sets as dicts of numpy arrays, and batches of them.

`digits` and `text` need no download; `images` reads files that users have.
"""

from jaxopt_compress.data import digits
from jaxopt_compress.data import images
from jaxopt_compress.data import text
from jaxopt_compress.data.batches import Batches
from jaxopt_compress.data.batches import batches
from jaxopt_compress.data.batches import eval_batches

__all__ = ['Batches', 'batches', 'digits', 'eval_batches', 'images', 'text']
