"""What a PackedArray does: products, gathers of rows, and moves on the way there."""

import dataclasses
import math

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import lift
from jaxopt_compress.kernels import dispatch
from jaxopt_compress.kernels import epilogues
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels import matrix as matrix_lib
from jaxopt_compress.kernels import packed
from jaxopt_compress.kernels import tiled
from jaxopt_compress.quantization import dot
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import product
from jaxopt_compress.quantization import qarray

PackedArray = packed.PackedArray
# Seen as matrices, both kinds of leaves move and multiply alike.
_BOTH = (packed.PackedArray, tiled.TiledArray)


@lift.rule(lax.dot_general_p, *_BOTH)
def dot_general(
  lhs,
  rhs,
  *,
  dimension_numbers,
  preferred_element_type,
  epilogue=None,
  **_,
):
  side = int(isinstance(rhs, _BOTH))
  leaf, x = (rhs, lhs) if side else (lhs, rhs)
  d = product.dims(dimension_numbers)
  declined = dot.refuses(x) or _not_its_matrices(
    leaf, d.contracting[side], d.batch[side]
  )
  if declined:
    return declined
  stack, m = len(leaf.stack), leaf.matrix
  entry = lambda i: m.order[i - stack]  # of an axis of the leaf
  # x as [stack..., free..., k]
  pairs = sorted(
    zip(d.contracting[side], d.contracting[1 - side], strict=True),
    key=lambda pair: entry(pair[0]),
  )
  batch = sorted(zip(d.batch[side], d.batch[1 - side], strict=True))
  held = d.contracting[1 - side] + d.batch[1 - side]
  x_free = [i for i in range(x.ndim) if i not in held]
  lead = [j for _, j in batch]
  x_free_sizes = [x.shape[i] for i in x_free]
  rows = lax.transpose(x, (*lead, *x_free, *(j for _, j in pairs)))
  rows = rows.reshape(*leaf.stack, math.prod(x_free_sizes), m.k)
  free = [i for i in range(stack, leaf.ndim) if i not in d.contracting[side]]
  if epilogue and (not side or stack or len(free) != 1):
    return NotImplemented
  if epilogue and epilogue.other is not None:
    other = epilogue.other.reshape(rows.shape[-2], m.n)
    epilogue = dataclasses.replace(epilogue, other=other)
  result = dot.result_dtype(preferred_element_type, x, leaf)
  y = dispatch.product(rows, leaf, result, epilogue)
  if y is NotImplemented:
    return y
  # To [batch..., free of lhs..., free of rhs...]
  by_entry = sorted(free, key=entry)
  y = y.reshape(*leaf.stack, *x_free_sizes, *(leaf.shape[i] for i in by_entry))
  lead = [i for i, _ in batch]
  of_batch = [lead.index(i) for i in d.batch[side]]
  of_x = [stack + i for i in range(len(x_free))]
  of_leaf = [stack + len(x_free) + by_entry.index(i) for i in free]
  order = (*of_batch, *(of_x + of_leaf if side else of_leaf + of_x))
  return lax.transpose(y, order).astype(result)


def _not_its_matrices(leaf, contracting, batch) -> lift.Dense | None:
  """Declines products that do not sum over the rows of each matrix."""
  stack, m = len(leaf.stack), leaf.matrix
  if leaf.feature_groups > 1:
    return lift.Dense('it is packed for a convolution')
  if sorted(batch) != list(range(stack)):
    return lift.Dense('its stacked axes are not batch axes of the product')
  if any(i < stack for i in contracting):
    return lift.Dense('a product that sums over a stacked axis')
  summed = {m.order[i - stack] for i in contracting}
  summed = {e for e in summed if m.sizes[e] > 1}
  if summed != {e for e in range(len(m.rows)) if m.rows[e] > 1}:
    return lift.Dense('it is packed for a product over other axes')
  return None


# ----------------------------------------------------------------- convolutions


@lift.rule(lax.conv_general_dilated_p, PackedArray)
def convolution(lhs, rhs, epilogue=None, **params):
  if not isinstance(rhs, PackedArray):
    return lift.Dense('it is the image of a convolution, not the kernel')
  declined = dot.refuses(lhs) or _not_its_windows(rhs, params)
  if declined:
    return declined
  numbers = params['dimension_numbers']
  images, feature, *space = numbers.lhs_spec
  out_images, out_feature, *out_space = numbers.out_spec
  if epilogue and out_feature != lhs.ndim - 1:
    return NotImplemented
  # Images of one axis are of height one.
  flat = len(space) == 1
  two = lambda pair, one: (one, *pair) if flat else tuple(pair)
  there = (images, *space, feature)
  back = [0] * lhs.ndim
  for i, axis in enumerate((out_images, *out_space, out_feature)):
    back[axis] = i
  kind = qarray.QArray if rhs.act is None else qarray.QDotArray
  rule = lift.rule_for(lax.conv_general_dilated_p, kind)

  def portable(x, leaf):
    x = x[:, 0] if flat else x
    x = lax.transpose(x, tuple(there.index(i) for i in range(lhs.ndim)))
    wide = {**params, 'preferred_element_type': jnp.dtype(jnp.float32)}
    y = rule(x, leaf.unpack(), **wide)
    y = lax.transpose(y, (out_images, *out_space, out_feature))
    return y[:, None] if flat else y

  if epilogue and epilogue.other is not None:
    other = lax.transpose(epilogue.other, (out_images, *out_space, out_feature))
    other = other[:, None] if flat else other
    epilogue = dataclasses.replace(epilogue, other=other)
  x = lax.transpose(lhs, there)
  y = dispatch.convolution(
    x[:, None] if flat else x,
    rhs,
    portable,
    epilogue,
    strides=two(params['window_strides'], 1),
    padding=two(map(tuple, params['padding']), (0, 0)),
    lhs_dilation=two(params['lhs_dilation'], 1),
    rhs_dilation=two(params['rhs_dilation'], 1),
  )
  if y is NotImplemented:
    return y
  y = lax.transpose(y[:, 0] if flat else y, tuple(back))
  preferred = params['preferred_element_type']
  return y.astype(dot.result_dtype(preferred, lhs, rhs))


def _not_its_windows(leaf, params) -> lift.Dense | None:
  """Declines convolutions that it is not the kernel of."""
  m = leaf.matrix
  out, feature, *space = params['dimension_numbers'].rhs_spec
  if leaf.stack or leaf.sparse is not None or len(space) > 2:
    return lift.Dense('no kernel for this convolution')
  if params['batch_group_count'] != 1:
    return lift.Dense('a convolution grouped over the batch')
  if params['feature_group_count'] != leaf.feature_groups:
    return lift.Dense('it is packed for another number of groups of features')
  if any(p < 0 for pair in params['padding'] for p in pair):
    return lift.Dense('a convolution that cuts its image')
  rows = tuple(m.order[i] for i in (*space, feature))
  if rows != tuple(range(len(m.rows))) or len(m.columns) != 1:
    return lift.Dense('it is packed in another order than windows')
  return None


# -------------------------------------------------------- with what follows them

_WITH_EPILOGUE = {
  lax.dot_general_p: dot_general,
  lax.conv_general_dilated_p: convolution,
}


@lift.claims(*_BOTH)
def with_epilogues(jaxpr):
  """The products of a body that are computed with what follows them."""
  return {i: _claim(chain) for i, chain in epilogues.find(jaxpr).items()}


def _claim(chain) -> lift.Claim:
  product = chain.equation

  def run(operands, read):
    rule = _WITH_EPILOGUE[product.primitive]
    return rule(*operands, **product.params, epilogue=chain.epilogue(read))

  return lift.Claim(
    product, chain.operands, chain.indices, tuple(chain.reads), run
  )


# ---------------------------------------------------------------------- experts


@lift.rule('ragged_dot_general', PackedArray)
def _(lhs, rhs, group_sizes, **params):
  """By the rule of what it was packed from: there is no kernel."""
  if not isinstance(rhs, PackedArray) or not rhs.format:
    return lift.Dense('no kernel for experts of this kind')
  q = rhs.unpack()
  rule = lift.rule_for('ragged_dot_general', type(q))
  return rule(lhs, q, group_sizes, **params)


# ------------------------------------------------------------------------ gather


@lift.rule(lax.gather_p, PackedArray)
def _(
  operand, indices, *, dimension_numbers, slice_sizes, fill_value, **params
):
  """Rows of an embedding that is also attended: columns of its matrix."""
  if not isinstance(operand, PackedArray):
    return lift.Dense('it is an index')
  m, numbers = operand.matrix, dimension_numbers
  whole = (
    operand.sparse is None
    and not operand.stack
    and len(m.rows) == len(m.columns) == 1
    and not numbers.operand_batching_dims
  )
  axis = m.order.index(1) if whole else None
  rows = (
    whole
    and numbers.start_index_map == (axis,)
    and numbers.collapsed_slice_dims == (axis,)
    and slice_sizes == tuple(1 if i == axis else m.k for i in range(2))
    and numbers.offset_dims == (indices.ndim - 1,)
  )
  if not rows:
    return lift.Dense('a gather of something other than whole rows')
  at = indices[..., 0]
  inside = jnp.clip(at, 0, m.n - 1)
  codes = layout.columns(
    operand.part('payload'),
    packed.LAYOUT[operand.format].name,
    operand.group,
    m.k,
    inside,
  )
  of = lambda p: matrix_lib.by_row(
    p.T[inside][..., None].astype(jnp.float32), operand.group, m.k
  )[..., 0]
  x = packed.numbers(codes, operand.format)
  if operand.zero is not None:
    x = x - of(operand.part('zero'))
  x = (x * of(operand.part('scale'))).astype(operand.dtype)
  if params['mode'] == jax.lax.GatherScatterMode.FILL_OR_DROP:
    fill = jnp.nan if fill_value is None else fill_value
    x = jnp.where((at == inside)[..., None], x, jnp.asarray(fill, x.dtype))
  return x


# ------------------------------------------------------------------------- moves


@lift.rule(lax.transpose_p, *_BOTH)
def _(leaf, *, permutation):
  stack, m = len(leaf.stack), leaf.matrix
  if tuple(permutation[:stack]) != tuple(range(stack)):
    return lift.Dense('a transposition of its stacked axes')
  order = tuple(m.order[i - stack] for i in permutation[stack:])
  return leaf.seen_as(m._replace(order=order))


@lift.rule(lax.convert_element_type_p, *_BOTH)
def _(leaf, *, new_dtype, **_):
  floating = jnp.issubdtype(new_dtype, jnp.floating)
  if not floating or jnp.finfo(new_dtype).nmant < 7:
    return lift.Dense(f'a conversion to {new_dtype}')
  return leaf.seen_as(leaf.matrix, jnp.dtype(new_dtype))


@lift.rule(lax.reshape_p, *_BOTH)
def _(leaf, *sizes, new_sizes, dimensions, **_):
  if dimensions is not None:
    return lift.Dense('a reshape with a permutation')
  return _reshape(leaf, new_sizes)


@lift.rule(lax.squeeze_p, *_BOTH)
def _(leaf, *, dimensions):
  shape = [n for i, n in enumerate(leaf.shape) if i not in dimensions]
  return _reshape(leaf, shape)


@lift.rule(lax.broadcast_in_dim_p, *_BOTH)
def _(leaf, *sizes, shape, **_):
  if math.prod(shape) != leaf.size:
    return lift.Dense('a broadcast')
  return _reshape(leaf, shape)


@lift.rule(lax.slice_p, *_BOTH)
def _(leaf, *, start_indices, limit_indices, strides):
  strides = strides or (1,) * leaf.ndim
  runs = list(zip(start_indices, limit_indices, strides, strict=True))
  sizes = [-(-(stop - start) // step) for start, stop, step in runs]
  return _of_stack(
    leaf, sizes, lambda x, i: lax.slice_in_dim(x, *runs[i], axis=i)
  )


@lift.rule(lax.dynamic_slice_p, *_BOTH)
def _(leaf, *starts, slice_sizes, **_):
  if not isinstance(leaf, _BOTH):
    return lift.Dense('it is an index')
  return _of_stack(
    leaf,
    slice_sizes,
    lambda x, i: lax.dynamic_slice_in_dim(x, starts[i], slice_sizes[i], axis=i),
  )


def _of_stack(leaf, sizes, cut):
  """`cut(part, axis)` of every part, along the axes whose size changes."""
  axes = [i for i, n in enumerate(sizes) if n != leaf.shape[i]]
  if 0 in sizes:
    return lift.Dense('an empty slice')
  if any(i >= len(leaf.stack) for i in axes):
    return lift.Dense('a slice of the matrices it is packed as')
  for i in axes:
    leaf = jax.tree.map(lambda x, i=i: cut(x, i), leaf)
  return leaf


def _restacked(leaf, shape):
  """The leaf with those of the axes of `shape` that hold its matrices as stack."""
  old = leaf.stack
  if shape[: len(old)] == old:
    return leaf
  heads = [shape[:i] for i in range(len(shape) + 1)]
  new = next((h for h in heads if math.prod(h) == math.prod(old)), None)
  if new is None:
    return lift.Dense('a reshape that mixes its stacked axes with others')
  return jax.tree.map(lambda x: x.reshape(*new, *x.shape[len(old) :]), leaf)


def _reshape(leaf, shape):
  """Merges and splits rows with rows, columns with columns, stacks with stacks."""
  leaf = _restacked(leaf, tuple(shape))
  if isinstance(leaf, lift.Dense):
    return leaf
  stack, m = leaf.stack, leaf.matrix
  # The pieces of each entry of rows and columns, and which piece each axis is.
  pieces = {e: None for e in range(len(m.sizes))}
  axes = [None] * (len(shape) - len(stack))
  old, new = m.shape, tuple(shape[len(stack) :])
  for before, after in moves.common_blocks(old, new):
    entries = [m.order[i] for i in before]
    if not entries:  # an axis of size one that was not there
      for j in after:
        axes[j] = ('new', j)
      continue
    rows = {e < len(m.rows) for e in entries}
    run = list(range(entries[0], entries[0] + len(entries)))
    if len(rows) > 1 or entries != run:
      return lift.Dense('a reshape that mixes what it is packed along')
    for e in entries:
      pieces[e] = ()
    pieces[entries[0]] = tuple(new[j] for j in after)
    for j_, j in enumerate(after):
      axes[j] = (entries[0], j_)
  rows, columns, place = [], [], {}
  for e in range(len(m.sizes)):
    out = rows if e < len(m.rows) else columns
    for i, size in enumerate(pieces[e]):
      place[e, i] = (out is columns, len(out))
      out.append(size)
  for j, axis in enumerate(axes):
    if axis == ('new', j):
      place[axis] = (True, len(columns))
      columns.append(1)
  rows, columns = rows or [1], columns or [1]
  order = [place[a] for a in axes]
  order = tuple(i + len(rows) * is_column for is_column, i in order)
  if sorted(order) != list(range(len(rows) + len(columns))):
    return lift.Dense('a reshape to a vector')
  return leaf.seen_as(matrix_lib.Matrix(tuple(rows), tuple(columns), order))
