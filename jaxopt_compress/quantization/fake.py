"""Training with quantisation: the forward pass is the frozen one, to the bit.

    forward   y = op(quantize(w), x)            what the stored leaf computes
    backward  dy = d op(w_hat, x_hat), with  d w_hat / d w = 1,  d x_hat / d x = 1

A `FakeQuant` carries the float weight and the leaf that it would be stored as.
Every operation runs on the stored leaf, by that leaf's own rule, so that there is
one definition of what a quantised model computes; only the derivative is that of
the straight-through estimator (Bengio et al. 2013,
https://arxiv.org/abs/1308.3432; Jacob et al. 2018,
https://arxiv.org/abs/1712.05877), or that of learned ranges (`learned.py`), or is
itself computed on codes (`backward.py`).
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
import re
from typing import Any
import zlib

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import statistics
from jaxopt_compress.core import array
from jaxopt_compress.core import compression
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import backward
from jaxopt_compress.quantization import blocks as blocks_lib
from jaxopt_compress.quantization import conv  # noqa: F401  (its products)
from jaxopt_compress.quantization import dot
from jaxopt_compress.quantization import learned as learned_lib
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import ragged  # noqa: F401
from jaxopt_compress.quantization import ranges as ranges_lib
from jaxopt_compress.quantization import schemes
from jaxopt_compress.quantization import spec as spec_lib
from jaxopt_compress.quantization import straight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class FakeQuant(array.CompressedArray):
  """A float weight that computes as the codes it will be stored as.

  Attributes:
    value: the float weight, or a leaf that stands for it (a mask, say; its
      rounding in a learned range): what is differentiated.
    frozen: its `QArray` or `QDotArray`: what is computed.
    act: None; or the learned {'scale', 'zero'} of static activations, as floats,
      shaped like those of `frozen`.
    share: None, for all; or how much of every result is the quantised one, 1 on
      all but stacked axes.
    grad: how gradients are rounded in the backward pass, or None.
    unrounded: whether the backward pass multiplies operands as they were before
      rounding.
  """

  value: Any
  frozen: Any
  act: dict[str, jax.Array] | None = None
  share: jax.Array | None = None
  grad: spec_lib.Spec | None = dataclasses.field(
    default=None, metadata={'static': True}
  )
  unrounded: bool = dataclasses.field(default=False, metadata={'static': True})

  shape = property(lambda self: self.frozen.shape)
  dtype = property(lambda self: self.frozen.dtype)

  def materialize(self):
    latent = array.materialize(self.value)
    return self.mixed(
      lambda: _as_trained(latent, self.frozen), lambda: _float(self.value)
    )

  def mixed(self, quantised, dense):
    """The share of `quantised()`, and for the rest `dense()`."""
    if self.share is None:
      return quantised()
    share = jnp.max(self.share)

    def blend():
      mix = lambda q, d: (share * q + (1 - share) * d).astype(q.dtype)
      return jax.tree.map(mix, quantised(), dense())

    partly = lambda: lax.cond(share <= 0, dense, blend)
    return lax.cond(share >= 1, quantised, partly)

  def freeze(self):
    return self.frozen

  def can_cut(self, axis, size):
    return self.frozen.can_cut(axis, size)

  def describe(self):
    return f'fake {self.frozen.describe()}'


def _float(value) -> jax.Array:
  """The weight as it is before any rounding."""
  ranged = isinstance(value, learned_lib.Ranged)
  return array.materialize(value.value if ranged else value)


def _as_trained(w: jax.Array, frozen: array.CompressedArray) -> jax.Array:
  """The meaning of `frozen`, with the derivative of `w`."""
  stored = jax.tree.map(lax.stop_gradient, frozen).materialize()
  return straight.as_if(lambda w: w, stored, w)


def _register_product(name, how):
  """Forward by the stored leaf's rule, derivative of the dense product."""

  @lift.rule(name, FakeQuant)
  def _(*operands, **params):
    side = [isinstance(x, FakeQuant) for x in operands].index(True)
    leaf = operands[side]
    put = lambda w, xs: [*xs[:side], w, *xs[side:]]
    others = [x for i, x in enumerate(operands) if i != side]
    rule = lift.rule_for(name, type(leaf.frozen))
    fixed = jax.tree.map(lax.stop_gradient, leaf.frozen)
    out = rule(*put(fixed, lax.stop_gradient(others)), **params)
    if isinstance(out, lift.Dense):
      return out
    bind = functools.partial(how.bind, **params)

    def dense(w, act, frozen, *others):
      if leaf.unrounded:
        return bind(*put(w, others))
      values = put(_as_trained(w, frozen), others)
      product = bind
      if isinstance(frozen, qarray.QDotArray):
        ranged = frozen
        if act is not None:
          zero = act.get('zero', frozen.act_zero)
          ranged = dataclasses.replace(
            frozen, act_scale=act['scale'], act_zero=zero
          )
        values = how.round_other(values, side, ranged, params)
        if leaf.grad is not None:
          at = 1 - side if how.at is None else how.at
          product = backward.product(bind, at, side, frozen.act, leaf.grad)
      return product(*values)

    latent = array.materialize(leaf.value)
    return leaf.mixed(
      lambda: straight.as_if(dense, out, latent, leaf.act, fixed, *others),
      lambda: bind(*put(_float(leaf.value), others)).astype(out.dtype),
    )


def _register_move(primitive):
  """Moves the float weight and its stored form alike."""

  @lift.rule(primitive, FakeQuant)
  def _(leaf, *rest, **params):
    if not isinstance(leaf, FakeQuant):
      return lift.Dense('it is an index')
    rule = lift.rule_for(primitive, type(leaf.frozen))
    frozen = rule(leaf.frozen, *rest, **params)
    if isinstance(frozen, lift.Dense):
      return frozen
    value = primitive.bind(array.materialize(leaf.value), *rest, **params)
    return moves.each(primitive, functools.partial(_moved, leaf), value, frozen)


def _moved(leaf, value, frozen):
  """The leaf again; what it has one of for each layer keeps to its rank."""
  one = lambda p: p.reshape((1,) * frozen.ndim) if p.size == 1 else p
  act, share = jax.tree.map(one, (leaf.act, leaf.share))
  return dataclasses.replace(
    leaf, value=value, frozen=frozen, act=act, share=share
  )


def _register_gather():
  @lift.rule(lax.gather_p, FakeQuant)
  def _(operand, indices, **params):
    if not isinstance(operand, FakeQuant):
      return lift.Dense('it is an index')
    rule = lift.rule_for(lax.gather_p, type(operand.frozen))
    out = rule(operand.frozen, indices, **params)
    if isinstance(out, lift.Dense):
      return out
    value = array.materialize(operand.value)
    dense = lambda w, indices: lax.gather_p.bind(w, indices, **params)
    return operand.mixed(
      lambda: straight.as_if(dense, out, value, indices),
      lambda: dense(_float(operand.value), indices),
    )


for _name, _how in dot.PRODUCTS.items():
  _register_product(_name, _how)
for _primitive in moves.PRIMITIVES:
  _register_move(_primitive)
_register_gather()


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
  # Which is not to be had of what is cut along explicit axes of a mesh.
  cut = any(a is not None for a in jax.typeof(w).sharding.spec)
  first = jnp.max(w) if cut else w.ravel()[0]
  spoil = lambda w: quantise(jnp.full_like(w, first))
  return lax.cond(jnp.isfinite(first), quantise, spoil, w)


def fake_quantize(
  rules: Sequence[tuple[str, schemes.Scheme | spec_lib.Spec | str | None]],
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
  if original_residuals:
    _needs_no_rounded(rules)
  ranges = ranges or {}

  def init(params):
    chosen = schemes.by_leaf(rules, params)
    schemes.known_paths('ranges', ranges, chosen)
    leaves = dict(rules_lib.named_leaves(params))
    found = {}
    for path, scheme in chosen.items():
      start = {} if scheme is None else _start(path, leaves[path], scheme)
      if start:
        found[path] = compression.Learned(start)
    state = {'learned': found} if found else {}
    fixed = {
      path: _range_of(path, scheme)
      for path, scheme in chosen.items()
      if _is_fixed(scheme)
    }
    if fixed:
      state['ranges'] = fixed
    ends = {
      path: ranges_lib.ends_of(*fixed[path], chosen[path].act)
      for path in fixed
      if chosen[path].act.learn == 'ema'
    }
    if ends:
      state['ends'] = ends
    if begin or end or any(_is_stochastic(s) for s in chosen.values()):
      state['step'] = jnp.zeros((), jnp.int32)
    return state or ()

  def _start(path, x, scheme):
    start = {}
    if scheme.weight.learn:
      blocks, _, _ = schemes.layout(path, x, scheme.weight, uses)
      w = array.materialize(x)
      start['weight'] = learned_lib.first_range(w, scheme.weight, blocks)
      if scheme.weight.range == 'mse':
        q = schemes.quantize_leaf(path, w, schemes.Scheme(scheme.weight), uses)
        found = q.scale.astype(jnp.float32)
        first = start['weight']['scale']
        start['weight']['scale'] = jnp.where(
          found > learned_lib.LEAST, found, first
        )
        if q.zero is not None:
          start['weight']['zero'] = q.zero.astype(jnp.float32)
    if scheme.act is not None and scheme.act.learn in ('lsq', 'pact'):
      scale, zero = _range_of(path, scheme)
      start['act'] = {'scale': scale}
      if zero is not None and scheme.act.learn == 'lsq':
        start['act']['zero'] = zero.astype(jnp.float32)
    return start

  def _range_of(path, scheme):
    if path not in ranges:
      raise schemes.no_range(path, scheme)
    return ranges[path]

  def apply(params, state):
    chosen = schemes.by_leaf(rules, params)
    state = state or {}
    learned = state.get('learned', {})

    def one(path, x):
      scheme = chosen[path]
      if scheme is None:
        return x
      mine = learned[path].value if path in learned else {}
      # The straight-through derivative goes around the rounding, not through.
      fixed = jax.tree.map(lax.stop_gradient, x)
      key = None
      if _is_stochastic(scheme):
        key = jax.random.fold_in(jax.random.key(seed), state['step'])
        key = jax.random.fold_in(key, zlib.crc32(path.encode()))
      if 'weight' in mine:
        quantise, value = _in_range(path, x, scheme, mine['weight'], uses)
      else:
        weight = dataclasses.replace(scheme, act=None, grad=None)
        quantise = lambda w: schemes.quantize_leaf(
          path, w, weight, uses, key=key
        )
        value = x
      w = jnp.asarray(array.materialize(fixed))
      schemes.check_values(path, w)
      frozen, act = _apart(quantise, w), mine.get('act')
      if scheme.act is not None:
        scale, zero = None, None
        if _is_fixed(scheme):
          scale, zero = state['ranges'][path]
        if act is not None:
          s, z = learned_lib.stored(act, scheme.act)
          scale, zero = s.scale.astype(jnp.float32), zero if z is None else z
        frozen = qarray.QDotArray(frozen, scale, zero, scheme.act)
      share = None
      if 'step' in state and (begin or end):
        share = _share(state['step'], x, uses, path)
      return FakeQuant(
        value, frozen, act, share, scheme.grad, original_residuals
      )

    return rules_lib.map_named(one, params)

  def _share(step, x, uses, path):
    """1 on all axes but the stacked ones, so that a scan cuts it."""
    steps = max(end - begin, 1)
    share = jnp.clip((step - begin + 1) / steps, 0.0, 1.0)
    if not end:
      share = (step >= begin).astype(jnp.float32)
    _, _, stacked = schemes.layout(
      path, x, spec_lib.Spec('int8', 'tensor'), uses
    )
    shape = [x.shape[a] if a in stacked else 1 for a in range(-x.ndim, 0)]
    return jnp.full(shape, share, jnp.float32)

  def update(state, params, info):
    changed = {}
    if 'step' in state:
      changed['step'] = jnp.asarray(info.step, jnp.int32)
    if 'ends' in state:
      changed |= _followed(state, params, info.statistics)
    return {**state, **changed} if changed else state

  def _followed(state, params, stats):
    chosen, leaves = (
      dict(x)
      for x in (schemes.by_leaf(rules, params), rules_lib.named_leaves(params))
    )
    ends, found = {}, dict(state['ranges'])
    for path, old in state['ends'].items():
      if path not in (stats or {}):
        raise ValueError(
          f'The range of what {path} meets follows a moving average, and there are'
          ' no statistics of this step. Compute it with jc.observe(apply,'
          ' comp.observes(params)) and pass jc.Info(step, grads, statistics).'
        )
      seen = stats[path]
      lead = ranges_lib.stack_shape(path, leaves[path], seen.count.shape, uses)
      if math.prod(lead) != old[0].size:
        raise ValueError(
          f'{path} was calibrated in stacks of {old[0].shape} and met data in'
          f' stacks of {seen.count.shape}. Calibrate the function that is trained.'
        )
      ends[path] = ranges_lib.follow(old, seen, decay)
      found[path] = ranges_lib.of_ends(*ends[path], chosen[path].act)
    return {'ends': ends, 'ranges': found}

  def observes(params):
    return {
      re.escape(path): statistics.minmax('tensor')
      for path, scheme in schemes.by_leaf(rules, params).items()
      if _is_fixed(scheme) and scheme.act.learn == 'ema'
    }

  return compression.Compression(init, apply, update, observes)


def _needs_no_rounded(rules):
  """Raises for rules whose backward pass is that of rounded operands."""
  for regex, scheme in rules:
    scheme = schemes.scheme(scheme)
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


def _in_range(path, x, scheme, learned, uses):
  """How a weight is stored in a learned range, and what is differentiated."""
  spec = scheme.weight
  blocks, axis, _ = schemes.layout(path, x, spec, uses)
  scales, zero = learned_lib.stored(
    jax.tree.map(lax.stop_gradient, learned), spec
  )
  quantise = lambda w: qarray.with_scales(
    w.astype(jnp.float32), jnp.dtype(w.dtype), spec, blocks, axis, scales, zero
  )
  inner = blocks_lib.inner_sizes(x.shape, blocks)
  value = learned_lib.Ranged(
    x, learned['scale'], learned.get('zero'), spec, inner
  )
  return quantise, value
