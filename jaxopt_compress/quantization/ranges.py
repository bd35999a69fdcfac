"""Ranges of static activations, and the scales that are made from them.

    scale, zero  of a range [low, high] that contains zero

Each has the rank of the weight that the activations meet, and size 1 on all but its
stacked axes. How ranges are found from data is in `calibration.ranges`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.analysis import watch
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import scales
from jaxopt_compress.quantization import schemes
from jaxopt_compress.quantization import spec as spec_lib


def static_leaves(
  rules: Sequence[tuple[str, Any]], params: Any
) -> dict[str, schemes.Scheme]:
  """The schemes with static activations, by the path of their weight."""
  return {
    path: s
    for path, s in schemes.by_leaf(rules, params).items()
    if s is not None and s.act is not None and s.act.static
  }


def placeholders(
  params: Any, rules: Sequence[tuple[str, Any]], uses: dict | None = None
) -> dict[str, tuple[jax.Array, jax.Array | None]]:
  """Ranges of ones, of the shapes and types that `calibrate` gives; may be {}.

  What is built or restored before there is data has these in their place.
  """
  leaves = dict(rules_lib.named_leaves(params))

  def of_ones(path, act):
    leaf = leaves[path]
    _, stacked, _ = uses_lib.axes(path, leaf, uses)
    n = leaf.ndim
    scale = jnp.ones(
      [leaf.shape[a] if a in stacked else 1 for a in range(-n, 0)]
    )
    if act.symmetric:
      return scale, None
    return scale, scales.zero_point(scale, scale, act)

  return {p: of_ones(p, s.act) for p, s in static_leaves(rules, params).items()}


def stack_shape(path, leaf, lead, uses) -> list[int]:
  """The shape of ranges that were observed in stacks of shape `lead`."""
  _, stacked, _ = uses_lib.axes(path, leaf, uses)
  shape = [leaf.shape[a] if a in stacked else 1 for a in range(-leaf.ndim, 0)]
  if not lead:  # slices that are met one by one share a range
    shape = [1] * leaf.ndim
  if [n for n in shape if n > 1] != [n for n in lead if n > 1]:
    raise ValueError(
      f'{path}, shape {leaf.shape}, was observed in stacks of {lead}, which are'
      f' not its stacked axes {stacked}. Calibrate with the uses of the same'
      ' function.'
    )
  return shape


def of_ends(
  low: jax.Array, high: jax.Array, act: spec_lib.Spec
) -> tuple[jax.Array, jax.Array | None]:
  """(scale, zero) of the ranges [low, high], made to contain zero."""
  low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
  half = np.float32(0.5)
  # Halves first: the difference of two large numbers is infinite.
  apart = high * half - low * half
  reach = jnp.maximum(-low, high) if act.symmetric else apart
  scale = scales.stored(reach, act, (), reach.shape).scale.astype(jnp.float32)
  if act.symmetric:
    return scale, None
  return scale, scales.zero_point((high + low) * half, scale, act)


def ends_of(
  scale: jax.Array, zero: jax.Array | None, act: spec_lib.Spec
) -> tuple[jax.Array, jax.Array]:
  """The range [low, high] that a scale and a zero point make."""
  fmt, center = act.numbers, 0.0
  if zero is not None:
    center = ((fmt.highest + fmt.lowest) / 2 - zero.astype(jnp.float32)) * scale
  return center - fmt.bound * scale, center + fmt.bound * scale


def follow(
  ends: tuple[jax.Array, jax.Array], seen: watch.Observed, decay: float
) -> tuple[jax.Array, jax.Array]:
  """Ranges a step later: x <- decay x + (1 - decay) of what the step met.

  Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.1.

  Args:
    ends: (low, high), of the shape `stack_shape`.
    seen: `statistics.minmax('tensor')` of the step. A layer or an expert that met
      nothing, or what is not finite, keeps its range: no later step would mend it.
    decay: how much of the old is left.
  """
  met = jnp.isfinite(seen.state.low) & jnp.isfinite(seen.state.high)

  def moved(old, new):
    new = decay * old + (1 - decay) * jnp.reshape(new, old.shape)
    return jnp.where(jnp.reshape(met, old.shape), new, old)

  low, high = ends
  return moved(low, seen.state.low), moved(high, seen.state.high)
