"""The operand that a weight meets: what becomes codes at run time.

token   one scale for each entry of the free axes     (dynamic)
tensor  one scale                                     (dynamic, or static)
group   one scale for each `group` contracted entries (MX, NVFP4)
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import learned
from jaxopt_compress.quantization import product
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import spec as spec_lib
from jaxopt_compress.quantization import straight


def quantize(
  x: jax.Array, act: spec_lib.Spec, summed: tuple[int, ...], grouped: int
) -> qarray.QArray:
  """Codes of an activation, its range measured now; one code to a byte.

  Args:
    x: [...] floating.
    act: how.
    summed: the axes that the product sums over.
    grouped: the one of them along which groups run.
  """
  if x.size == 0:  # No range of any kind.
    act = spec_lib.Spec(act.format, 'token')
  everything = tuple((i - x.ndim, 0) for i in range(x.ndim))
  blocks = {
    'tensor': everything,
    'group': ((grouped - x.ndim, act.group),),
    'block': ((grouped - x.ndim, _first(act.group)),),
  }.get(act.granularity, tuple((i - x.ndim, 0) for i in summed))
  key = _key_of(x) if act.rounding == 'stochastic' else None
  return qarray.quantize_array(x, act, blocks, packed=0, key=key)


def _key_of(x: jax.Array) -> jax.Array:
  """A key that follows from the values: no state, and the same on a resumed run."""
  total = jnp.sum(x.astype(jnp.float32))
  bits = lax.bitcast_convert_type(total, jnp.uint32)
  return jax.random.fold_in(jax.random.key(0), bits)


def _first(group):
  return group[0] if isinstance(group, tuple) else group


def with_range(
  x: jax.Array, act: spec_lib.Spec, scale: jax.Array, zero: jax.Array | None
) -> qarray.QArray:
  """Codes of an activation in a range that is given.

  Args:
    x: [...] floating.
    act: how; integer or float format.
    scale, zero: the rank of `x`, broadcastable to it. Codes of integers have no
      NaN: where x has one, the scale of it becomes NaN.
  """
  scaled = x.astype(jnp.float32) * (1 / scale)
  if zero is not None:
    scaled = jnp.round(scaled) if act.numbers.integer else scaled
    scaled = scaled + zero.astype(jnp.float32)
  codes = act.numbers.round(scaled)
  if act.numbers.integer:
    one = tuple(i for i in range(x.ndim) if scale.shape[i] == 1)
    lost = jnp.isnan(x).any(axis=one, keepdims=True)
    scale = jnp.where(lost, jnp.nan, scale).astype(scale.dtype)
  return qarray.QArray(
    codes, scale, zero, None, None, act.format, jnp.dtype(x.dtype)
  )


def other_operand(
  x: jax.Array, leaf: qarray.QDotArray, d: product.Dims, side: int
) -> qarray.QArray:
  """The codes of `x`, which meets the weight `leaf` at position `side`.

  Args:
    x: the other operand of a dot.
    leaf: the weight.
    d: which axes meet.
    side: 0 or 1, where the weight is.
  """
  if leaf.act_scale is None:
    return quantize(
      x, leaf.act, d.contracting[1 - side], _grouped(leaf, d, side)
    )

  def place(p):
    return None if p is None else _by_batch(p, x.ndim, d, side)

  return with_range(x, leaf.act, place(leaf.act_scale), place(leaf.act_zero))


def _grouped(leaf, d, side) -> int:
  """The axis of the other operand that meets the grouped one of the weight."""
  # Groups of the weight decide; without any, the longest axis has the groups.
  w = leaf.weight
  blocked = {w.ndim + a for a, _ in w.blocks}
  pairs = sorted(
    zip(d.contracting[side], d.contracting[1 - side], strict=True),
    key=lambda pair: (pair[0] in blocked, w.shape[pair[0]], pair[0]),
  )
  return pairs[-1][1] if pairs else -1


def _by_batch(p, ndim, d, side):
  """A range of each stacked weight, where the other operand has that axis."""
  # Batch axes pair by their position in `d`, not by their place in either operand:
  # the range is transposed to the other operand's order before sizes are filled in.
  shape = [1] * ndim
  for mine, other in zip(d.batch[side], d.batch[1 - side], strict=True):
    shape[other] = p.shape[mine]
  order = sorted(range(len(d.batch[side])), key=lambda i: d.batch[1 - side][i])
  rest = [i for i in range(p.ndim) if i not in d.batch[side]]
  p = lax.transpose(p, (*(d.batch[side][i] for i in order), *rest))
  return p.reshape(shape)


def rounded(
  x: jax.Array, q: qarray.QArray, act: spec_lib.Spec, entries: int
) -> jax.Array:
  """What the codes of `x` stand for, differentiable in `x` and in the range.

  A range measured at run time moves with `x`: the derivative is one. A range that
  is given clips: zero outside, and with respect to the range that of `learned`.

  Args:
    x: the operand.
    q: its codes.
    act: how it was rounded.
    entries: how many of its numbers a token has.
  """
  x_hat = jax.tree.map(lax.stop_gradient, q).materialize()
  if not act.static:
    return straight.as_if(lambda x: x, x_hat, x)
  dense = functools.partial(learned.surrogate, spec=act, entries=entries)
  return straight.as_if(dense, x_hat, x, q.scale, q.zero)


def holds_numbers(fmt: formats.Format, dtype) -> bool:
  """Whether all numbers of a format are numbers of a floating dtype."""
  if not jnp.issubdtype(dtype, jnp.floating):
    return False
  bits = jnp.finfo(dtype).nmant
  return bits >= (7 if fmt.integer or isinstance(fmt, formats.Float) else 23)
