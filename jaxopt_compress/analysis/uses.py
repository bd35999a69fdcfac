"""Every weight knows the operations it is used in.

`uses(apply)(params, x)` follows each leaf through the program, through reshape,
transpose, convert, slice, squeeze, jit, scan and remat, and tells which
primitives it reaches and which of its axes are contracted there. So a "channel"
is what is not contracted: for Dense, DenseGeneral, attention, convolutions,
embeddings and layers nobody has heard of, with no table of layer names.

It is `lift` over one more leaf type: a `Probe` stands for a parameter and carries
the names of its axes.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib


class Use(NamedTuple):
  """One operation that a leaf reaches.

  Attributes:
    primitive: name of the JAX primitive.
    contracted: axes of the leaf, counted from the end, that are summed over
      (dot, convolution: the window, then channels), or that make up one row
      (gather); () elsewhere.
    stacked: axes along which there is one weight after the other: sliced away
      before by a scan or by indexing, batch axes of a dot, groups (experts) of a
      ragged dot.
    source: file, line and function of the model.
    feature_groups: of a convolution.
  """

  primitive: str
  contracted: tuple[int, ...]
  stacked: tuple[int, ...]
  source: str
  feature_groups: int = 1


class Axes(NamedTuple):
  """What the axes of a leaf are, each counted from the end."""

  contracted: tuple[int, ...]
  stacked: tuple[int, ...]
  free: tuple[int, ...]


# An axis of a probe is a tuple of pieces (axis of the leaf, size), major first.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Probe(array.CompressedArray):
  """Stands for a parameter; `axes[-i]` names the pieces of axis -i.

  `full` is the shape of the leaf, and `cut` pairs (axis of the leaf, mesh axes)
  along which a `shard_map` has cut it, where `placed` was told. `value` is the
  array, or, where observed, the leaf that computes for it.
  """

  value: Any
  axes: tuple = dataclasses.field(metadata={'static': True})
  full: tuple[int, ...] = dataclasses.field(metadata={'static': True})
  cut: tuple = dataclasses.field(default=(), metadata={'static': True})
  path: str = dataclasses.field(default='', metadata={'static': True})

  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)
  origin = property(lambda self: len(self.full))  # rank of the leaf

  def materialize(self):
    return array.materialize(self.value)

  @property
  def pieces(self) -> list[tuple[tuple[int, int], ...]]:
    """The pieces of each present axis, their sizes as they are here."""
    axes = self.axes[len(self.axes) - self.ndim :]
    return [_fit(pieces, n) for pieces, n in zip(axes, self.shape, strict=True)]


def _fit(pieces, n):
  """Rescales the major piece where the axis was cut into shards."""
  size = math.prod(s for _, s in pieces)
  if pieces and size != n and (n * pieces[0][1]) % size == 0:
    (axis, first), *rest = pieces
    return ((axis, first * n // size), *rest)
  return pieces


def probe(x) -> Any:
  """A probe that stands for a parameter; what has no shape stays itself."""
  if not hasattr(x, 'shape'):
    return x
  axes = tuple(((i - x.ndim, n),) for i, n in enumerate(x.shape))
  return Probe(x, axes, x.shape)


def placed(x, spec) -> Any:
  """A probe that knows how a `shard_map` cuts it; other leaves as they are."""
  if not isinstance(x, Probe):
    return x
  cut = dict(x.cut)
  for pieces, names in zip(x.pieces, spec, strict=False):
    names = names if isinstance(names, tuple) else (names,)
    if pieces and names != (None,):
      axis = pieces[0][0]
      cut[axis] = (*cut.get(axis, ()), *names)
  return dataclasses.replace(x, cut=tuple(cut.items()))


def uses(fun: Callable) -> Callable[..., dict[str, tuple[Use, ...]]]:
  """For each leaf of the first argument, the operations it reaches.

  Args:
    fun: a function of parameters and further arguments.

  Returns:
    A function of the same arguments that returns `{path: (Use, ...)}`, in the
    order of the tree; a leaf that the program never reads has an empty tuple.
    Nothing is computed: arguments may be abstract.

  >>> import jax.numpy as jnp
  >>> f = lambda p, x: x @ p['w'] + p['b']
  >>> params = {'w': jnp.ones((3, 4)), 'b': jnp.ones((1, 4))}
  >>> [(u.primitive, u.contracted) for u in uses(f)(params, jnp.ones((2, 3)))['w']]
  [('dot_general', (-2,))]
  """

  def used(params, *args, **kwargs):
    paths = [path for path, _ in rules_lib.named_leaves(params)]
    # `lift` names an argument that is itself a leaf by its number.
    found = {path or '0': [] for path in paths}
    joined = {}  # leaves that another one took along, in a concatenation, say

    def record(met: lift.Met):
      if met.native or met.primitive in _LOOPS or met.path not in found:
        return
      if met.reason == jaxprs.TAKEN:
        joined[met.path] = True
      contracted, stacked, *groups = met.detail or ((), ())
      found[met.path].append(
        Use(met.primitive, contracted, stacked, met.source, *groups)
      )

    ctx = jaxprs.Context(_rule_for, record, inline=True)
    lift.analyse(ctx, fun, (params, *args), kwargs, _probes)
    for path in list(joined):
      found[path] = []
      only = functools.partial(_probes, only=path)
      lift.analyse(ctx, fun, (params, *args), kwargs, only)
    return {path: tuple(dict.fromkeys(found[path or '0'])) for path in paths}

  return used


_LOOPS = ('scan', 'while', 'cond', 'shard_map')


def _probes(args, only=None):
  params, *rest = args
  params = rules_lib.map_named(
    lambda path, x: x if only not in (None, path or '0') else probe(x),
    array.materialize(params),
  )
  return (params, *rest)


def axes(path: str, leaf: Any, uses: dict[str, tuple[Use, ...]] | None) -> Axes:
  """The contracted, stacked and free axes of a leaf.

  With `uses`, from the program: an axis contracted anywhere counts as
  contracted. Without, by Flax's convention (the last axis is the output), for
  what it settles: a matrix that is not an embedding, and a convolution with a
  square odd window.

  Args:
    path: name of the leaf.
    leaf: anything with a shape.
    uses: what `uses(apply)(params, x)` returned, or None.

  Raises:
    ValueError: the axes cannot be told, or no operation contracts the leaf.
  """
  ndim = len(leaf.shape)
  if uses is None:
    return _by_convention(path, tuple(leaf.shape))
  if path not in uses:
    raise ValueError(
      f'uses has no entry for {path}: it was made for another tree, with'
      f' leaves {list(uses)[:8]}. Call jc.uses(apply)(params, x) on this one.'
    )
  found = [u for u in uses[path] if u.contracted]
  if not found:
    met = sorted({f'{u.primitive} at {u.source}' for u in uses[path]})
    where = '; '.join(met) if met else 'no operation at all'
    raise ValueError(
      f'{path} reaches no dot, convolution or gather, only {where}. Leave it'
      f' as it is: put (r"{path}", None) before the rule that takes it.'
    )
  contracted = set().union(*(u.contracted for u in found))
  stacked = set().union(*(u.stacked for u in found)) - contracted
  free = set(range(-ndim, 0)) - contracted - stacked
  return Axes(*(tuple(sorted(a)) for a in (contracted, stacked, free)))


def _by_convention(path, shape) -> Axes:
  name = path.split('/')[-1]
  square_window = len(shape) == 4 and shape[0] == shape[1] and shape[0] % 2
  if len(shape) == 2 and 'embedding' not in name:
    return Axes((-2,), (), (-1,))
  if square_window and shape[0] <= 11:
    return Axes((-4, -3, -2), (), (-1,))
  raise ValueError(
    f'Which axes of {path}, shape {shape}, are contracted? Without uses only'
    ' matrices [in, out] and convolutions with a square odd window [h, w, in,'
    ' out] are clear; embeddings, stacked layers and attention projections'
    ' are not. Pass uses=jc.uses(apply)(params, x).'
  )


# ------------------------------------------------------------ rules of a probe

_RULES: dict[str, Callable] = {}


def move_for(primitive) -> Callable | None:
  """What a probe does under a primitive."""
  return _RULES.get(primitive.name)


def _rule_for(primitive, leaf_type):
  if leaf_type is Probe:
    return move_for(primitive)
  return lift.rule_for(primitive, leaf_type)


def _rule(*names):
  def register(f):
    for name in names:
      _RULES[name] = f
    return f

  return register


def _found(probe: Probe, contracted_axes, batch_axes=()) -> lift.Dense:
  contracted = {a for i in contracted_axes for a, _ in probe.pieces[i]}
  present = {
    a
    for i, pieces in enumerate(probe.pieces)
    for a, _ in pieces
    if i not in batch_axes
  }
  stacked = set(range(-probe.origin, 0)) - present
  return lift.Dense(
    'a use', (tuple(sorted(contracted)), tuple(sorted(stacked)))
  )


def _moved(probe: Probe, value, pieces) -> Probe:
  return dataclasses.replace(probe, value=value, axes=tuple(pieces))


@_rule('dot_general')
def _(lhs, rhs, *, dimension_numbers, **_):
  (lhs_axes, rhs_axes), (lhs_batch, rhs_batch) = dimension_numbers
  if isinstance(lhs, Probe):
    return _found(lhs, lhs_axes, lhs_batch)
  return _found(rhs, rhs_axes, rhs_batch)


@_rule('conv_general_dilated')
def _(lhs, rhs, *, dimension_numbers, feature_group_count, **_):
  if isinstance(rhs, Probe):
    out, feature, *space = dimension_numbers.rhs_spec
    use = _found(rhs, (feature, *space))
    window = (a for i in (*space, feature) for a, _ in rhs.pieces[i])
    detail = tuple(dict.fromkeys(window)), use.detail[1], feature_group_count
    return lift.Dense(use.reason, detail)
  return _found(lhs, dimension_numbers.lhs_spec[1:])


@_rule('gather')
def _(operand, indices, *, dimension_numbers, slice_sizes, **_):
  if not isinstance(operand, Probe):
    return _found(indices, ())
  row = [
    i
    for i, n in enumerate(slice_sizes)
    if n == operand.shape[i] and i not in dimension_numbers.start_index_map
  ]
  return _found(operand, row)


@_rule('ragged_dot_general')
def _(lhs, rhs, group_sizes, *, ragged_dot_dimension_numbers, **_):
  numbers = ragged_dot_dimension_numbers
  (lhs_axes, rhs_axes), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers
  if isinstance(lhs, Probe):
    return _found(lhs, lhs_axes, lhs_batch)
  groups = numbers.rhs_group_dimensions
  return _found(rhs, rhs_axes, (*rhs_batch, *groups))


@_rule('all_gather')
def _(x, *, all_gather_dimension, axis_name, axis_index_groups, tiled, **_):
  i, names = all_gather_dimension, axis_name
  if not tiled or axis_index_groups is not None or not x.pieces[i]:
    return lift.Dense('a gather of another form')
  value = lax.all_gather(x.value, names, axis=i, tiled=True)
  pieces = x.pieces
  pieces[i] = _fit(pieces[i], value.shape[i])
  whole = pieces[i][0][0], names if isinstance(names, tuple) else (names,)
  cut = tuple(c for c in x.cut if c != whole)
  return dataclasses.replace(_moved(x, value, pieces), cut=cut)


@_rule('transpose')
def _(x, *, permutation):
  pieces = [x.pieces[i] for i in permutation]
  return _moved(x, lax.transpose(x.value, permutation), pieces)


@_rule('convert_element_type', 'reduce_precision', 'copy')
def _(x, *, new_dtype=None, **_):
  value = x.value if new_dtype is None else x.value.astype(new_dtype)
  return dataclasses.replace(x, value=value)


@_rule('broadcast_in_dim')
def _(x, *sizes, shape, broadcast_dimensions, **_):
  pieces = [()] * len(shape)
  for i, j in enumerate(broadcast_dimensions):
    if shape[j] == x.shape[i]:
      pieces[j] = x.pieces[i]
  value = lax.broadcast_in_dim(x.value, shape, broadcast_dimensions)
  return _moved(x, value, pieces)


@_rule('rev')
def _(x, *, dimensions):
  return dataclasses.replace(x, value=lax.rev(x.value, dimensions))


@_rule('squeeze')
def _(x, *, dimensions):
  pieces = [p for i, p in enumerate(x.pieces) if i not in dimensions]
  return _moved(x, lax.squeeze(x.value, dimensions), pieces)


@_rule('reshape')
def _(x, *, new_sizes, dimensions, **_):
  if dimensions is not None:
    return lift.Dense('reshape with a permutation')
  flat = [p for pieces in x.pieces for p in pieces]
  pieces = split_pieces(flat, new_sizes)
  if pieces is None:
    return lift.Dense('a reshape that mixes axes')
  return _moved(x, lax.reshape(x.value, new_sizes), pieces)


@_rule('concatenate')
def _(*operands, dimension):
  probe = next(x for x in operands if isinstance(x, Probe))
  values = [x.value if x is probe else x for x in operands]
  return _moved(probe, lax.concatenate(values, dimension), probe.pieces)


@_rule('slice')
def _(x, *, start_indices, limit_indices, strides):
  value = lax.slice(x.value, start_indices, limit_indices, strides)
  return _cut(x, value)


@_rule('dynamic_slice')
def _(x, *starts, slice_sizes, **_):
  if not isinstance(x, Probe):
    return lift.Dense('an index')
  return _cut(x, lax.dynamic_slice(x.value, starts, slice_sizes))


@_rule('split')
def _(x, *, sizes, axis):
  return [_cut(x, part) for part in lax.split(x.value, sizes, axis)]


@_rule('unstack')
def _(x, *, axis):
  pieces = [p for i, p in enumerate(x.pieces) if i != axis]
  return [_moved(x, part, pieces) for part in jnp.unstack(x.value, axis=axis)]


def _cut(x, value):
  pieces = [
    p if n == m else ((p[0][0], n),) if len(p) == 1 and n > 1 else ()
    for p, m, n in zip(x.pieces, x.shape, value.shape, strict=True)
  ]
  return _moved(x, value, pieces)


def split_pieces(flat, new_sizes):
  """Deals pieces (axis, size), major first, to axes of new sizes, or None."""
  flat = [p for p in flat if p[1] != 1]
  out = []
  for n in new_sizes:
    axis_pieces = []
    while n > 1:
      if not flat:
        return None
      axis, size = flat.pop(0)
      if n % size == 0:
        axis_pieces.append((axis, size))
        n //= size
      elif size % n == 0:
        axis_pieces.append((axis, n))
        flat.insert(0, (axis, size // n))
        n = 1
      else:
        return None
    out.append(tuple(axis_pieces))
  return out
