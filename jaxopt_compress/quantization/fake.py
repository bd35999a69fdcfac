"""Training with quantisation: the forward pass is the frozen one, to the bit.

    forward   y = op(quantize(w), x)            what the stored leaf computes
    backward  dy = d op(w_hat, x_hat), with  d w_hat / d w = 1,  d x_hat / d x = 1

A `FakeQuant` carries the float weight and the leaf that it would be stored as.
Every operation runs on the stored leaf, by that leaf's own rule, so that there is
one definition of what a quantised model computes; only the derivative is that of
the straight-through estimator (Bengio et al. 2013,
https://arxiv.org/abs/1308.3432; Jacob et al. 2018,
https://arxiv.org/abs/1712.05877).
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import compression
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import conv  # noqa: F401  (its products)
from jaxopt_compress.quantization import dot
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import ragged  # noqa: F401
from jaxopt_compress.quantization import schemes
from jaxopt_compress.quantization import straight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class FakeQuant(array.CompressedArray):
  """A float weight that computes as the integers it will be stored as.

  Attributes:
    value: the float weight, or a leaf that stands for it (a mask, say).
    frozen: its `QArray` or `QDotArray`.
  """

  value: Any
  frozen: Any

  shape = property(lambda self: self.frozen.shape)
  dtype = property(lambda self: self.frozen.dtype)

  def materialize(self):
    return _as_trained(array.materialize(self.value), self.frozen)

  def freeze(self):
    return self.frozen

  def describe(self):
    return f'fake {self.frozen.describe()}'


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
    out = rule(*put(leaf.frozen, lax.stop_gradient(others)), **params)
    if isinstance(out, lift.Dense):
      return out

    def dense(w, frozen, *others):
      values = put(_as_trained(w, frozen), others)
      if isinstance(frozen, qarray.QDotArray):
        values = how.round_other(values, side, frozen, params)
      return how.bind(*values, **params)

    latent = array.materialize(leaf.value)
    return straight.as_if(dense, out, latent, leaf.frozen, *others)


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
    return moves.each(primitive, FakeQuant, value, frozen)


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
    return straight.as_if(dense, out, value, indices)


for _name, _how in dot.PRODUCTS.items():
  _register_product(_name, _how)
for _primitive in moves.PRIMITIVES:
  _register_move(_primitive)
_register_gather()


def _apart(frozen):
  """Keeps XLA from fusing the rounding of weights into what uses them.

  What follows is then the same program as with stored weights, and so are its
  results, to the bit: a fusion of its own would sum in another order. On CPU,
  XLA drops barriers before it fuses; a branch it keeps.
  """
  return lax.platform_dependent(
    frozen, cpu=_branch, default=lax.optimization_barrier
  )


def _branch(frozen):
  is_scale = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  scales = [x for x in jax.tree.leaves(frozen) if is_scale(x)]
  finite = jnp.stack([jnp.isfinite(s).all() for s in scales]).all()
  spoil = lambda x: jnp.full_like(x, jnp.nan) if is_scale(x) else x
  return lax.cond(finite, lambda t: t, lambda t: jax.tree.map(spoil, t), frozen)


def fake_quantize(
  rules: Sequence[tuple[str, schemes.Scheme | str | None]],
  uses: dict | None = None,
) -> compression.Compression:
  """Trains weights as the integers that they will be stored as.

  Takes the rules and schemes of `jc.quantize`, and `jc.freeze` of what `apply`
  returns is what `jc.quantize` makes of the same parameters. Ranges are those of
  the current weights at every step, so there is no state.

  Args:
    rules: ordered `(regex, scheme)`, as for `jc.quantize`.
    uses: what `jc.uses(apply)(params, x)` returned, or None.
  """

  def apply(params, state):
    del state
    chosen = schemes.by_leaf(rules, params)

    def one(path, x):
      if chosen[path] is None:
        return x
      # The straight-through derivative goes around the rounding, not through.
      fixed = jax.tree.map(lax.stop_gradient, x)
      frozen = schemes.quantize_leaf(path, fixed, chosen[path], uses)
      return FakeQuant(x, _apart(frozen))

    return rules_lib.map_named(one, params)

  return compression.Compression(
    init=lambda params: (),
    apply=apply,
    update=lambda state, params, info: state,
  )
