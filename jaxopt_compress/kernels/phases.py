"""Transposed convolutions whose windows lie side by side, as ordinary ones.

    y[P i + p] = w[P - 1 - p] x[i]      so each of P results of an entry has one tap

With the taps as columns of the weight nothing is multiplied by the zeros between the
entries of x. The results of an entry, its phases, are then put where they belong.
"""

import dataclasses
import math

from jax import lax
import jax.numpy as jnp

from jaxopt_compress.kernels import epilogues
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels import leaves
from jaxopt_compress.kernels import matrix as matrix_lib
from jaxopt_compress.kernels.leaves import numbers
from jaxopt_compress.kernels.leaves import panels
from jaxopt_compress.kernels.leaves import plan as plan_lib

# Of fewer entries of x, laying out the kernel takes longer than multiplying zeros.
_LEAST_ENTRIES = 128


def of(leaf, params, images) -> tuple[int, ...] | None:
  """Phases along each axis of space, or None where it stays a transposed convolution.

  Windows may not overlap along axes that have several phases.
  """
  feature = params['dimension_numbers'].lhs_spec[1]
  entries = [n for axis, n in enumerate(images.shape) if axis != feature]
  known = all(isinstance(n, int) for n in entries)
  if not known or math.prod(entries) < _LEAST_ENTRIES:
    return None
  if not isinstance(leaf, leaves.PanelArray) or leaf.global_scale is not None:
    return None
  plan, phases = leaf.plan, params['lhs_dilation']
  if math.prod(phases) == 1 or plan.grouped or plan.feature_groups > 1:
    return None
  steps = *params['window_strides'], *params['rhs_dilation']
  for taps, p, pads in zip(plan.matrix.rows, phases, params['padding']):
    if p > 1 and (taps != p or tuple(pads) != (p - 1, p - 1)):
      return None
  return tuple(phases) if set(steps) == {1} else None


def as_columns(leaf, phases) -> leaves.PanelArray:
  """The kernel with the taps along axes of several phases as columns.

  The payload is laid out anew in each call: see `_LEAST_ENTRIES`.
  """
  plan, m = leaf.plan, leaf.plan.matrix
  name = numbers.LAYOUT[plan.format].name
  codes = layout.from_panels(
    plan_lib.part(leaf, 'payload'), name, plan.group, m.k, m.n
  ).reshape(*m.rows, m.n)
  of_phases = [i for i, p in enumerate(phases) if p > 1]
  others = [i for i in range(len(m.rows)) if i not in of_phases]
  codes = jnp.flip(codes, of_phases)
  codes = jnp.transpose(codes, (*others, *of_phases, len(m.rows)))
  rows = tuple(1 if i in of_phases else n for i, n in enumerate(m.rows))
  n = math.prod(phases) * m.n
  matrix = matrix_lib.Matrix(rows, (n,), m.order)
  codes = codes.reshape(matrix.k, n)
  scale, zero = (
    None if p is None else jnp.tile(p, n // m.n)
    for p in (plan_lib.part(leaf, 'scale'), plan_lib.part(leaf, 'zero'))
  )
  totals = plan_lib.part(leaf, 'totals')
  if totals is not None:
    w = numbers.of_codes(codes, plan.format)
    w = w if zero is None else w - zero.astype(jnp.float32)
    totals = jnp.sum(w * scale.astype(jnp.float32), axis=-2, keepdims=True)
  return panels.lay_out(
    codes,
    plan._replace(matrix=matrix, group=matrix.k),
    scale,
    zero,
    totals,
    plan_lib.part(leaf, 'act_scale'),
    plan_lib.part(leaf, 'act_zero'),
  )


def ordinary(params, phases) -> dict:
  """Parameters of the convolution with such a kernel."""
  padding = [
    tuple(pads) if p == 1 else (0, 0)
    for p, pads in zip(phases, params['padding'], strict=True)
  ]
  ones = (1,) * len(phases)
  return {**params, 'padding': tuple(padding), 'lhs_dilation': ones}


def epilogue_of(epilogue, phases, spec) -> epilogues.Epilogue | None:
  """What follows the results of all phases."""
  if epilogue is None:
    return None

  def of_columns(p):
    return p if p is None or p.size == 1 else jnp.tile(p, math.prod(phases))

  numbers_of = {
    name: of_columns(getattr(epilogue, name))
    for name in ('scale', 'shift', 'gain', 'offset')
  }
  other = epilogue.other
  other = None if other is None else apart(other, phases, spec)
  return dataclasses.replace(epilogue, other=other, **numbers_of)


def together(y, phases, spec):
  """Results whose features are [*phases, n] with phases where they belong."""
  images, feature, *space = spec
  y = lax.transpose(y, (images, *space, feature))
  count, *sizes, n = y.shape
  y = y.reshape(count, *sizes, *phases, n // math.prod(phases))
  rank = len(space)
  pairs = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]
  y = lax.transpose(y, (0, *pairs, 2 * rank + 1))
  sizes = (size * p for size, p in zip(sizes, phases, strict=True))
  y = y.reshape(count, *sizes, y.shape[-1])
  return lax.transpose(y, _inverse((images, *space, feature)))


def apart(y, phases, spec):
  """The inverse of `together`."""
  images, feature, *space = spec
  y = lax.transpose(y, (images, *space, feature))
  count, *sizes, n = y.shape
  pairs = [
    part
    for size, p in zip(sizes, phases, strict=True)
    for part in (size // p, p)
  ]
  y = y.reshape(count, *pairs, n)
  rank = len(space)
  entries = [1 + 2 * i for i in range(rank)]
  y = lax.transpose(y, (0, *entries, *(i + 1 for i in entries), 2 * rank + 1))
  y = y.reshape(*y.shape[: rank + 1], -1)
  return lax.transpose(y, _inverse((images, *space, feature)))


def _inverse(order):
  return tuple(order.index(i) for i in range(len(order)))
