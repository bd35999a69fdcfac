"""What leaves for the kernels do: gathers of rows, moves on the way to products, claims.

Every rule is a function with a name; `register` puts them in the table of `lift`.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import table_rows
from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.kernels import convolutions
from jaxopt_compress.kernels import dots
from jaxopt_compress.kernels import epilogues
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels import leaves
from jaxopt_compress.kernels import lookups
from jaxopt_compress.kernels import matrix as matrix_lib
from jaxopt_compress.kernels import shared
from jaxopt_compress.kernels.attends import claim
from jaxopt_compress.kernels.leaves import numbers
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.kernels.leaves import portable

_PACKED, _ALL = dots.PACKED, dots.ALL


# ---------------------------------------------------------------------- experts


def ragged_dot(lhs, rhs, group_sizes, **params):
  """By the rule of what it was packed from: there is no kernel."""
  if not isinstance(rhs, _PACKED) or not rhs.plan.format:
    return lift.Dense('no kernel for experts of this kind')
  q = portable.unpack(rhs)
  rule = lift.rule_for('ragged_dot_general', type(q))
  return rule(lhs, q, group_sizes, **params)


# ------------------------------------------------------------------------ gather


@table_rows.in_one_form
def gather(
  operand, indices, *, dimension_numbers, slice_sizes, fill_value, **params
):
  """Rows of an embedding that is also attended: columns of its matrix."""
  if not isinstance(operand, _PACKED):
    return lift.Dense('it is an index')
  if not _gathers_columns(operand, indices, dimension_numbers, slice_sizes):
    return lift.Dense('a gather of something other than whole rows')
  plan, m = operand.plan, operand.plan.matrix
  at = indices[..., 0]
  inside = jnp.clip(at, 0, m.n - 1)
  codes = layout.columns(
    plan_lib.part(operand, 'payload'),
    numbers.LAYOUT[plan.format].name,
    plan.group,
    m.k,
    inside,
  )

  def along(p):
    """[..., k] of scales or zero points."""
    p = p.T[inside][..., None].astype(jnp.float32)
    return matrix_lib.by_row(p, plan.group, m.k)[..., 0]

  x = numbers.of_codes(codes, plan.format)
  if operand.zero is not None:
    x = x - along(plan_lib.part(operand, 'zero'))
  x = (x * along(operand.scale_hat())).astype(plan.dtype)
  if params['mode'] == jax.lax.GatherScatterMode.FILL_OR_DROP:
    fill = jnp.nan if fill_value is None else fill_value
    x = jnp.where((at == inside)[..., None], x, jnp.asarray(fill, x.dtype))
  return x


def _gathers_columns(leaf, indices, numbers, slice_sizes) -> bool:
  """Whether a gather takes whole columns of the one matrix of a leaf in panels."""
  m = leaf.plan.matrix
  one_matrix = (
    isinstance(leaf, leaves.PanelArray)
    and not plan_lib.stack(leaf)
    and len(m.rows) == len(m.columns) == 1
    and not numbers.operand_batching_dims
  )
  if not one_matrix:
    return False
  axis = m.order.index(1)
  return (
    numbers.start_index_map == (axis,)
    and numbers.collapsed_slice_dims == (axis,)
    and slice_sizes == tuple(1 if i == axis else m.k for i in range(2))
    and numbers.offset_dims == (indices.ndim - 1,)
  )


# ------------------------------------------------------------------------- moves


def transpose(leaf, *, permutation):
  stack = len(plan_lib.stack(leaf))
  if tuple(permutation[:stack]) != tuple(range(stack)):
    return lift.Dense('a transposition of its stacked axes')
  matrix = leaf.plan.matrix.transposed([i - stack for i in permutation[stack:]])
  return plan_lib.seen_as(leaf, matrix)


def convert(leaf, *, new_dtype, **_):
  floating = jnp.issubdtype(new_dtype, jnp.floating)
  # Types with fewer bits than bfloat16 would round the codes again.
  if not floating or jnp.finfo(new_dtype).nmant < 7:
    return lift.Dense(f'a conversion to {new_dtype}')
  if isinstance(leaf, leaves.FloatArray) and new_dtype != leaf.dtype:
    return lift.Dense('its floats would be rounded')
  return plan_lib.seen_as(leaf, leaf.plan.matrix, jnp.dtype(new_dtype))


def reshape(leaf, *sizes, new_sizes, dimensions, **_):
  if dimensions is not None:
    return lift.Dense('a reshape with a permutation')
  return _reshaped(leaf, new_sizes)


def squeeze(leaf, *, dimensions):
  shape = [n for i, n in enumerate(leaf.shape) if i not in dimensions]
  return _reshaped(leaf, shape)


def broadcast_in_dim(leaf, *sizes, shape, **_):
  if math.prod(shape) != leaf.size:
    return lift.Dense('a broadcast')
  return _reshaped(leaf, shape)


def _reshaped(leaf, shape):
  """Merges and splits rows with rows, columns with columns, stacks with stacks."""
  leaf = _restacked(leaf, tuple(shape))
  if isinstance(leaf, lift.Dense):
    return leaf
  stack = len(plan_lib.stack(leaf))
  matrix = leaf.plan.matrix.reshaped(tuple(shape[stack:]))
  if isinstance(matrix, str):
    return lift.Dense(matrix)
  return plan_lib.seen_as(leaf, matrix)


def _restacked(leaf, shape):
  """The leaf with those of the axes of `shape` that hold its matrices as stack."""
  old = plan_lib.stack(leaf)
  if shape[: len(old)] == old:
    return leaf
  heads = [shape[:i] for i in range(len(shape) + 1)]
  new = next((h for h in heads if math.prod(h) == math.prod(old)), None)
  if new is None:
    return lift.Dense('a reshape that mixes its stacked axes with others')
  return jax.tree.map(lambda x: x.reshape(*new, *x.shape[len(old) :]), leaf)


def slice_(leaf, *, start_indices, limit_indices, strides):
  strides = strides or (1,) * leaf.ndim
  runs = list(zip(start_indices, limit_indices, strides, strict=True))
  sizes = [-(-(stop - start) // step) for start, stop, step in runs]
  return _of_stack(
    leaf, sizes, lambda x, i: lax.slice_in_dim(x, *runs[i], axis=i)
  )


def dynamic_slice(leaf, *starts, slice_sizes, **_):
  if not isinstance(leaf, _ALL):
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
  if any(i >= len(plan_lib.stack(leaf)) for i in axes):
    return lift.Dense('a slice of the matrices it is packed as')
  for i in axes:
    leaf = jax.tree.map(lambda x, i=i: cut(x, i), leaf)
  return leaf


# -------------------------------------------------------- with what follows them

_PRODUCTS = {
  lax.dot_general_p: dots.dot_general,
  lax.conv_general_dilated_p: convolutions.convolution,
}


def claims(jaxpr, leaves) -> list[lift.Claim]:
  """Attention, one-hot products, those of the same rows, others with what follows.

  Each leaves alone what is taken by those before.
  """
  attention = claim.find(jaxpr, leaves)
  taken = {i for found in attention for i in found.indices}
  looked_up = lookups.find(jaxpr, leaves, taken)
  taken.update(i for found in looked_up for i in found.indices)
  groups = shared.find(jaxpr, leaves, taken)
  taken.update(i for group in groups for i in group.indices)
  chains = epilogues.find(jaxpr, leaves, taken).values()
  return [
    *attention,
    *looked_up,
    *(shared.claim(jaxpr, group) for group in groups),
    *(_with_epilogue(jaxpr, chain) for chain in chains),
  ]


def _with_epilogue(jaxpr, chain):
  product = chain.equation

  def run(read):
    operands = [read(v) for v in chain.operands]
    # One of ours, and all that follows is dense.
    others = [*operands, *(read(v) for v in chain.reads)]
    found = [x for x in others if array.is_compressed(x)]
    if len(found) != 1 or not isinstance(found[0], _PACKED):
      return NotImplemented
    rule = _PRODUCTS[product.primitive]
    y = rule(*operands, **product.params, epilogue=chain.epilogue(read))
    if y is NotImplemented or isinstance(y, lift.Dense):
      return y
    return (y.reshape(out.aval.shape),)

  indices = chain.product, *chain.indices
  reads = *chain.operands, *chain.reads
  (out,) = jaxpr.eqns[chain.last].outvars
  return lift.Claim(product, indices, reads, (out,), run)


# ------------------------------------------------------------------------- table

_RULES = (
  (lax.dot_general_p, dots.dot_general, _ALL),
  (lax.conv_general_dilated_p, convolutions.convolution, _PACKED),
  ('ragged_dot_general', ragged_dot, _PACKED),
  (lax.gather_p, gather, _PACKED),
  (lax.rev_p, convolutions.turned, convolutions.KERNELS),
  (lax.transpose_p, transpose, _ALL),
  (lax.convert_element_type_p, convert, _ALL),
  (lax.reshape_p, reshape, _ALL),
  (lax.squeeze_p, squeeze, _ALL),
  (lax.broadcast_in_dim_p, broadcast_in_dim, _ALL),
  (lax.slice_p, slice_, _ALL),
  (lax.dynamic_slice_p, dynamic_slice, _ALL),
)


def register() -> None:
  """Tells `lift` what these leaves do."""
  for primitive, rule, kinds in _RULES:
    lift.rule(primitive, *kinds)(rule)
  # Kernels for GPUs and TPUs take no epilogues.
  lift.claims(*_PACKED)(claims)
