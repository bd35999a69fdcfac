"""`pack` and `unpack`: weights for the kernels, once, and back.

A leaf is packed where a kernel computes its products; others stay as they are, and
`packable` says why.
"""

from collections.abc import Callable
import functools
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels import matrix as matrix_lib
from jaxopt_compress.kernels import packed
from jaxopt_compress.kernels import pruned
from jaxopt_compress.kernels import rules as _rules  # noqa: F401  (its rules)
from jaxopt_compress.kernels import tiled
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.quantization import blocks as blocks_lib
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import spec

# Operations that multiply a weight.
_PRODUCTS = ('dot_general', 'conv_general_dilated')


class NothingToPack(ValueError):
  """No leaf can be packed."""


def pack(
  params: Any,
  uses: dict | None = None,
  *,
  target: str | None = None,
  sparse: bool = True,
  skipped: Callable[[str, str], None] | None = None,
) -> Any:
  """Lays quantised and pruned weights out for the kernels of a kind of machine.

  To be done once, before a model is called; `lift` calls the kernels on such a
  machine (on CPUs where the library of C++ was built), and otherwise computes the
  same, slower. Scales of two levels become float32; numbers stay what they are.

  Convolutions of few channels with float activations may be faster in XLA.

  Where a program runs on several devices, call it under `shard_map`: of arrays that
  `jit` cuts over devices, each device computes the whole product.

  Args:
    params: a tree with `QArray` and `QDotArray` leaves, and pruned arrays.
    uses: what `jc.uses(apply)(params, x)` returned; None for Flax's convention, as
      in `jc.quantize`.
    target: 'cpu'; 'gpu' or 'tpu' for matrices of int8 and int4; None for 'cpu' or
      'gpu', where programs run by default, if there are kernels. Else nothing is
      packed, with a warning: unpacking in every call would be slower.
    sparse: leave zeros out of weights of which half or more are zero: of int8, and
      with `uses` plain arrays of bfloat16 and float32, that meet dot products only.
      Not under `jax.jit`, where zeros are not known. Faster for a few rows; for many
      hardly, and slower where the matrix is small.
    skipped: called with (path, why) for each compressed leaf that stays as it is.

  Returns:
    The tree with `PackedArray` leaves; `TiledArray` for GPUs and TPUs.

  Raises:
    NothingToPack: no leaf can be packed; says why for each.
    ValueError: no such target.

  >>> from jaxopt_compress.quantization import schemes
  >>> q = schemes.quantize({'kernel': jnp.ones((64, 32))}, [('kernel', 'int4 g32')])
  >>> pack(q, target='cpu')['kernel'].describe()
  'int4 g32, packed'
  """
  why = '' if target else _not_here()
  if why:
    warnings.warn(f'Nothing is packed: {why}.', stacklevel=2)
    return params
  target = target or jax.default_backend()
  spec.one_of('target', target, ('cpu', 'gpu', 'tpu'))
  sparse = sparse and target == 'cpu'
  made, reasons = {}, {}
  for path, leaf in rules_lib.named_leaves(params):
    why = packable(path, leaf, uses, target)
    laid = None if why else pack_leaf(path, leaf, uses)
    if sparse:
      thin = _without_zeros(path, leaf, uses, laid)
      laid = laid if thin is None else thin
    if laid is not None:
      made[path] = laid if target == 'cpu' else tiled.tile(laid, target)
    elif array.is_compressed(leaf):
      reasons[path] = why
  if not made:
    listed = '; '.join(f'{p}: {why}' for p, why in list(reasons.items())[:8])
    raise NothingToPack(
      'Nothing to pack:'
      f' {listed or "no leaf is compressed, or mostly zero. Call jc.quantize first"}.'
    )
  for path, why in reasons.items():
    if skipped is not None:
      skipped(path, why)
  return rules_lib.map_named(lambda path, x: made.get(path, x), params)


def _not_here() -> str:
  """Why packing would not pay where programs run by default; '' if it would."""
  backend = jax.default_backend()
  if backend == 'gpu':
    return ''
  if backend != 'cpu':
    return (
      f'the kernels for {backend} have not been timed; jc.tune measures them,'
      f" target='{backend}' packs without measuring"
    )
  return '' if native.available() else native.MISSING


def unpack(params: Any) -> Any:
  """The inverse of `pack`: leaves for any machine, of the same numbers."""
  return jax.tree.map(
    lambda x: x.portable() if array.is_compressed(x) else x,
    params,
    is_leaf=array.is_compressed,
  )


def packable(
  path: str, leaf: Any, uses: dict | None = None, target: str = 'cpu'
) -> str:
  """Why a leaf cannot be packed for a target; '' if it can."""
  if not array.is_compressed(leaf):
    return 'it is not compressed'
  if isinstance(leaf, packed.PackedArray | tiled.TiledArray):
    return 'it is packed already'
  if not isinstance(leaf, qarray.QArray | qarray.QDotArray):
    return f'{leaf.describe()} has no kernel'
  q = _weight(leaf)
  if q.format not in packed.LAYOUT:
    return f'{q.format} has no kernel; {list(packed.LAYOUT)} have'
  if uses is not None and path in uses:
    met = {u.primitive for u in uses[path] if u.contracted}
    if not met & set(_PRODUCTS):
      return 'no dot product or convolution reads it'
  if 0 in q.shape:
    return 'it is empty'
  matrix, stack, why = _as_matrix(path, q, uses)
  if why:
    return why
  group = _group(q, matrix, stack)
  if isinstance(group, str):
    return group
  if group > native.MOST_ROWS:
    return f'32 bits do not hold sums of more than {native.MOST_ROWS} products'
  groups = _feature_groups(path, uses)
  if target != 'cpu':
    met = {u.primitive for u in (uses or {}).get(path, ()) if u.contracted}
    if met - {'dot_general'}:
      return f'no kernel of a {target} for {sorted(met)}'
    act = leaf.act if isinstance(leaf, qarray.QDotArray) else None
    return tiled.suits(q.format, q.zero, act)
  if groups > 1 and stack:
    return 'a stack of convolutions in groups'
  if groups > 1 and len(matrix.rows) != 3:
    return 'a convolution in groups over other than two axes'
  if groups > 1 and matrix.rows[-1] == 1:  # channels are kept apart
    if packed.LAYOUT[q.format].name in ('e2m1', 'nf4') or group != matrix.k:
      return (
        'channels kept apart are multiplied as int8 with one scale for each'
      )
  return ''


def _feature_groups(path, uses) -> int:
  return max((u.feature_groups for u in (uses or {}).get(path, ())), default=1)


def _weight(leaf) -> qarray.QArray:
  return leaf.weight if isinstance(leaf, qarray.QDotArray) else leaf


def _as_matrix(path, q, uses):
  """(matrix, number of stacked axes, why not)."""
  contracted, stacked, free = uses_lib.axes(path, q, uses)
  ndim = q.ndim
  if [ndim + a for a in stacked] != list(range(len(stacked))):
    return None, 0, f'its stacked axes {stacked} are not the first'
  # Blocks along rows lie together where their axis is the last of the rows.
  blocks = getattr(q, 'blocks', ())
  blocked = [a for a, _ in blocks if a in contracted]
  order = [a for a in contracted if a not in blocked] + blocked
  if len(blocked) > 1:
    return None, 0, 'its scales change along two contracted axes'
  for use in (uses or {}).get(path, ()):
    if use.primitive == 'conv_general_dilated' and use.contracted:
      order = list(use.contracted)
  axes = [*order, *free]
  rows = tuple(q.shape[a] for a in order)
  columns = tuple(q.shape[a] for a in free)
  first = len(stacked) - ndim
  places = tuple(axes.index(a) for a in range(first, 0))
  return matrix_lib.Matrix(rows, columns, places), len(stacked), ''


def _group(q, matrix, stack) -> int | str:
  """Rows that share scales, or why there is no such number."""
  first = stack - q.ndim
  axis_of = {entry: first + i for i, entry in enumerate(matrix.order)}
  sizes = dict(q.blocks)
  row_axes = [axis_of[i] for i in range(len(matrix.rows))]
  changing = [a for a in row_axes if q.scale.shape[a] > 1]
  if not changing:
    return matrix.k
  minor = row_axes[-1]
  # Where they change along other rows only, they are those of whole last axes.
  group = sizes.get(minor, 1)
  if q.scale.shape[minor] == 1:
    group = matrix.rows[-1]
  if group < 4:
    return f'a scale for every {group} rows'
  if matrix.rows[-1] != matrix.k and matrix.rows[-1] % group:
    return (
      f'groups of {group} do not divide the {matrix.rows[-1]} rows they lie in'
    )
  return group


def pack_leaf(path: str, leaf: Any, uses: dict | None) -> packed.PackedArray:
  """One leaf, of which `packable` says that it can be packed."""
  q = _weight(leaf)
  matrix, stack, _ = _as_matrix(path, q, uses)
  group = _group(q, matrix, stack)
  act = leaf.act if isinstance(leaf, qarray.QDotArray) else None
  return _packed(leaf, matrix, stack, group, act, _feature_groups(path, uses))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _packed(leaf, matrix, stack, group, act, groups):
  q = _weight(leaf)
  how = packed.LAYOUT[q.format]
  ndim = len(matrix.order)

  def spread(p):
    """[stack..., groups, n] of what is shared along blocks."""
    p = blocks_lib.expand(p, _free_blocks(q, matrix, stack), q.shape)
    grouped = group < matrix.k
    sizes = [
      (size if grouped else 1) if i < len(matrix.rows) else size
      for i, size in enumerate(matrix.sizes)
    ]
    if grouped:
      sizes[len(matrix.rows) - 1] = -(-matrix.rows[-1] // group)
    wanted = q.shape[:stack] + tuple(sizes[i] for i in matrix.order)
    return matrix.to_matrix(jnp.broadcast_to(p, wanted))

  exact = q.scale.dtype in (jnp.bfloat16, jnp.float8_e8m0fnu)
  exact = exact and q.global_scale is None
  scale = spread(q.scale if exact else q.scale_hat)
  zero = None if q.zero is None else spread(q.zero)
  depthwise = groups > 1 and matrix.rows[-1] == 1
  if depthwise:
    numbers = matrix.to_matrix(packed.integers_of(q)).astype(jnp.int8)
    lead = numbers.shape[:-2]
    payload = layout.to_quads(
      numbers.reshape(*lead, *matrix.rows[-3:-1], matrix.n)
    )
  else:
    codes = _by_group(matrix.to_matrix(packed.codes_of(q)), groups)
    payload = layout.to_panels(codes, how.name, group)
    scale, zero = _by_group(scale, groups), _by_group(zero, groups)
  totals = None
  if act is not None and not act.symmetric:
    w = matrix.to_matrix(q.materialize().astype(jnp.float32))
    totals = jnp.sum(w, axis=-2, keepdims=True)
    totals = totals if depthwise else _by_group(totals, groups)
  lead = q.shape[:stack]
  more = groups > 1 and not depthwise

  def full(p, inner):
    ones = (1,) * (max(ndim, inner) - inner)
    return None if p is None else p.reshape(*lead, *ones, *p.shape[-inner:])

  def given(p):
    if p is None:
      return None
    one = p.reshape(*p.shape[:stack], 1, 1)
    return full(jnp.broadcast_to(one, (*lead, 1, 1)), 2)

  ranged = isinstance(leaf, qarray.QDotArray)
  return packed.PackedArray(
    full(payload, 4 if depthwise else 3 + more),
    None,
    full(scale, 2 + more),
    full(zero, 2 + more),
    full(totals, 2 + more),
    given(leaf.act_scale) if ranged else None,
    given(leaf.act_zero) if ranged else None,
    q.format,
    q.dtype,
    matrix,
    group,
    act,
    feature_groups=groups,
  )


def _by_group(p, groups):
  """[..., rows, n] to [..., groups of features, rows, n / groups]."""
  if p is None or groups == 1:
    return p
  return jnp.swapaxes(p.reshape(*p.shape[:-1], groups, -1), -3, -2)


def _free_blocks(q, matrix, stack):
  """Blocks along axes that are not contracted."""
  first = stack - q.ndim
  free = {
    first + i
    for i, entry in enumerate(matrix.order)
    if entry >= len(matrix.rows)
  }
  return tuple((a, n) for a, n in q.blocks if a in free)


def _without_zeros(path, leaf, uses, laid) -> packed.PackedArray | None:
  """A leaf without its zeros, `laid` out with them or not; None where that is no use."""
  traced = any(isinstance(p, jax.core.Tracer) for p in jax.tree.leaves(leaf))
  met = {u.primitive for u in (uses or {}).get(path, ()) if u.contracted}
  if traced or met - {'dot_general'}:
    return None
  if laid is not None:
    return pruned.of_codes(laid)
  if not met or not pruned.is_pruned(leaf):
    return None
  w = np.asarray(array.materialize(leaf))
  try:
    matrix, stack, why = _as_matrix(path, w, uses)
  except ValueError:  # which of its axes are contracted is not known
    return None
  return None if why or not matrix.rows else pruned.of_floats(w, matrix, stack)
