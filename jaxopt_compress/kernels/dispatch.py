"""The one place where a product is given to a kernel.

    product(x, leaf) = x @ leaf,  x [..., m, k], leaf [..., k, n]
    products(x, leaves, norm) = norm(x) @ leaf  of each

On CPUs the library of C++ computes it, on GPUs and TPUs what was laid out for them
goes to its kernel; anywhere else, and where the library was not built, the rules of
`QArray` do: the same up to the order of sums. Derivatives are those of the latter.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import lift
from jaxopt_compress.kernels import epilogues
from jaxopt_compress.kernels import leaves
from jaxopt_compress.kernels import norms
from jaxopt_compress.kernels.cpu import conv
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.kernels.leaves import numbers
from jaxopt_compress.kernels.leaves import plan as plan_lib
from jaxopt_compress.kernels.leaves import portable
from jaxopt_compress.quantization import activation
from jaxopt_compress.quantization import scales
from jaxopt_compress.quantization import straight


def product(
  x: jax.Array,
  leaf: leaves.PackedArray | leaves.TiledArray,
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
  kernels = {}
  if isinstance(leaf, leaves.TiledArray):
    names = ('tpu',) if leaf.plan.target == 'tpu' else ('cuda', 'rocm')
    if leaf.suits(x.shape[-2]):
      tiled = functools.partial(_tiled, out_dtype=out_dtype)
      kernels = dict.fromkeys(names, tiled)
  elif native.available():
    path = leaf.plan.path_for(x.shape[-2])
    kernels['cpu'] = functools.partial(_matmul, out_dtype=out_dtype, path=path)
  in_xla = functools.partial(_in_xla, out_dtype=out_dtype)
  return _where_there_are(kernels, in_xla, x, leaf, epilogue)


def products(
  x: jax.Array,
  weights: Sequence[leaves.PackedArray | leaves.TiledArray],
  results: Sequence[jnp.dtype],
  epilogue_of: Sequence[epilogues.Epilogue | None],
  norm: norms.Norm | None = None,
  keep: bool = False,
) -> tuple[jax.Array, ...]:
  """What several products with the same rows give: `norm(x) @ w` for each weight.

  Args:
    x: [stack..., m, k] floating.
    weights: each as for `product`, with k rows.
    results: for each weight, the dtype that its results are for.
    epilogue_of: for each weight, what is done with its results, or None.
    norm: of the rows of x, or None.
    keep: whether the norm of x is wanted, too.

  Returns:
    [stack..., m, n] for each weight, float32, or bfloat16 if they are for that; and
    with `keep` the rows that were multiplied: [stack..., m, k] of the dtype of x.
  """
  rows = x if norm is None else norm(x)
  out = []
  for leaf, result, epilogue in zip(weights, results, epilogue_of, strict=True):
    y = product(rows, leaf, result, epilogue)
    # An epilogue that is for XLA.
    y = epilogue(product(rows, leaf, result)) if y is NotImplemented else y
    out.append(y)
  return (*out, rows) if keep else tuple(out)


def _is_ours(leaf, epilogue) -> bool:
  """Whether a kernel does what follows its product."""
  if not isinstance(leaf, leaves.PackedArray) or not native.available():
    return False
  # Weights of floats have no scales that one of the epilogue could be taken into.
  return bool(leaf.plan.format) or epilogue.scale is None


def _where_there_are(kernels, in_xla, x, leaf, epilogue):
  """By the kernel of the platform, if any; with the derivative of `in_xla`."""

  def whole(x, leaf, epilogue):
    y = in_xla(x, leaf)
    return y if epilogue is None else epilogue(y)

  args = x, leaf, epilogue
  if not kernels or 0 in (*x.shape, *leaf.shape):
    return whole(*args)
  fixed = jax.tree.map(lax.stop_gradient, args)
  out = lax.platform_dependent(*fixed, **kernels, default=whole)
  return straight.as_if(whole, out, *args)


def convolution(
  x: jax.Array,
  leaf: leaves.PanelArray | leaves.QuadArray,
  in_xla: Callable[[jax.Array, Any], jax.Array],
  epilogue: epilogues.Epilogue | None = None,
  **geometry,
) -> jax.Array:
  """Images and a packed kernel.

  Args:
    x: [images, height, width, channels] floating.
    leaf: stands for [window..., channels, features].
    in_xla: the same of (x, leaf) in XLA.
    epilogue: what is done with the results.
    **geometry: strides, padding and dilations, as for `cpu.conv.Windows`.

  Returns:
    [images, out height, out width, features] float32. NotImplemented for an
    epilogue that is for XLA.
  """
  if epilogue is not None and not _is_ours(leaf, epilogue):
    return NotImplemented
  apart = isinstance(leaf, leaves.QuadArray)
  if apart and epilogue and (epilogue.curve or epilogue.other is not None):
    first, then = epilogue.split()
    return then(convolution(x, leaf, in_xla, first, **geometry))
  kernels = {}
  if native.available():
    rows = leaf.plan.matrix.rows
    # The last of the rows is the channel; an image of one axis has height one.
    taps = rows[:-1] if len(rows) == 3 else (1, *rows[:-1])
    kernels['cpu'] = functools.partial(
      _depthwise if apart else _conv,
      windows=conv.Windows(taps, **geometry),
      path=leaf.plan.path_for(x.shape[1] * x.shape[2]),
    )
  return _where_there_are(kernels, in_xla, x, leaf, epilogue)


def _conv(x, leaf, epilogue, **how):
  """A convolution of a leaf in panels, on the library."""
  plan = leaf.plan
  groups, n = plan.feature_groups, plan.matrix.n // plan.feature_groups
  columns = (groups, 1, n) if groups > 1 else (1, n)
  return conv.conv(
    *_operands(x, leaf, epilogue, (1, 2, 3), columns, jnp.float32),
    format=numbers.LAYOUT[plan.format].name,
    n=n,
    group=plan.group,
    feature_groups=groups,
    **how,
  )


def _depthwise(x, leaf, epilogue, **how):
  """A convolution that keeps channels apart, on the library."""
  n = leaf.plan.matrix.n
  operands = _operands(x, leaf, epilogue, (1, 2, 3), (1, n), jnp.float32)
  return conv.depthwise(*operands, n=n, **how)


def _matmul(x, leaf, epilogue, *, out_dtype, path):
  """A product on the library."""
  plan, n = leaf.plan, leaf.plan.matrix.n
  x, payload, *rest = _operands(
    x, leaf, epilogue, (x.ndim - 1,), (1, n), out_dtype
  )
  how = dict(
    k=plan.matrix.k, n=n, group=plan.group, out_dtype=out_dtype, path=path
  )
  if isinstance(leaf, leaves.StreamArray):
    offsets = plan_lib.part(leaf, 'offsets')
    return native.sparse_matmul(
      x, payload, offsets, *rest, how=plan.sparse, **how
    )
  name = numbers.LAYOUT[plan.format].name
  return native.matmul(x, payload, *rest, format=name, **how)


def _tiled(x, leaf, epilogue, *, out_dtype):
  """On a kernel for GPUs or TPUs, which takes no epilogue."""
  del epilogue
  return leaf.multiply(x).astype(out_dtype)


def _in_xla(x, leaf, *, out_dtype):
  """By the rules of the leaf that it was packed from."""
  q = portable.unpack(plan_lib.as_matrices(leaf))
  batch = tuple(range(x.ndim - 2))
  options = dict(
    dimension_numbers=(((x.ndim - 1,), (q.ndim - 2,)), (batch, batch)),
    precision=None,
    preferred_element_type=jnp.dtype(jnp.float32),
  )
  if leaf.plan.format:
    rule = lift.rule_for(lax.dot_general_p, type(q))
    y = rule(x, q, out_sharding=None, **options)
  else:
    y = lax.dot_general(x, q, **options)
  return y.astype(out_dtype)


# ------------------------------------------------------ what the library is given


def _operands(x, leaf, epilogue, summed, columns, out_dtype):
  """(x, payload, scale, zero, rounding, finish) of a call of the library.

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
  finish = _finish(epilogue, columns, out_dtype)
  return x, plan_lib.part(leaf, 'payload'), scale, zero, rounding, finish


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
    and numbers.LAYOUT[leaf.plan.format].name != 'nf4'
  )
  if not suits:
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
