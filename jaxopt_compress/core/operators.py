"""What leaves can do that arrays can: `leaf.T`, `x @ leaf`, `leaf[0]`.

    leaf.method(...)  =  lift(lambda array: array.method(...))(leaf)

Moves stay compressed where the leaf has a rule for them; products run by the leaf's
own rules; the rest is dense. Each call traces and runs at once: a model is called
through `jc.lift` and jit.

`METHODS` is set on `CompressedArray` when this room is imported, so every leaf type
has them, those of users too. They are not written in the class, because `lift` is
built on it.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxopt_compress.core import lift


def _move(name: str) -> Callable:
  """The method of an array of this name; its arguments say where entries go."""

  def method(leaf, *args, **kwargs):
    def moved(w):
      return getattr(w, name)(*args, **kwargs)

    return lift.lift(moved, keep=True)(leaf)

  return method


def _operator(f: Callable) -> Callable:
  def method(leaf, *others):
    return lift.lift(f, keep=True)(leaf, *others)

  return method


def _reflected(f: Callable) -> Callable:
  """Of an operator whose left operand is no leaf."""

  def method(leaf, other):
    return lift.lift(f, keep=True)(other, leaf)

  return method


METHODS = {
  'transpose': _move('transpose'),
  'swapaxes': _move('swapaxes'),
  'reshape': _move('reshape'),
  'squeeze': _move('squeeze'),
  'astype': _move('astype'),
  '__getitem__': _move('__getitem__'),
  '__neg__': _operator(jnp.negative),
  '__add__': _operator(jnp.add),
  '__radd__': _reflected(jnp.add),
  '__sub__': _operator(jnp.subtract),
  '__rsub__': _reflected(jnp.subtract),
  '__mul__': _operator(jnp.multiply),
  '__rmul__': _reflected(jnp.multiply),
  '__truediv__': _operator(jnp.divide),
  '__matmul__': _operator(jnp.matmul),
  '__rmatmul__': _reflected(jnp.matmul),
}


def set_on(leaf_type: type[Any]) -> None:
  """Gives a class the methods, under their names."""
  for name, method in METHODS.items():
    method.__name__ = name
    method.__qualname__ = f'{leaf_type.__qualname__}.{name}'
    setattr(leaf_type, name, method)
