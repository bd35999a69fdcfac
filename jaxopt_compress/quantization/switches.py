"""A weight in one of several forms, chosen by numbers while the program runs.

    y = op(w_i, x_j)      w_0 the float weight, w_i what form i stores of it
                          x_0 the other operand as it is, x_j as form j rounds it

So one program, compiled once, computes with every weight in every form: what differs
is an array of small numbers. Products are those of floats, on what the codes stand for.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import operations
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import spec as spec_lib

# Choices move with a weight as calibrated ranges do, one for each stacked weight.
_CARRIED = spec_lib.Spec('int8', 'tensor', static=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Switched(array.CompressedArray):
  """Stands for `value`, or for what one of `forms` stands for, by number.

  Attributes:
    value: the float weight.
    forms: of it, `QArray` or `QDotArray`.
    choice: a `QDotArray` of the weight in the first form, whose `act_scale` is the
      form of the weight, 0 for float, and `act_zero` that of what it meets:
      float32 of its rank, 1 on all but stacked axes.
  """

  value: jax.Array
  forms: tuple[Any, ...]
  choice: qarray.QDotArray

  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)

  def can_cut(self, axis, size):
    return all(form.can_cut(axis, size) for form in self.forms)

  def describe(self):
    return ' or '.join(['float', *(form.describe() for form in self.forms)])

  def materialize(self):
    makers = [lambda: self.value]
    makers += [functools.partial(_like, self.value, f) for f in self.forms]
    return _chosen(self.choice.act_scale, makers)

  def chosen(self, weight: jax.Array, other: jax.Array) -> 'Switched':
    """The leaf with other choices, of the shape that these have."""
    shape = self.choice.act_scale.shape
    choice = dataclasses.replace(
      self.choice,
      act_scale=weight.reshape(shape),
      act_zero=other.reshape(shape),
    )
    return dataclasses.replace(self, choice=choice)


def switched(
  value: jax.Array, forms: Sequence[Any], stacked: Sequence[int]
) -> Switched:
  """A leaf that is its float weight at first.

  Args:
    value: the weight.
    forms: at least one, of its shape.
    stacked: axes, counted from the end, along which each entry chooses for itself.
  """
  ndim = value.ndim
  shape = [value.shape[a] if a in stacked else 1 for a in range(-ndim, 0)]
  none = jnp.zeros(shape, jnp.float32)
  first = forms[0]
  weight = first.weight if isinstance(first, qarray.QDotArray) else first
  choice = qarray.QDotArray(weight, none, none, _CARRIED)
  return Switched(value, tuple(forms), choice)


def rule_for(primitive, leaf_type: type) -> Callable | None:
  """As `lift.rule_for`, which these leaves are no part of."""
  if leaf_type is not Switched:
    return lift.rule_for(primitive, leaf_type)
  for key in (primitive, primitive.name):
    if key in operations.PRODUCTS:
      return functools.partial(_product, operations.PRODUCTS[key][2])
  if primitive in moves.MOVES:
    return functools.partial(_move, primitive)
  return None


def _like(value, form):
  return form.materialize().astype(value.dtype)


def _chosen(which, makers):
  """What the maker of a number makes; one for each stacked weight, if several."""
  if which.size == 1:
    return lax.switch(which.reshape(()).astype(jnp.int32), makers)
  out = makers[0]()
  for i, make in enumerate(makers[1:], 1):
    out = jnp.where(which == i, make(), out)
  return out


def _product(how, /, *operands, **params):
  """The product of floats, with both operands as they are chosen."""
  side = [isinstance(x, Switched) for x in operands].index(True)
  leaf = operands[side]
  other = leaf.choice.act_zero
  if other.size > 1:
    return lift.Dense('its layers are multiplied side by side')
  values = list(operands)
  values[side] = leaf.materialize()
  at = 1 - side if how.at is None else how.at
  if jnp.issubdtype(values[at].dtype, jnp.floating):
    values[at] = _chosen(other, _roundings(how, values, side, leaf, params))
  return how.bind(*values, **params)


def _roundings(how, values, side, leaf, params):
  """What makes the other operand, as it is and as each form rounds it."""
  at = 1 - side if how.at is None else how.at
  makers = [lambda: values[at]]
  for form in leaf.forms:
    if isinstance(form, qarray.QDotArray):
      makers.append(
        functools.partial(_rounded, how, values, at, side, form, params)
      )
    else:
      makers.append(makers[0])
  return makers


def _rounded(how, values, at, side, form, params):
  return how.rounded(values, side, form, params).astype(values[at].dtype)


def _move(primitive, /, leaf, *rest, **params):
  """Moves the weight, its forms and the choices alike."""
  if not isinstance(leaf, Switched):
    return lift.Dense('it is an index')
  parts = []
  for part in (*leaf.forms, leaf.choice):
    moved = lift.rule_for(primitive, type(part))(part, *rest, **params)
    if isinstance(moved, lift.Dense):
      return moved
    parts.append(moved)
  value = primitive.bind(leaf.value, *rest, **params)

  def made(value, *parts):
    return Switched(value, parts[:-1], parts[-1])

  return moves.each(primitive, made, value, *parts)
