"""`pack` and `unpack`: weights for the kernels, once, and back.

A leaf is packed where a kernel computes its products; others stay as they are, and
`packable` says why.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import modules
from jaxopt_compress.analysis import storage
from jaxopt_compress.core import array
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.kernels import leaves
from jaxopt_compress.kernels import planning
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.kernels.leaves import floats as floats_lib
from jaxopt_compress.kernels.leaves import numbers
from jaxopt_compress.kernels.leaves import panels
from jaxopt_compress.kernels.leaves import quads
from jaxopt_compress.kernels.leaves import streams
from jaxopt_compress.kernels.leaves import tiled
from jaxopt_compress.pruning import masked_array
from jaxopt_compress.pruning.storage import sparsify
from jaxopt_compress.quantization import blocks as blocks_lib
from jaxopt_compress.quantization import qarray

# Operations that multiply a weight.
_PRODUCTS = {'dot_general', 'conv_general_dilated'}


def pack(
  params: Any,
  uses: dict | None = None,
  *,
  target: str | None = None,
  rows: Sequence[int] = (1, 16, 128),
  sparse: bool | None = None,
  floats: bool | None = None,
  skipped: Callable[[str, str], None] | None = None,
) -> Any:
  """Lays quantised and pruned weights out for the kernels of a kind of machine.

  To be done once, before a model is called; `lift` calls the kernels on such a
  machine (on CPUs where the library of C++ was built), and otherwise computes the
  same, slower. Scales of two levels become float32, but for those of NVFP4, and those
  of blocks along columns are repeated for each column; numbers stay what they are, in
  the next number of bits that there is a kernel for. Columns are filled up to 32 in
  each group of a convolution: `describe()` says the bits where that is twice as many.

  Convolutions of few channels with float activations may be faster in XLA.

  Where a program runs on several devices, call it under `shard_map`: of arrays that
  `jit` cuts over devices, each device computes the whole product.

  Args:
    params: a tree with `QArray` and `QDotArray` leaves, and pruned arrays; also as
      `jc.sparsify` stores them. What is not packed of those stays stored so.
    uses: what `jc.uses(apply)(params, x)` returned; without it, leaves called `kernel`
      alone, as in `jc.quantize`.
    target: 'cpu'; 'gpu' or 'tpu' for matrices of int8 and int4; None for 'cpu' or
      'gpu', where programs run by default, if there are kernels. Else nothing is
      packed, with a warning: unpacking in every call would be slower.
    rows: how many rows the other operand may have.
    sparse: leave zeros out of weights of which half or more are zero: of int8, and
      with `uses` plain arrays of bfloat16 and float32, that meet dot products only.
      Not under `jax.jit`, where zeros are not known. None for where that should be
      faster for each of `rows`: for a few, if not all weights fit into the caches.
      True for less memory.
    floats: lay the kernels of convolutions that are arrays of float32 out, too, if
      `uses` tells of them and nothing else reads them. Their convolutions are the
      same up to the order of sums. None for where there
      is the library: few channels, or channels kept apart, are faster, others not
      slower.
    skipped: called with (path, why) for each compressed leaf that stays as it is.
      Where all do, a warning says why.

  Returns:
    The tree with `PackedArray` leaves; `TiledArray` for GPUs and TPUs.

  Raises:
    ValueError: no such target, or rows that are not positive.

  >>> from jaxopt_compress.quantization import quantize
  >>> q = quantize.quantize({'kernel': jnp.ones((64, 32))}, [('kernel', 'int4 g32')])
  >>> pack(q, target='cpu')['kernel'].describe()
  'int4 g32, packed'
  """
  why = '' if target else _not_here()
  if why:
    warnings.warn(f'Nothing is packed: {why}.', stacklevel=2)
    return array.on_device(params)
  target = target or jax.default_backend()
  choices.one_of('target', target, ('cpu', 'gpu', 'tpu'))
  rows = check_rows(rows)
  made, reasons = {}, {}
  # What is stored without zeros gets them back, and is packed as what it was.
  whole = sparsify.with_zeros(params)
  pays = functools.partial(
    streams.pays,
    rows=() if sparse else rows,  # of no rows at all it is true
    all_read=_read_by_products(whole, uses),
  )
  stored = dict(rules_lib.named_leaves(params))
  for path, leaf in rules_lib.named_leaves(whole):
    why = packable(path, leaf, uses, target)
    laid = None if why else pack_leaf(path, leaf, uses)
    if target == 'cpu' and sparse is not False:
      thin = _without_zeros(path, leaf, uses, laid, pays)
      laid = laid if thin is None else thin
    if laid is None and target == 'cpu' and floats is not False:
      laid = _floats(path, leaf, uses, floats)
    if laid is not None:
      made[path] = laid if target == 'cpu' else tiled.tile(laid, target)
    elif array.is_compressed(leaf):
      reasons[path] = why
    elif array.is_compressed(stored[path]):
      reasons[path] = (
        'kernels read floats without zeros for few `rows` and products that `uses`'
        f' tells of, or with sparse=True; it stays {stored[path].describe()}'
      )
  if not made:
    warnings.warn(nothing_done('packed', reasons), stacklevel=2)
  for path, why in reasons.items():
    if skipped is not None:
      skipped(path, why)
  packed = rules_lib.map_named(lambda path, x: made.get(path, x), params)
  return modules.dress(packed, params)


def _not_here() -> str:
  """Why packing would not pay where programs run by default; '' if it would."""
  backend = jax.default_backend()
  if backend == 'gpu':
    return ''
  if backend != 'cpu':
    return (
      f'the kernels for {backend} have not been timed; jc.kernels.tune measures them,'
      f" target='{backend}' packs without measuring"
    )
  return '' if native.available() else native.MISSING


def check_rows(rows: Sequence[int]) -> tuple[int, ...]:
  """The numbers of rows; raises ValueError for what are none."""
  try:
    found = tuple(rows)
  except TypeError:  # one number
    found = ()
  # In Python True is a number, too.
  whole = all(
    isinstance(n, int | np.integer) and not isinstance(n, bool) for n in found
  )
  if not found or not whole or min(found) < 1:
    raise ValueError(
      f'rows={rows}; give one or more positive whole numbers, as (1, 16).'
    )
  return tuple(map(int, found))


def nothing_done(done: str, reasons: dict[str, str]) -> str:
  """What is said of a tree whose leaves stay as they are; why, by path."""
  paths = {}
  for path, why in reasons.items():
    paths.setdefault(why, []).append(path)
  listed = []
  for why, alike in paths.items():
    more = f' and {len(alike) - 3} more' if len(alike) > 3 else ''
    listed.append(f'{", ".join(alike[:3])}{more}: {why}')
  if not listed:
    listed = [
      'no leaf is compressed. Call jc.quantize first; of pruned arrays zeros are'
      ' left out for few `rows`, and with sparse=True'
    ]
  return f'Nothing is {done}: {"; ".join(listed[:8])}.'


def unpack(params: Any) -> Any:
  """The inverse of `pack`: leaves for any machine, of the same numbers."""
  portable = array.map_leaves(lambda leaf: leaf.portable(), params)
  return modules.dress(portable, params)


def packable(
  path: str, leaf: Any, uses: dict | None = None, target: str = 'cpu'
) -> str:
  """Why a leaf cannot be packed for a target; '' if it can."""
  if not array.is_compressed(leaf):
    return 'it is not compressed'
  leaf.check_dtypes()
  if isinstance(leaf, leaves.PackedArray | leaves.TiledArray):
    return 'it is packed already'
  if not isinstance(leaf, qarray.QArray | qarray.QDotArray):
    return f'{leaf.describe()} has no kernel'
  q = planning.weight_of(leaf)
  if q.format not in numbers.LAYOUT:
    return f'{q.format} has no kernel; {list(numbers.LAYOUT)} have'
  met = planning.products_of(path, uses)
  if uses is not None and path in uses and not met & _PRODUCTS:
    return 'no dot product or convolution reads it'
  if remade := planning.remade_by(path, uses):
    return f'{", ".join(sorted(remade))} would unpack it in every call'
  if 0 in q.shape:
    return 'it is empty'
  planned = planning.plan(path, leaf, uses)
  if planned.why:
    return planned.why
  if target == 'cpu':
    return planning.why_not_on_cpu(planned)
  if met - {'dot_general'}:
    return f'no kernel of a {target} for {sorted(met)}'
  return tiled.suits(planned.plan, q.zero)


def pack_leaf(
  path: str, leaf: Any, uses: dict | None
) -> panels.PanelArray | quads.QuadArray:
  """One leaf, of which `packable` says that it can be packed."""
  planned = planning.plan(path, leaf, uses)
  return _packed(leaf, planned.plan, planned.stack)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _packed(leaf, plan, stack):
  """The leaf laid out by a plan, of which `stack` axes are not of matrices."""
  q, matrix = planning.weight_of(leaf), plan.matrix
  short = q.scale.dtype in (jnp.bfloat16, jnp.float8_e8m0fnu)
  short = short and q.global_scale is None
  factor = _global_scale(q, plan, stack)
  as_stored = short or factor is not None
  parts = dict(
    scale=_by_groups(q.scale if as_stored else q.scale_hat, q, plan, stack),
    zero=None if q.zero is None else _by_groups(q.zero, q, plan, stack),
    act_scale=_range(getattr(leaf, 'act_scale', None), q.shape[:stack]),
    act_zero=_range(getattr(leaf, 'act_zero', None), q.shape[:stack]),
  )
  if plan.depthwise:
    integers = matrix.to_matrix(numbers.integers_of(q))
    return quads.lay_out(integers, plan, **parts)
  totals = None
  if plan.act is not None and not plan.act.symmetric:
    w = matrix.to_matrix(q.materialize().astype(jnp.float32))
    totals = jnp.sum(w, axis=-2, keepdims=True)
  codes = matrix.to_matrix(numbers.codes_of(q))
  return panels.lay_out(
    codes, plan, totals=totals, global_scale=factor, **parts
  )


def _global_scale(q, plan, stack):
  """[stack..., 1, 1]: a factor of all scales, which have eight bits; or None."""
  p = q.global_scale
  if p is None or q.global_offset is not None or plan.depthwise:
    return None
  if q.scale.dtype != jnp.float8_e4m3fn or any(n > 1 for n in p.shape[stack:]):
    return None
  return _range(p.astype(jnp.float32), q.shape[:stack])


def _by_groups(p, q, plan, stack):
  """[stack..., groups, n] of scales or zero points, which may be shared more widely."""
  matrix, first = plan.matrix, stack - q.ndim
  # Kernels know groups along the rows only: blocks along other axes are repeated.
  columns = {
    first + i
    for i, entry in enumerate(matrix.order)
    if entry >= len(matrix.rows)
  }
  p = blocks_lib.expand(
    p, tuple((a, n) for a, n in q.blocks if a in columns), q.shape
  )
  rows = [1] * len(matrix.rows)
  if plan.grouped:
    rows = [*matrix.rows[:-1], -(-matrix.rows[-1] // plan.group)]
  sizes = (*rows, *matrix.columns)
  wanted = q.shape[:stack] + tuple(sizes[i] for i in matrix.order)
  return matrix.to_matrix(jnp.broadcast_to(p, wanted))


def _floats(path, leaf, uses, always) -> floats_lib.FloatArray | None:
  """The kernel of a convolution that is an array of floats; None for others."""
  if array.is_compressed(leaf) or getattr(leaf, 'ndim', 0) < 3:
    return None
  if not (always or native.available()):
    return None
  try:
    planned = planning.plan_of_floats(path, leaf, uses)
  except ValueError:  # which of its axes are contracted is not known
    return None
  return None if planned.why else _laid_out(leaf, planned.plan)


@functools.partial(jax.jit, static_argnums=1)
def _laid_out(w, plan):
  return floats_lib.lay_out(plan.matrix.to_matrix(w), plan)


def _range(p, stack):
  """[stack..., 1, 1] of a given range of the other operand, or None."""
  if p is None:
    return None
  one = p.reshape(*p.shape[: len(stack)], 1, 1)
  return jnp.broadcast_to(one, (*stack, 1, 1))


def _read_by_products(params, uses) -> int:
  """Bytes of the leaves that products read."""
  return sum(
    storage.nbytes(leaf)
    for path, leaf in rules_lib.named_leaves(params)
    if getattr(leaf, 'ndim', 0) > 1
    and (uses is None or planning.products_of(path, uses) & _PRODUCTS)
  )


def _without_zeros(path, leaf, uses, laid, pays) -> streams.StreamArray | None:
  """A leaf without its zeros; None where that is no use.

  Args:
    path, leaf, uses: as for `packable`.
    laid: the leaf laid out with its zeros, or None.
    pays: (bytes of what is left, of the leaf, entries) -> whether that is faster.
  """
  traced = any(isinstance(p, jax.core.Tracer) for p in jax.tree.leaves(leaf))
  met = planning.products_of(path, uses)
  if traced or met - {'dot_general'} or getattr(leaf, 'ndim', 0) < 2:
    return None
  if planning.remade_by(path, uses):
    return None
  size = storage.nbytes(leaf if laid is None else laid), leaf.size
  # What is left is not looked for where it would be slower however little it were.
  if not pays(0, *size):
    return None
  thin = None
  if laid is not None:
    thin = streams.of_codes(laid)
  elif met and _is_pruned(leaf):
    thin = _floats_without_zeros(path, leaf, uses)
  pays_off = thin is not None and pays(storage.nbytes(thin), *size)
  return thin if pays_off else None


def _floats_without_zeros(path, leaf, uses):
  w = np.asarray(array.materialize(leaf))
  try:
    matrix, _, why = planning.as_matrix(path, w, uses)
  except ValueError:  # which of its axes are contracted is not known
    return None
  return None if why or not matrix.rows else streams.of_floats(w, matrix)


def _is_pruned(leaf: Any) -> bool:
  """Whether a leaf is an array of floats, many of them zero, or a mask over one."""
  if array.is_compressed(leaf) and not isinstance(leaf, masked_array.Masked):
    return False
  if array.is_compressed(leaf) and array.is_compressed(leaf.value):
    return False
  if leaf.dtype not in (jnp.float32, jnp.bfloat16):
    return False
  w = np.asarray(array.materialize(leaf))
  return w.size > 0 and np.mean(w == 0) >= streams.LEAST_ZEROS
