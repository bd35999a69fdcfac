"""What leaves can do that arrays can: `leaf.T`, `x @ leaf`, `leaf[0]`.

    leaf.method(...)  =  lift(lambda array: array.method(...))(leaf)

Moves stay compressed where the leaf has a rule for them; products run by the leaf's
own rules; the rest is dense. Each call traces and runs at once: a model is called
through `jc.lift` and jit.

`METHODS` is set on `CompressedArray` when this room is imported, so that leaf types
of users have them too; they are not in the class, because `lift` is built on it.
"""

from collections.abc import Callable
from numbers import Number
import operator
from typing import Any

import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules


def _move(name: str) -> Callable:
  """The method of an array of this name; its arguments say where entries go."""

  def method(leaf, *args, **kwargs):
    moved = operator.methodcaller(name, *args, **kwargs)
    return lift.lift(moved, keep=True)(leaf)

  return method


def _operator(f: Callable) -> Callable:
  def method(leaf, *others):
    # As of arrays: a string or None is left to Python, which finds it unequal.
    if any(isinstance(x, (list, tuple, set, dict)) for x in others):
      raise TypeError(f'a leaf and a {type(*others).__name__}; use jnp.asarray')
    if not all(hasattr(x, 'shape') or isinstance(x, Number) for x in others):
      return NotImplemented
    return lift.lift(f, keep=True)(leaf, *others)

  return method


def _reflected(f: Callable) -> Callable:
  """Of an operator whose left operand is no leaf."""
  return _operator(lambda leaf, other: f(other, leaf))


_MOVES = 'transpose swapaxes reshape ravel squeeze astype __getitem__'.split()
_ALONE = 'neg pos abs eq ne lt le gt ge'.split()
_REFLECTED = 'add sub mul truediv floordiv mod pow matmul'.split()

METHODS = {name: _move(name) for name in _MOVES}
for _name in _ALONE + _REFLECTED:
  METHODS[f'__{_name}__'] = _operator(getattr(operator, _name))
for _name in _REFLECTED:
  METHODS[f'__r{_name}__'] = _reflected(getattr(operator, _name))


def set_on(leaf_type: type[Any]) -> None:
  """Gives a class the methods, under their names."""
  for name, method in METHODS.items():
    method.__name__ = name
    method.__qualname__ = f'{leaf_type.__qualname__}.{name}'
    setattr(leaf_type, name, method)


def cast(tree: Any, dtype: Any) -> Any:
  """`tree` with its floating leaves in another floating type.

  A compressed leaf keeps its codes and scales: it stands for the same numbers, rounded
  to `dtype`. Leaves that are not floating stay what they are.

  Raises:
    ValueError: a type in which a leaf cannot be kept: integers, float8.
  """

  def in_dtype(path, x):
    if not jnp.issubdtype(getattr(x, 'dtype', int), jnp.floating):
      return x
    out = x.astype(dtype)
    if array.is_compressed(x) == array.is_compressed(out):
      return out
    raise ValueError(
      f'{path} is {x.describe()}, and cannot be kept in {jnp.dtype(dtype)}.'
      ' Cast to bfloat16 or wider, or jc.materialize the leaf first.'
    )

  return rules.map_named(in_dtype, array.on_device(tree))
