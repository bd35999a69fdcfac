"""The clock of training with quantisation: `jc.fake_quantize`.

    init     ranges that are learned or given, and where they start
    apply    weights become `FakeQuant` leaves: what they will be stored as
    update   ranges that follow what training meets; the step, where it matters

What such a leaf computes, and how it is differentiated, is in `trained.py`.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Any
import warnings
import zlib

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress import modules
from jaxopt_compress.analysis import statistics
from jaxopt_compress.core import array
from jaxopt_compress.core import compression
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import blocks as blocks_lib
from jaxopt_compress.quantization import learned as learned_lib
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import quantize
from jaxopt_compress.quantization import ranges as ranges_lib
from jaxopt_compress.quantization import schemes as schemes_lib
from jaxopt_compress.quantization import spec as spec_lib
from jaxopt_compress.quantization import trained


def fake_quantize(
  rules: Sequence[tuple[str, schemes_lib.Scheme | spec_lib.Spec | str | None]],
  uses: dict | None = None,
  *,
  ranges: dict | None = None,
  begin: int = 0,
  end: int = 0,
  decay: float = 0.99,
  seed: int = 0,
  original_residuals: bool = False,
) -> compression.Compression:
  """Trains weights as the codes that they will be stored as.

  Takes the rules and schemes of `jc.quantize`. Without learned ranges and
  stochastic rounding, `jc.freeze` of what `apply` returns is what `jc.quantize`
  makes of the same parameters; with them it is what was trained last.

  Ranges of activations that follow what training meets ('static ema') need to be
  told: `update` wants `Info.statistics` of the leaves that `observes` names.

  Args:
    rules: ordered `(regex, scheme)`, as for `jc.quantize`. Scales that are learned
      start as their paper says, or, with range='mse', at the least squared error.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
    ranges: {path: (scale, zero)} from `jc.calibrate`, for static activations: kept
      in the state, or, where they are learned or follow, their start.
    begin, end: steps between which results go over from those of the float
      network to those of the quantised one, share by share (Liu and Mattina 2019,
      alpha-blending, https://arxiv.org/abs/1903.01061). Before `end` the frozen
      leaves are not yet what is trained.
    decay: how much of the moving average of a range is left after a step.
    seed: of stochastic rounding.
    original_residuals: whether gradients are those of products of the operands as
      they were before rounding: less work, but not the derivative of what was
      computed. By default it is that, of the rounded operands.

  Raises:
    ValueError: as `jc.quantize`; at `end < begin`; for `original_residuals` with
      ranges that learn from rounded operands, or gradients that are rounded.
  """
  if end and end < begin:
    raise ValueError(f'begin={begin} is after end={end}.')
  rules = rules_lib.pairs(rules)
  if original_residuals:
    _needs_no_rounded(rules)
  clock = _Clock(rules, uses, ranges or {}, begin, end, decay, seed)
  return compression.Compression(
    functools.partial(_init, clock),
    functools.partial(_apply, clock, original_residuals),
    functools.partial(_update, clock),
    functools.partial(_observes, clock),
  )


@dataclasses.dataclass(frozen=True)
class _Clock:
  """What was asked for: the arguments of `fake_quantize`."""

  rules: Sequence[tuple[str, Any]]
  uses: dict | None
  ranges: dict[str, Any]
  begin: int
  end: int
  decay: float
  seed: int

  @property
  def blends(self) -> bool:
    """Whether results go over from the float network's to the quantised one's."""
    return bool(self.begin or self.end)

  def schemes(self, params) -> dict[str, schemes_lib.Scheme | None]:
    return schemes_lib.by_leaf(self.rules, params)

  def range_of(self, path, scheme):
    """(scale, zero) of static activations, as they were calibrated."""
    if path not in self.ranges:
      raise quantize.no_range(path, scheme)
    return self.ranges[path]


# ------------------------------------------------------------------------- init


def _init(clock, params):
  chosen = clock.schemes(params)
  quantize.known_paths('ranges', clock.ranges, chosen)
  leaves = dict(rules_lib.named_leaves(params))
  learned, fixed, ends = {}, {}, {}
  for path, scheme in chosen.items():
    if scheme is None:
      continue
    start = _start(clock, path, leaves[path], scheme)
    if start:
      learned[path] = compression.Learned(start)
    if _is_fixed(scheme):
      fixed[path] = clock.range_of(path, scheme)
      if scheme.act.learn == 'ema':
        ends[path] = ranges_lib.ends_of(*fixed[path], scheme.act)
  state = {'learned': learned, 'ranges': fixed, 'ends': ends}
  state = {name: found for name, found in state.items() if found}
  if clock.blends or any(_is_stochastic(s) for s in chosen.values()):
    state['step'] = jnp.zeros((), jnp.int32)
  return state or ()


def _start(clock, path, x, scheme) -> dict[str, dict[str, jax.Array]]:
  """Where the ranges of one weight that are learned start; {} if there are none."""
  start = {}
  if scheme.weight.learn:
    start['weight'] = _first_range(path, x, scheme.weight, clock.uses)
  if scheme.act is not None and scheme.act.learn in ('lsq', 'pact'):
    scale, zero = clock.range_of(path, scheme)
    start['act'] = {'scale': scale}
    if zero is not None and scheme.act.learn == 'lsq':
      start['act']['zero'] = zero.astype(jnp.float32)
  return start


def _first_range(path, x, spec, uses) -> dict[str, jax.Array]:
  """The first range of a weight: its paper's, or that of least squared error."""
  blocks, _, _ = quantize.layout(path, x, spec, uses)
  w = array.materialize(x)
  first = learned_lib.first_range(w, spec, blocks)
  if spec.range != 'mse':
    return first
  q = quantize.quantize_leaf(path, w, schemes_lib.Scheme(spec), uses)
  found = q.scale.astype(jnp.float32)
  # A block of zeros has no scale of least error.
  scale = jnp.where(found > learned_lib.LEAST, found, first['scale'])
  zero = {} if q.zero is None else {'zero': q.zero.astype(jnp.float32)}
  return {**first, 'scale': scale, **zero}


# ------------------------------------------------------------------------ apply


def _apply(clock, original_residuals, params, state):
  chosen = clock.schemes(params)
  state = state or {}

  def as_trained(path, x):
    scheme = chosen[path]
    if scheme is None:
      return x
    if hasattr(x, 'mask') and not scheme.weight.keeps_zeros:
      warnings.warn(quantize.lost_zeros(path, scheme.weight), stacklevel=2)
    learned = state.get('learned', {})
    mine = learned[path].value if path in learned else {}
    frozen, value = _frozen_weight(clock, path, x, scheme, mine, state)
    act = mine.get('act')
    if scheme.act is not None:
      given = state['ranges'][path] if _is_fixed(scheme) else (None, None)
      frozen = _with_act(frozen, scheme, act, given)
    share = None
    if clock.blends:
      share = _share(clock, state['step'], x, path)
    return trained.FakeQuant(
      value, frozen, act, share, scheme.grad, original_residuals
    )

  return modules.dress(rules_lib.map_named(as_trained, params), params)


def _frozen_weight(clock, path, x, scheme, learned, state):
  """A weight as it is stored, and what is differentiated in its place."""
  if 'weight' in learned:
    quantise, value = _in_learned_range(
      path, x, scheme.weight, learned['weight'], clock.uses
    )
  else:
    key = None
    if _is_stochastic(scheme):
      key = jax.random.fold_in(jax.random.key(clock.seed), state['step'])
      # Paths are hashed by their letters: Python's own hash differs between runs.
      key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    weight = dataclasses.replace(scheme, act=None, grad=None)
    value = x

    def quantise(w):
      return quantize.quantize_leaf(path, w, weight, clock.uses, key=key)

  # The straight-through derivative goes around the rounding, not through it.
  fixed = jax.tree.map(lax.stop_gradient, x)
  w = jnp.asarray(array.materialize(fixed))
  quantize.check_values(path, w)
  return _apart(quantise, w), value


def _with_act(weight, scheme, learned, given) -> qarray.QDotArray:
  """A stored weight that rounds activations: in its range, or as it meets them."""
  scale, zero = given
  if learned is not None:
    scales, stored_zero = learned_lib.stored(learned, scheme.act)
    scale = scales.scale.astype(jnp.float32)
    zero = zero if stored_zero is None else stored_zero
  return qarray.QDotArray(weight, scale, zero, scheme.act)


def _share(clock, step, x, path):
  """1 on all axes but the stacked ones, so that a scan cuts it."""
  steps = max(clock.end - clock.begin, 1)
  share = jnp.clip((step - clock.begin + 1) / steps, 0.0, 1.0)
  if not clock.end:
    share = (step >= clock.begin).astype(jnp.float32)
  per_tensor = spec_lib.Spec('int8', 'tensor')
  _, _, stacked = quantize.layout(path, x, per_tensor, clock.uses)
  shape = [x.shape[a] if a in stacked else 1 for a in range(-x.ndim, 0)]
  return jnp.full(shape, share, jnp.float32)


def _apart(quantise, w):
  """`quantise(w)`, kept by XLA from fusing with what uses it.

  What follows is then the same program as with stored weights, and so are its
  results, to the bit: a fusion of its own would sum in another order. On CPU,
  XLA drops barriers before it fuses; a branch it keeps. The backward pass reads the
  codes that come out of it, too, instead of rounding all weights again.
  """
  return lax.platform_dependent(
    w,
    cpu=functools.partial(_branch, quantise),
    default=lambda w: lax.optimization_barrier(quantise(w)),
  )


def _branch(quantise, w):
  """`quantise(w)` where the first of `w` is finite, as it is in all that trains."""
  # An array that is cut along explicit axes of a mesh cannot be flattened to its
  # first entry; its largest serves as well.
  cut = any(a is not None for a in jax.typeof(w).sharding.spec)
  first = jnp.max(w) if cut else w.ravel()[0]

  def spoil(w):
    return quantise(jnp.full_like(w, first))

  return lax.cond(jnp.isfinite(first), quantise, spoil, w)


# ----------------------------------------------------------------------- update


def _update(clock, state, params, info):
  changed = {}
  learned = state['learned'] if 'learned' in state else {}
  chosen = clock.schemes(params) if learned else {}
  for path, x in rules_lib.named_leaves(params):
    if path in learned and 'weight' in learned[path].value:
      weight = learned[path].value['weight']
      _check_range(path, x, chosen[path].weight, weight, clock.uses)
  if 'step' in state:
    changed['step'] = jnp.asarray(info.step, jnp.int32)
  if 'ends' in state:
    changed |= _followed(clock, state, params, info.statistics)
  return {**state, **changed} if changed else state


def _followed(clock, state, params, stats):
  """The ranges that follow what training meets, after one step."""
  chosen = clock.schemes(params)
  leaves = dict(rules_lib.named_leaves(params))
  ends, found = {}, dict(state['ranges'])
  for path, old in state['ends'].items():
    if path not in (stats or {}):
      raise ValueError(
        f'The range of what {path} meets follows a moving average, and there are'
        ' no statistics of this step. Compute it with jc.observe(apply,'
        ' comp.observes(params)) and pass jc.Info(step, grads, statistics).'
      )
    seen = stats[path]
    lead = ranges_lib.stack_shape(
      path, leaves[path], seen.count.shape, clock.uses
    )
    if tuple(lead) != old[0].shape:
      raise ValueError(
        f'{path}, shape {leaves[path].shape}, was calibrated in stacks of'
        f' {old[0].shape} and met data in stacks of {tuple(lead)}. Calibrate the'
        ' function that is trained, on parameters of these shapes.'
      )
    ends[path] = ranges_lib.follow(old, seen, clock.decay)
    found[path] = ranges_lib.of_ends(*ends[path], chosen[path].act)
  return {'ends': ends, 'ranges': found}


def _observes(clock, params):
  return {
    re.escape(path): statistics.minmax('tensor')
    for path, scheme in clock.schemes(params).items()
    if _is_fixed(scheme) and scheme.act.learn == 'ema'
  }


# ---------------------------------------------------------------------- schemes


def _needs_no_rounded(rules):
  """Raises for rules whose backward pass is that of rounded operands."""
  for regex, scheme in rules:
    scheme = schemes_lib.scheme(scheme)
    if scheme is None:
      continue
    learn = [s.learn for s in (scheme.weight, scheme.act) if s is not None]
    if scheme.grad is not None or {'lsq', 'pact'} & set(learn):
      raise ValueError(
        f'original_residuals=True, and {regex!r} has {scheme.describe()!r}: learned'
        ' ranges and rounded gradients are those of the rounded operands. Leave it'
        ' out, or those words of the scheme.'
      )


def _is_fixed(scheme) -> bool:
  """Whether activations have a range that gradients leave alone."""
  act = None if scheme is None else scheme.act
  return act is not None and act.static and act.learn in ('', 'ema')


def _is_stochastic(scheme) -> bool:
  return scheme is not None and scheme.weight.rounding == 'stochastic'


def _check_range(path, x, spec, learned, uses):
  """Raises unless a learned range has the shape that those of `x` have."""
  blocks, _, _ = quantize.layout(path, x, spec, uses)
  first = functools.partial(learned_lib.first_range, spec=spec, blocks=blocks)
  wanted = jax.eval_shape(first, array.materialize(x))['scale'].shape
  if learned['scale'].shape != wanted:
    raise ValueError(
      f'{path}, shape {x.shape}, has ranges of shape {wanted}, and its learned'
      f' ones have {learned["scale"].shape}: the state is that of other'
      ' parameters. Call init on these.'
    )


def _in_learned_range(path, x, spec, learned, uses):
  """How a weight is stored in a learned range, and what is differentiated."""
  _check_range(path, x, spec, learned, uses)
  blocks, axis, _ = quantize.layout(path, x, spec, uses)
  scales, zero = learned_lib.stored(
    jax.tree.map(lax.stop_gradient, learned), spec
  )

  def quantise(w):
    return qarray.with_scales(
      w.astype(jnp.float32),
      jnp.dtype(w.dtype),
      spec,
      blocks,
      axis,
      scales,
      zero,
    )

  inner = blocks_lib.inner_sizes(x.shape, blocks)
  value = learned_lib.Ranged(
    x, learned['scale'], learned.get('zero'), spec, inner
  )
  return quantise, value
