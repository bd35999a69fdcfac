"""What the library is given for a product: operands from a leaf and an epilogue.

    act(x) @ ((w - zero) * scale), finished     x floating, w in panels or streams

The library rounds x itself wherever it can. Numbers of columns that an epilogue
multiplies with go into scales.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import curves
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.kernels.leaves import numbers
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.quantization import activation
from jaxopt_compress.quantization import scales


def of(x, leaf, epilogue, summed, columns, out_dtype):
  """(x, payload, scale, zero, rounding, finish) of a call of the library.

  A payload that is one layer of a stack is a `Layer`.

  Args:
    x: the other operand.
    leaf: for CPUs.
    epilogue: or None.
    summed: axes of x that products sum over.
    columns: the shape of a number for each column, as the call has them.
    out_dtype: of the results.
  """
  x = x if x.dtype in (jnp.float32, jnp.bfloat16) else x.astype(jnp.float32)
  x, rounding = _activations(x, leaf, summed)
  scale, zero = _in_units(leaf)
  factor = _float32(_part(leaf, 'global_scale'))
  if factor is not None and rounding.act == native.Act.FLOAT:
    rounding = dataclasses.replace(rounding, scale=factor)
  elif factor is not None:  # its operand is that of a range
    scale = leaf.scale_hat()
  if epilogue is not None:
    scale, rounding = _rescaled(scale, rounding, epilogue, columns)
  finish = finish_of(epilogue, columns, out_dtype)
  return x, plan_lib.lying(leaf, 'payload'), scale, zero, rounding, finish


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
  factor = of_columns(epilogue.scale, shape)
  totals = rounding.totals
  totals = None if totals is None else totals * factor
  rounding = dataclasses.replace(rounding, totals=totals)
  return scale.astype(jnp.float32) * factor, rounding


def finish_of(epilogue, shape, out_dtype) -> native.Finish:
  """What the library does of an epilogue; `shape` as for `_rescaled`."""
  if epilogue is None:
    return native.Finish()
  shift, other = epilogue.shift, epilogue.other
  return native.Finish(
    bias=None if shift is None else of_columns(shift, shape),
    other=None if other is None else other.astype(out_dtype),
    curve=curves.kernel(epilogue.curve or ''),
    times=epilogue.times,
    floor=-np.inf if epilogue.relu is None else 0.0,
    after=_after(epilogue, shape),
  )


def _after(epilogue, shape):
  """Gain and offset of columns, one below the other; None where both are missing."""
  gain, offset = epilogue.gain, epilogue.offset
  if gain is None and offset is None:
    return None
  gain = np.float32(1) if gain is None else gain
  offset = np.float32(0) if offset is None else offset
  both = of_columns(gain, shape), of_columns(offset, shape)
  return jnp.concatenate(both, axis=-2)


def of_columns(p, shape):
  """A number for each column, or one for all, in a shape of so many entries."""
  return jnp.broadcast_to(p, math.prod(shape)).reshape(shape)


def _in_units(leaf):
  """Scales and zero points as kernels have them, which count in units."""
  plan, scale, zero = leaf.plan, _part(leaf, 'scale'), _part(leaf, 'zero')
  unit = numbers.LAYOUT[plan.format].unit if plan.format else 1.0
  if unit != 1:
    scale = scale.astype(jnp.float32) * np.float32(unit)
    zero = None if zero is None else zero * np.float32(1 / unit)
  return scale, zero


def _part(leaf, name):
  """A part of a leaf, None where its layout has no such part."""
  return plan_lib.part(leaf, name) if name in leaf.axes(leaf.plan) else None


def _activations(x, leaf, summed):
  """(x, its `Rounding`): how the library rounds x, where it can.

  Else x is rounded here to what its codes stand for, and multiplied as it is.
  Products sum over the axes `summed`, the last of which may be in groups.
  """
  act = leaf.plan.act
  if act is None:
    return x, native.Rounding()
  if not suits(act, leaf):
    if act.static:
      q = activation.with_range(
        x,
        act,
        _last(plan_lib.part(leaf, 'act_scale'), x),
        _last(plan_lib.part(leaf, 'act_zero'), x),
      )
    else:
      q = activation.quantize(x, act, summed, summed[-1])
    return q.materialize(), native.Rounding()
  fmt = act.numbers
  rounding = native.Rounding(
    totals=_float32(_part(leaf, 'totals')),
    act=native.Act.DYNAMIC,
    bound=fmt.bound,
    low=fmt.lowest,
    high=fmt.highest,
    symmetric=act.symmetric,
  )
  if act.static:
    given = plan_lib.part(leaf, 'act_scale'), plan_lib.part(leaf, 'act_zero')
  elif act.granularity == 'tensor':
    given = _range_of_all(x, act)
  else:
    return x, rounding
  scale, zero = map(_float32, given)
  return x, dataclasses.replace(
    rounding, act=native.Act.STATIC, scale=scale, zero=zero
  )


def suits(act, leaf) -> bool:
  """Whether the library rounds rows as an operand of a leaf is to be rounded."""
  integer = act.numbers.integer and act.numbers.step == 1
  return (
    integer
    and act.format not in ('ternary',)
    and act.scale == 'float32'
    and act.range == 'absmax'
    and act.rounding == 'nearest'
    and act.granularity in ('token', 'channel', 'tensor')
    # Zero points of fewer bits are not whole numbers.
    and (act.symmetric or act.numbers.bits > 2)
    and numbers.LAYOUT[leaf.plan.format].name != 'nf4'
  )


def rounds_rows(x, leaf) -> bool:
  """Whether all that happens to rows, each alone, happens in the library."""
  if x.dtype not in (jnp.float32, jnp.bfloat16):
    return False
  act = leaf.plan.act
  return act is None or (
    suits(act, leaf) and (act.static or act.granularity != 'tensor')
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
  return scale.reshape(1, 1), None if zero is None else zero.reshape(1, 1)
