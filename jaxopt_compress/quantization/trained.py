"""The leaf that trains: the forward pass is the frozen one, to the bit.

    forward   y = op(quantize(w), x)            what the stored leaf computes
    backward  dy = d op(w_hat, x_hat), with  d w_hat / d w = 1,  d x_hat / d x = 1

A `FakeQuant` carries the float weight and the leaf that it would be stored as.
Every operation runs on the stored leaf, by that leaf's own rule, so that there is
one definition of what a quantised model computes; only the derivative is that of
the straight-through estimator (Bengio et al. 2013,
https://arxiv.org/abs/1308.3432; Jacob et al. 2018,
https://arxiv.org/abs/1712.05877), or that of learned ranges (`learned.py`), or is
itself computed on codes (`backward.py`). When weights are rounded is in
`training.py`.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.quantization import backward
from jaxopt_compress.quantization import learned as learned_lib
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import product as product_lib
from jaxopt_compress.quantization import qarray
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

    def mix(q, d):
      return (share * q + (1 - share) * d).astype(q.dtype)

    def blend():
      return jax.tree.map(mix, quantised(), dense())

    def partly():
      return lax.cond(share <= 0, dense, blend)

    return lax.cond(share >= 1, quantised, partly)

  def dtypes(self):
    return dict(value=self.dtype)

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


# ------------------------------------------------------------------------ rules


def product_rule(name: str, how: product_lib.Product):
  """Forward by the stored leaf's rule, derivative of the dense product."""

  def trained_product(*operands, **params):
    side = [isinstance(x, FakeQuant) for x in operands].index(True)
    leaf = operands[side]
    others = [x for i, x in enumerate(operands) if i != side]
    rule = lift.rule_for(name, type(leaf.frozen))
    fixed = jax.tree.map(lax.stop_gradient, leaf.frozen)
    out = rule(*_beside(side, fixed, lax.stop_gradient(others)), **params)
    if isinstance(out, lift.Dense):
      return out
    bind = functools.partial(how.bind, **params)

    def dense(w, act, frozen, *others):
      if leaf.unrounded:
        return bind(*_beside(side, w, others))
      values = _beside(side, _as_trained(w, frozen), others)
      if not isinstance(frozen, qarray.QDotArray):
        return bind(*values)
      values = how.round_other(values, side, _in_range(frozen, act), params)
      if leaf.grad is None:
        return bind(*values)
      at = 1 - side if how.at is None else how.at
      rounded = backward.product(bind, at, side, frozen.act, leaf.grad)
      return rounded(*values)

    latent = array.materialize(leaf.value)
    return leaf.mixed(
      lambda: straight.as_if(dense, out, latent, leaf.act, fixed, *others),
      lambda: bind(*_beside(side, _float(leaf.value), others)).astype(
        out.dtype
      ),
    )

  return trained_product


def _beside(side, w, others) -> list:
  """The operands of a product, with the weight `w` at its position."""
  return [*others[:side], w, *others[side:]]


def _in_range(frozen: qarray.QDotArray, act) -> qarray.QDotArray:
  """The stored leaf with the range that is learned, if there is one."""
  if act is None:
    return frozen
  zero = act.get('zero', frozen.act_zero)
  return dataclasses.replace(frozen, act_scale=act['scale'], act_zero=zero)


def move_rule(primitive):
  """Moves the float weight and its stored form alike."""

  def trained_move(leaf, *rest, **params):
    if not isinstance(leaf, FakeQuant):
      return lift.Dense('it is an index')
    rule = lift.rule_for(primitive, type(leaf.frozen))
    frozen = rule(leaf.frozen, *rest, **params)
    if isinstance(frozen, lift.Dense):
      return frozen
    if leaf.share is not None and isinstance(leaf.value, learned_lib.Ranged):
      # A moved value is one array, and here two are mixed: rounded and float.
      return lift.Dense('its learned range is blended in')
    value = primitive.bind(array.materialize(leaf.value), *rest, **params)
    moved = functools.partial(_moved, leaf)
    return moves.each(primitive, moved, value, frozen)

  return trained_move


def join_rule(primitive):
  """Joins the float weights and their stored forms alike."""

  def trained_join(*operands, **params):
    leaves = [x for x in operands if isinstance(x, FakeQuant)]
    first = leaves[0]
    for x in leaves:
      if x.act is not first.act or x.grad != first.grad:
        return lift.Dense('each is trained in its own way')
    rule = lift.rule_for(primitive, type(first.frozen))

    def each(part):
      return [part(x) if isinstance(x, FakeQuant) else x for x in operands]

    frozen = rule(*each(lambda x: x.frozen), **params)
    if isinstance(frozen, lift.Dense):
      return frozen
    values = each(lambda x: array.materialize(x.value))
    return _moved(first, primitive.bind(*values, **params), frozen)

  return trained_join


def _moved(leaf, value, frozen):
  """The leaf again; what it has one of for each layer keeps to its rank."""

  def of_rank(p):
    return moves.of_rank(p, frozen.ndim)

  act, share = jax.tree.map(of_rank, (leaf.act, leaf.share))
  return dataclasses.replace(
    leaf, value=value, frozen=frozen, act=act, share=share
  )


def gather_rule(operand, indices, **params):
  """Rows of the stored table, with the derivative of those of the float one."""
  if not isinstance(operand, FakeQuant):
    return lift.Dense('it is an index')
  rule = lift.rule_for(lax.gather_p, type(operand.frozen))
  out = rule(operand.frozen, indices, **params)
  if isinstance(out, lift.Dense):
    return out
  value = array.materialize(operand.value)

  def dense(w, indices):
    return lax.gather_p.bind(w, indices, **params)

  return operand.mixed(
    lambda: straight.as_if(dense, out, value, indices),
    lambda: dense(_float(operand.value), indices),
  )
