"""What a tree of arrays is, in 64 letters: the parameters of a model, or data."""

import hashlib
from typing import Any

import jax
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib


def fingerprint(tree: Any) -> str:
  """The sha256 of all leaves: paths, formats, shapes, types and bits.

  It does not depend on devices, shardings or versions, and one bit that changes
  changes it. A compressed leaf has that of its codes, not of what it stands for.

  Args:
    tree: arrays of any type, PRNG keys and compressed leaves. All of each must be on
      devices of this process.

  Returns:
    64 hexadecimal digits.

  >>> a = fingerprint({'w': np.float32([1., 2.])})
  >>> a == fingerprint({'w': jax.numpy.array([1., 2.])}), len(a)
  (True, 64)
  """
  digest = hashlib.sha256()
  for path, leaf in rules_lib.named_leaves(tree):
    said = leaf.describe() if array.is_compressed(leaf) else ''
    for part in jax.tree.leaves(leaf):
      x = _on_host(path, part)
      # Lengths are in the text, so that no two trees write the same bytes.
      head = f'{path!r} {said!r} {x.dtype.name} {x.shape} {x.nbytes}\n'
      digest.update(head.encode())
      digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
  return digest.hexdigest()


def _on_host(path, x):
  if isinstance(x, jax.Array):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    if not x.is_fully_addressable:
      if not x.is_fully_replicated:
        raise ValueError(
          f'{path} is spread over several processes, and no one of them has all of'
          ' it. Gather it first (jax.experimental.multihost_utils), or name the'
          ' model yourself: any string that changes with it will do.'
        )
      x = x.addressable_data(0)
  x = np.asarray(x)
  if x.dtype == object:
    raise ValueError(f'{path} is {x!r}; an array is expected.')
  return x
