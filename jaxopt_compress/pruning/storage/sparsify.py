"""`jc.sparsify`: each pruned leaf in the smallest of the forms that lose nothing.

    dense      itemsize
    N:M        n / m * (itemsize + ceil(log2 m) / 8)     where no group has more than n
    bitmask    1 / 8 + (1 - zeros) * itemsize            bytes a weight, about

The zeros are counted in the leaf, whatever a mask or a rule promised.
"""

from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress import modules
from jaxopt_compress.analysis import storage
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.pruning.storage import bitmask
from jaxopt_compress.pruning.storage import bits as bits_lib
from jaxopt_compress.pruning.storage import n_m_array
from jaxopt_compress.pruning.storage import sparse_codes

_GROUPS = (2, 4, 8, 16, 32)  # that are tried for N:M
_SPARSE = bitmask.Bitmask | n_m_array.NMArray | sparse_codes.SparseCodes


class Stored(NamedTuple):
  """What became of a leaf.

  Attributes:
    format: what it is now, in words.
    bytes: that it takes now.
    dense_bytes: that it takes with its zeros.
    why: why it is as it was; '' where it is not.
  """

  format: str
  bytes: int
  dense_bytes: int
  why: str = ''


def sparsify(
  tree: Any,
  rules: Sequence[tuple[str, str | None]] = ((r'.*', 'smallest'),),
  uses: dict | None = None,
) -> tuple[Any, dict[str, Stored]]:
  """Stores pruned leaves without their zeros; none gets larger.

  For storage, in memory and on disk: `lift` puts the zeros back before each product, so
  nothing gets faster. `jc.pack` takes the result on to the kernels of a machine.

  Args:
    tree: arrays and compressed leaves, with known values. Training leaves are frozen
      first. Of a quantised leaf the codes of zero are left out.
    rules: ordered `(regex, 'smallest' | None)`; None leaves a leaf as it is.
    uses: what `jc.uses(apply)(params, x)` returned: which axes are stacked, and which
      tables have rows gathered, that are then stored row by row if that is smaller than
      dense. Without it, all axes but the last two are taken for stacked.

  Returns:
    The tree, and `{path: Stored}` of every leaf that is no function.

  Raises:
    ValueError: an uncovered leaf, an unused rule or another word, values that are
      traced.

  >>> import numpy as np
  >>> w = np.eye(16, dtype=np.float32)
  >>> tree, stored = sparsify({'w': w, 'b': np.ones(16, np.float32)})
  >>> tree['w'].describe(), storage.nbytes(tree['w']), stored['w'].dense_bytes
  ('1:16', 80, 1024)
  >>> stored['b']
  Stored(format='float32', bytes=64, dense_bytes=64, why='it has no zeros')
  """
  tree = modules.freeze(tree)
  chosen = rules_lib.match(rules, tree)
  for word in chosen.values():
    if word is not None:
      choices.one_of('a rule of sparsify', word, ('smallest',))
  told = {}

  def smallest(path, leaf):
    if callable(leaf):
      return leaf
    unknown = jax.core.Tracer | jax.ShapeDtypeStruct
    if any(isinstance(p, unknown) for p in jax.tree.leaves(leaf)):
      raise ValueError(
        f'{path} is traced or abstract, and how many zeros it has is not known. Call'
        ' jc.sparsify outside of jit, and pass what it returns to the program.'
      )
    why = 'a rule says so' if chosen[path] is None else _why_not(leaf)
    new = leaf if why else _smallest(path, leaf, uses)
    if new is leaf and not why:
      why = _why_dense(leaf)
    told[path] = Stored(
      new.describe() if array.is_compressed(new) else str(jnp.result_type(new)),
      storage.nbytes(new),
      storage.nbytes(leaf),
      why,
    )
    return new

  stored = rules_lib.map_named(smallest, array.on_device(tree))
  return modules.dress(stored, tree), told


def with_zeros(tree: Any) -> Any:
  """The inverse: arrays, and leaves with all of their codes."""

  def whole(leaf):
    if isinstance(leaf, sparse_codes.SparseCodes):
      return leaf.put_back()
    return leaf.materialize() if isinstance(leaf, _SPARSE) else leaf

  return array.map_leaves(whole, tree)


def _why_not(leaf) -> str:
  """Why a leaf is not looked at; '' where it is."""
  if isinstance(leaf, _SPARSE):
    return 'its zeros are left out already'
  if not getattr(leaf, 'ndim', 0):
    return 'it is a scalar'
  if not leaf.size:
    return 'it is empty'
  if array.is_compressed(leaf):
    has_codes = hasattr(leaf, 'zero_codes')
    return '' if has_codes else f'{leaf.describe()} has no codes of its own'
  floating = jnp.issubdtype(leaf.dtype, jnp.floating)
  if not floating or not bits_lib.has_patterns(leaf.dtype):
    return f'{leaf.dtype} is no weight'
  return ''


def _why_dense(leaf) -> str:
  x = _to_store(leaf)
  zeros = 1 - float(jnp.mean(bits_lib.nonzero(x), dtype=jnp.float32))
  if not zeros:
    return 'it has no zeros'
  of = ' of its codes' if array.is_compressed(leaf) else ''
  return f'with {zeros:.1%} zeros{of} no form is smaller'


def _to_store(leaf):
  """The array whose zeros are left out."""
  return sparse_codes.rest_of(leaf) if array.is_compressed(leaf) else leaf


def _smallest(path, leaf, uses):
  x = _to_store(leaf)
  # Each form has a program of its own that counts what it would keep. Of most leaves
  # there is nothing to leave out, and one count tells.
  if bits_lib.nonzero(x).all():
    return leaf
  lead, rows = _segments(path, leaf, uses)
  sizes = {
    ('bitmask', lead): _bitmask_bytes(x, lead),
    **{('n:m', *how): size for how, size in _n_m_bytes(x, lead).items()},
  }
  if rows is not None and (size := _bitmask_bytes(x, rows)) < x.nbytes:
    # So that a lookup expands the rows that it asks for, and not the table.
    sizes = {('bitmask', rows): size}
  # Of the same size, N:M: it costs less to put back.
  best = min(sizes, key=lambda how: (sizes[how], how[0] == 'bitmask'))
  if sizes[best] >= x.nbytes:
    return leaf
  make = bitmask.of_array if best[0] == 'bitmask' else n_m_array.of_array
  stored = make(x, *best[1:])
  if not array.is_compressed(leaf):
    return stored
  return sparse_codes.SparseCodes(stored, leaf.with_codes(None))


def _segments(path, leaf, uses) -> tuple[int, int | None]:
  """(axes in front of a segment, the same where rows are gathered or None)."""
  ndim, shape = leaf.ndim, leaf.shape
  known = uses_lib.of(path, uses)
  products = [u for u in known or () if u.contracted]
  if known is None:
    lead = 0 if uses_lib.is_window(shape) else max(ndim - 2, 0)
  elif products:
    stacked = [a for u in products for a in u.stacked]
    lead = max((ndim + a + 1 for a in stacked), default=0)
    # Without an axis of its own a segment would be one entry.
    lead = min(lead, ndim - 1)
  else:
    # Of a bias or a gain no product says which axes are of stacked layers.
    lead = ndim - 1
  while math.prod(shape[lead:]) >= 2**31 and lead < ndim - 1:
    lead += 1
  row = [a for u in products if u.primitive == 'gather' for a in u.contracted]
  return lead, ndim + min(row) if row and ndim + min(row) > lead else None


def _bitmask_bytes(x, lead) -> int:
  counts = _counts(x, tuple(range(lead, x.ndim)))
  p = math.prod(x.shape[lead:])
  capacity = max(int(counts.max()), 1)
  return counts.size * (-(-p // 8) + capacity * x.dtype.itemsize)


def _n_m_bytes(x, lead) -> dict[tuple[int, int, int], int]:
  """{(n, m, axis): bytes} of what would hold all that is not zero."""
  found = {}
  for i in range(lead, x.ndim):
    for m in _GROUPS:
      if x.shape[i] % m:
        continue
      groups = (*x.shape[:i], x.shape[i] // m, m, *x.shape[i + 1 :])
      n = max(int(_counts(x.reshape(groups), (i + 1,)).max()), 1)
      if n < m:
        kept = x.size // m * n
        along = kept * x.shape[i] // x.size
        index = -(-along * n_m_array.index_bits(m) // 8) * (
          x.size // x.shape[i]
        )
        found[n, m, i - x.ndim] = kept * x.dtype.itemsize + index
  return found


def _counts(x, axes):
  return jnp.sum(bits_lib.nonzero(x), axis=axes, dtype=jnp.int32)
