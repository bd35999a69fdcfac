"""Keys and values of attention in codes: a leaf that a decoding loop writes to.

    rules = [('key|value', 'int8'), ('.*', None)]
    cache = jc.quantization.quantize_cache(model.init_cache(batch), rules)
    step  = jax.jit(jc.lift(model.decode, keep=True))
    logits, cache = step(tokens, cache)

A row is what one head keeps of one token, and has a scale of its own. What is
written is rounded, and only that: old rows keep their codes. What attention reads
are the codes, the scale being outside of the sum or, where it is summed over, a
factor of the other operand:

    scores_s = scale_s (q . codes_s),      y = sum_s (weights_s scale_s) codes_s
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress import modules
from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import activation
from jaxopt_compress.quantization import dot
from jaxopt_compress.quantization import gather
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import product
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import spec as spec_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QCache(array.CompressedArray):
  """A cache of rows [..., n] in codes, a scale for each row.

  `materialize` is what the codes stand for. Entries x of a row that is written
  differ from what a dense cache would hold by at most

      int8    max|row| / 255
      e4m3    max(|x| 2^-4, max|row| 2^-10 / 448)
      e5m2    max(|x| 2^-3, max|row| 2^-17 / 57344)

  and entries that are not written keep their codes. Gradients do not pass.

  Attributes:
    codes: what is stored.
    spec: how rows become codes.
  """

  codes: qarray.QArray
  spec: spec_lib.Spec = dataclasses.field(metadata={'static': True})

  writable = True
  shape = property(lambda self: self.codes.shape)
  dtype = property(lambda self: self.codes.dtype)

  def materialize(self):
    return self.codes.materialize()

  def describe(self):
    return f'{self.codes.format} cache'

  @property
  def row(self) -> dict[int, int]:
    """{axis from the end: entries that share a scale} of the axes of a row."""
    q = self.codes
    shared = {
      i - q.ndim: 0
      for i, n in enumerate(q.shape)
      if n > 1 and q.scale.shape[i] == 1
    }
    return shared | dict(q.blocks)


def quantize_cache(
  cache: Any, rules: Sequence[tuple[str, spec_lib.Spec | str | None]]
) -> Any:
  """Turns the caches that rules name into codes, a scale for each row.

  Args:
    cache: a tree of arrays; rows lie along the last axis: [..., places, dim].
    rules: ordered `(regex, format)`: 'int8', 'e4m3', 'e5m2', any other format in
      the words of `jc.schemes.Spec`, or None for what is no cache of rows. First match
      wins, every leaf must be covered and every rule used.

  Returns:
    The tree with `QCache` leaves.

  Raises:
    ValueError: uncovered leaf, unused rule, a format with zero points or scales
      of two levels, or a leaf that is not floating.

  >>> from jaxopt_compress.analysis import storage
  >>> cache = {'key': jnp.zeros((2, 16, 4, 8)), 'length': jnp.int32(0)}
  >>> q = quantize_cache(cache, [('key', 'int8'), ('.*', None)])
  >>> q['key'].describe(), storage.nbytes(q)  # 1024 codes, 128 scales, 1 int
  ('int8 cache', 1540)
  """
  formats = rules_lib.match(rules, cache)
  specs = {path: _spec(path, value) for path, value in formats.items()}

  def as_cache(path, x):
    if specs[path] is None:
      return x
    _check(path, x)
    return QCache(
      _rounded(x, specs[path], {-1: specs[path].group}), specs[path]
    )

  return modules.dress(rules_lib.map_named(as_cache, cache), cache)


def _spec(path, value):
  if value is None:
    return None
  spec = spec_lib.parse(value, 'token') if isinstance(value, str) else value
  per_row = spec.granularity in ('token', 'channel', 'group')
  if not per_row or not spec.symmetric or spec.rounding != 'nearest':
    raise ValueError(
      f'{path} is to be cached as {spec.describe()!r}; a cache has symmetric'
      " scales for each row or for groups of it, rounded to nearest: 'int8',"
      " 'e4m3', 'int4 g32'."
    )
  if spec.scale not in ('float32', 'bfloat16'):
    raise ValueError(
      f'{path} is to be cached with {spec.scale} scales; rows come one by one,'
      " so theirs are plain: 'float32' or 'bfloat16'."
    )
  return spec


def _check(path, x):
  if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2:
    raise ValueError(
      f'{path} is {x.dtype}{list(x.shape)}; a cache of rows [..., n] in floating'
      f' numbers is expected. Put (r"{path}", None) before the rule that takes'
      ' it.'
    )


def _rounded(x, spec, row, packed=-1) -> qarray.QArray:
  """Codes of rows that lie along the axes `row`."""
  blocks = tuple(sorted(row.items()))
  return qarray.quantize_array(
    lax.stop_gradient(x), spec, blocks, packed=packed
  )


# -------------------------------------------------------------------- writing


def _new_rows(cache: QCache, x, axis_of) -> qarray.QArray | None:
  """What is to be written, in codes; None where it is not whole rows.

  Args:
    cache: where.
    x: floating array, or a cache.
    axis_of: axis of the cache, from the end -> axis of `x` from the end, or None
      where x does not have it.
  """
  q = cache.codes
  row = {axis_of(a): n for a, n in cache.row.items()}
  if any(
    axis_of(a) is None or x.shape[axis_of(a)] != q.shape[a] for a in cache.row
  ):
    return None
  packed = axis_of(q.packed) if q.packed else 0
  if packed is None or (packed and x.shape[packed] != q.shape[q.packed]):
    return None
  if isinstance(x, QCache):
    if x.spec == cache.spec and (x.row, x.codes.packed) == (row, packed):
      return x.codes
    x = x.materialize()
  return _rounded(x, cache.spec, row, packed)


def _write(cache: QCache, rows: qarray.QArray, put) -> QCache:
  """`put(old, new)` of each part of the codes."""
  old, treedef = jax.tree.flatten(cache.codes)
  new = [put(o, n) for o, n in zip(old, jax.tree.leaves(rows), strict=True)]
  return dataclasses.replace(cache, codes=jax.tree.unflatten(treedef, new))


_PARTIAL = lift.Dense('a write of less than whole rows')


def update_slice(cache, x, *starts):
  """Writes rows at an index."""
  if not isinstance(cache, QCache):
    return lift.Dense('it is written to a dense array')
  rows = _new_rows(cache, x, lambda a: a)
  if rows is None:
    return _PARTIAL

  # Along a row the start is 0, also where a part has size 1 in its place.
  def put(old, new):
    return lax.dynamic_update_slice(old, new, starts)

  return _write(cache, rows, put)


def scatter(
  cache,
  indices,
  x,
  *,
  dimension_numbers,
  indices_are_sorted,
  unique_indices,
  mode,
  **_,
):
  """Writes rows at indices."""
  if not isinstance(cache, QCache):
    return lift.Dense('it is written to a dense array')
  numbers = dimension_numbers
  gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
  window = [i for i in range(cache.ndim) if i not in gone]
  place = dict(zip(window, numbers.update_window_dims, strict=True))

  def axis_of(a):
    # An index along a row may be given; only 0 is one of a whole row, in codes and
    # in scales alike.
    i = place.get(cache.ndim + a)
    return None if i is None else i - x.ndim

  rows = _new_rows(cache, x, axis_of)
  if rows is None:
    return _PARTIAL

  def put(old, new):
    return lax.scatter(
      old,
      indices,
      new,
      numbers,
      indices_are_sorted=indices_are_sorted,
      unique_indices=unique_indices,
      mode=mode,
    )

  return _write(cache, rows, put)


def concatenate(*operands, dimension):
  """Joins caches and arrays, not along a row."""
  cache = next(x for x in operands if isinstance(x, QCache))
  if dimension - cache.ndim in {*cache.row, cache.codes.packed}:
    return lift.Dense('a concatenation along a row')
  parts = [_new_rows(cache, x, lambda a: a) for x in operands]
  if any(p is None for p in parts):
    return _PARTIAL
  joined = [
    lax.concatenate(arrays, dimension)
    for arrays in zip(*map(jax.tree.leaves, parts), strict=True)
  ]
  codes = jax.tree.unflatten(jax.tree.structure(cache.codes), joined)
  return dataclasses.replace(cache, codes=codes)


def stack(*operands, axis):
  """Caches of layers as one."""
  shape = list(operands[0].shape)
  shape.insert(axis, 1)

  def expand(x):
    reshape = lift.rule_for(lax.reshape_p, type(x)) or lax.reshape_p.bind
    return reshape(x, new_sizes=tuple(shape), dimensions=None, sharding=None)

  expanded = [expand(x) for x in operands]
  declined = [x for x in expanded if isinstance(x, lift.Dense)]
  return declined[0] if declined else concatenate(*expanded, dimension=axis)


# -------------------------------------------------------------------- reading


def dot_rows(lhs, rhs, *, dimension_numbers, **params):
  """A product with a cache: queries with keys, shares with values."""
  side = int(isinstance(rhs, QCache))
  cache, x = (rhs, lhs) if side else (lhs, rhs)
  d, q = product.dims(dimension_numbers), cache.codes
  shared = dot.shared_along(q, d.contracting[side])
  held = {*d.contracting[side], *d.batch[side]}
  alone = all(n == 1 for i, n in enumerate(q.scale.shape) if i not in held)
  inside = activation.holds_numbers(q.numbers_format, x.dtype)
  if shared or q.blocks or not alone or not inside:
    return dot.weight_only(
      *_in_order(side, x, q), dimension_numbers=dimension_numbers, **params
    )
  if declined := dot.refuses(x):
    return declined
  # The scale changes along what is summed over, and nowhere else: it is a factor
  # of the other operand's.
  scaled = x * _beside(q.scale_hat, d, side, x.ndim).astype(x.dtype)
  return lax.dot_general_p.bind(
    *_in_order(side, scaled, q.numbers.astype(x.dtype)),
    dimension_numbers=dimension_numbers,
    **params,
  )


def _in_order(side, x, cache):
  return (x, cache) if side else (cache, x)


def _beside(scale, d: product.Dims, side: int, ndim: int):
  """A scale of contracted and batch axes, where the other operand has them."""
  mine, other = ([*d.batch[s], *d.contracting[s]] for s in (side, 1 - side))
  rest = [i for i in range(scale.ndim) if i not in mine]
  by_place = sorted(zip(other, mine, strict=True))
  scale = lax.transpose(scale, (*(i for _, i in by_place), *rest))
  shape = [1] * ndim
  for (j, _), n in zip(by_place, scale.shape, strict=False):
    shape[j] = n
  return scale.reshape(shape)


def gather_rows(operand, indices, **params):
  """Rows at indices."""
  if not isinstance(operand, QCache):
    return lift.Dense('it is an index')
  return gather.gather_rows(operand.codes, indices, **params)


def move_rule(primitive, move):
  """Moves the codes of a cache."""

  def move_cache(cache, *rest, **params):
    if not isinstance(cache, QCache):
      return lift.Dense('it is an index')
    out = move(cache.codes, *rest, **params)
    if isinstance(out, lift.Dense):
      return out

    def again(codes):
      return dataclasses.replace(cache, codes=codes)

    return moves.each(primitive, again, out)

  return move_cache
