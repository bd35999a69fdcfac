"""The one place where a product is given to a kernel.

    product(x, leaf) = x @ leaf,  x [..., m, k], leaf [..., k, n]

On CPUs the library of C++ computes it, on GPUs and TPUs what was laid out for them
goes to its kernel; anywhere else, and where the library was not built, the rules of
`QArray` do: the same up to the order of sums. Derivatives are those of the latter.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import lift
from jaxopt_compress.kernels import epilogues
from jaxopt_compress.kernels import packed
from jaxopt_compress.kernels import tiled
from jaxopt_compress.kernels.cpu import conv
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.quantization import activation
from jaxopt_compress.quantization import scales
from jaxopt_compress.quantization import straight


def product(
  x: jax.Array,
  leaf: packed.PackedArray | tiled.TiledArray,
  result: jnp.dtype,
  epilogue: epilogues.Epilogue | None = None,
) -> jax.Array:
  """Rows times matrices laid out for kernels.

  Args:
    x: [stack..., m, k] floating.
    leaf: stands for [stack..., *matrix.shape]; seen as [stack..., k, n].
    result: dtype that the results are for.
    epilogue: what is done with the results.

  Returns:
    [stack..., m, n] float32; bfloat16 if they are for that. NotImplemented for an
    epilogue that is for XLA.
  """
  out_dtype = jnp.bfloat16 if result == jnp.bfloat16 else jnp.float32
  if epilogue is not None and not _is_ours(leaf, epilogue):
    return NotImplemented
  portable = lambda x, leaf: _portable(x, leaf, out_dtype)
  if isinstance(leaf, tiled.TiledArray):
    names = ('tpu',) if leaf.target == 'tpu' else ('cuda', 'rocm')
    multiply = lambda x, leaf, _: leaf.multiply(x).astype(out_dtype)
    suits = leaf.suits(x.shape[-2])
    kernels = dict.fromkeys(names, multiply) if suits else {}
  elif native.available():
    path = leaf.path_for(x.shape[-2])
    kernels = dict(cpu=lambda *args: _kernel(*args, out_dtype, path))
  else:
    kernels = {}
  return _where_there_are(kernels, portable, x, leaf, epilogue)


def _is_ours(leaf, epilogue) -> bool:
  """Whether a kernel does what follows its product."""
  if not isinstance(leaf, packed.PackedArray) or not native.available():
    return False
  return bool(leaf.format) or epilogue.scale is None


def _where_there_are(kernels, portable, x, leaf, epilogue):
  """By the kernel of the platform, if any; with the derivative of the portable."""

  def whole(x, leaf, epilogue):
    y = portable(x, leaf)
    return y if epilogue is None else epilogue(y)

  args = x, leaf, epilogue
  if not kernels or 0 in (*x.shape, *leaf.shape):
    return whole(*args)
  fixed = jax.tree.map(lax.stop_gradient, args)
  out = lax.platform_dependent(*fixed, **kernels, default=whole)
  return straight.as_if(whole, out, *args)


def convolution(
  x: jax.Array,
  leaf: packed.PackedArray,
  portable: Callable[[jax.Array, packed.PackedArray], jax.Array],
  epilogue: epilogues.Epilogue | None = None,
  **geometry,
) -> jax.Array:
  """Images and a packed kernel.

  Args:
    x: [images, height, width, channels] floating.
    leaf: stands for [window..., channels, features].
    portable: the same in XLA.
    epilogue: what is done with the results.
    **geometry: strides, padding and dilations, as for `cpu.conv.Windows`.

  Returns:
    [images, out height, out width, features] float32. NotImplemented for an
    epilogue that is for XLA.
  """
  path = leaf.path_for(x.shape[1] * x.shape[2])
  if epilogue is not None and not _is_ours(leaf, epilogue):
    return NotImplemented
  if leaf.depthwise and (
    epilogue and (epilogue.curve or epilogue.other is not None)
  ):
    first, then = epilogue.split()
    return then(convolution(x, leaf, portable, first, **geometry))

  def kernel(x, leaf, epilogue):
    m = leaf.matrix
    x = x if x.dtype in (jnp.float32, jnp.bfloat16) else x.astype(jnp.float32)
    x, rounding = _activations(x, leaf, (1, 2, 3))
    scale, zero = _in_units(leaf)
    apart = 1 if leaf.depthwise else leaf.feature_groups
    columns = (apart, 1, m.n // apart) if apart > 1 else (1, m.n)
    if epilogue is not None:
      scale, rounding = _rescaled(scale, rounding, epilogue, columns)
    taps = m.rows[:-1] if len(m.rows) == 3 else (1, *m.rows[:-1])
    operands = (
      x,
      leaf.part('payload'),
      scale,
      zero,
      rounding,
      _finish(epilogue, columns, jnp.float32),
    )
    options = dict(windows=conv.Windows(taps, **geometry), path=path)
    if leaf.depthwise:
      return conv.depthwise(*operands, n=m.n, **options)
    return conv.conv(
      *operands,
      format=packed.LAYOUT[leaf.format].name,
      n=m.n // leaf.feature_groups,
      group=leaf.group,
      feature_groups=leaf.feature_groups,
      **options,
    )

  kernels = dict(cpu=kernel) if native.available() else {}
  return _where_there_are(kernels, portable, x, leaf, epilogue)


def _portable(x, leaf, out_dtype):
  """By the rules of the leaf that it was packed from."""
  q = leaf.as_matrices().unpack()
  batch = tuple(range(x.ndim - 2))
  numbers = (((x.ndim - 1,), (q.ndim - 2,)), (batch, batch))
  options = dict(
    dimension_numbers=numbers,
    precision=None,
    preferred_element_type=jnp.dtype(jnp.float32),
  )
  if leaf.format:
    rule = lift.rule_for(lax.dot_general_p, type(q))
    y = rule(x, q, out_sharding=None, **options)
  else:
    y = lax.dot_general(x, q, **options)
  return y.astype(out_dtype)


def _rescaled(scale, rounding, epilogue, shape):
  """(scale, rounding) with the scales of an epilogue in those of the weight.

  Args:
    scale: [..., groups, n], or None.
    rounding: of x, whose `totals` are sums of the weight.
    epilogue: may scale the columns.
    shape: of a number for each column, as the call has them.
  """
  if epilogue.scale is None:
    return scale, rounding
  factor = _of_columns(epilogue.scale, shape)
  totals = rounding.totals
  totals = None if totals is None else totals * factor
  rounding = dataclasses.replace(rounding, totals=totals)
  return scale.astype(jnp.float32) * factor, rounding


def _finish(epilogue, shape, out_dtype) -> native.Finish:
  """What the library does of an epilogue; `shape` as for `_rescaled`."""
  if epilogue is None:
    return native.Finish()
  shift, other = epilogue.shift, epilogue.other
  return native.Finish(
    bias=None if shift is None else _of_columns(shift, shape),
    other=None if other is None else other.astype(out_dtype),
    curve=epilogue.curve or '',
    times=epilogue.times,
    floor=-np.inf if epilogue.relu is None else 0.0,
  )


def _of_columns(p, shape):
  """A number for each column, or one for all, in a shape of so many entries."""
  return jnp.broadcast_to(p, math.prod(shape)).reshape(shape)


def _kernel(x, leaf, epilogue, out_dtype, path):
  """On the library."""
  x = x if x.dtype in (jnp.float32, jnp.bfloat16) else x.astype(jnp.float32)
  x, rounding = _activations(x, leaf, (x.ndim - 1,))
  scale, zero = _in_units(leaf)
  columns = (1, leaf.matrix.n)
  if epilogue is not None:
    scale, rounding = _rescaled(scale, rounding, epilogue, columns)
  numbers = scale, zero, rounding, _finish(epilogue, columns, out_dtype)
  options = dict(
    k=leaf.matrix.k,
    n=leaf.matrix.n,
    group=leaf.group,
    out_dtype=out_dtype,
    path=path,
  )
  payload = leaf.part('payload')
  if leaf.sparse is None:
    name = packed.LAYOUT[leaf.format].name
    return native.matmul(x, payload, *numbers, format=name, **options)
  offsets = leaf.part('offsets')
  return native.sparse_matmul(
    x, payload, offsets, *numbers, how=leaf.sparse, **options
  )


def _in_units(leaf):
  """Scales and zero points as kernels have them, which count in units."""
  scale, zero = leaf.part('scale'), leaf.part('zero')
  unit = packed.LAYOUT[leaf.format].unit if leaf.format else 1.0
  if unit != 1:
    scale = scale.astype(jnp.float32) * np.float32(unit)
    zero = None if zero is None else zero * np.float32(1 / unit)
  return scale, zero


def _activations(x, leaf, summed):
  """(x, its `Rounding`): how the library rounds x, where it can.

  Else x is rounded here to what its codes stand for, and multiplied as it is.
  Products sum over the axes `summed`, the last of which may be in groups.
  """
  act = leaf.act
  if act is None:
    return x, native.Rounding()
  integer = act.numbers.integer and act.numbers.step == 1
  suits = (
    integer
    and act.format not in ('ternary',)
    and act.scale == 'float32'
    and act.range == 'absmax'
    and act.rounding == 'nearest'
    and act.granularity in ('token', 'channel', 'tensor')
    # Zero points of fewer bits are not whole numbers.
    and (act.symmetric or act.numbers.bits > 2)
    and packed.LAYOUT[leaf.format].name != 'nf4'
  )
  if not suits:
    if act.static:
      q = activation.with_range(
        x,
        act,
        _last(leaf.part('act_scale'), x),
        _last(leaf.part('act_zero'), x),
      )
    else:
      q = activation.quantize(x, act, summed, summed[-1])
    return q.materialize(), native.Rounding()
  fmt = act.numbers
  rounding = native.Rounding(
    totals=_float32(leaf.part('totals')),
    act=native.Act.DYNAMIC,
    bound=fmt.bound,
    low=fmt.lowest,
    high=fmt.highest,
    symmetric=act.symmetric,
  )
  if act.static:
    given = leaf.part('act_scale'), leaf.part('act_zero')
  elif act.granularity == 'tensor':
    given = _range_of_all(x, act)
  else:
    return x, rounding
  scale, zero = map(_float32, given)
  return x, dataclasses.replace(
    rounding, act=native.Act.STATIC, scale=scale, zero=zero
  )


def _float32(p):
  return None if p is None else p.astype(jnp.float32)


def _last(p, x):
  return None if p is None else p.reshape((1,) * (x.ndim - p.ndim) + p.shape)


def _range_of_all(x, act):
  """(scale, zero) of one range for all of `x`: [1, 1]."""
  everything = tuple((i - x.ndim, 0) for i in range(x.ndim))
  x = x.astype(jnp.float32)
  reach, center = scales.reach_and_center(x, act, everything)
  scale = scales.stored(reach, act, everything, x.shape).scale
  zero = None if center is None else scales.zero_point(center, scale, act)
  one = lambda p: None if p is None else p.reshape(1, 1)
  return one(scale), one(zero)
