"""Verbs where they meet NNX modules; without Flax there are none, and nothing is done.

A module is a pytree, so a verb that takes a tree takes it. What puts leaves into one
ends in `dress`, which makes the result callable. The verbs of `core`, which knows no
modules, are here once more.
"""

from collections.abc import Callable
import functools
import sys
from typing import Any

from jaxopt_compress.core import compression
from jaxopt_compress.core import lift as lift_lib


def _flax_is_loaded() -> bool:
  return 'flax.nnx' in sys.modules


def dress(tree: Any) -> Any:
  """`tree`, whose NNX modules with compressed leaves are called as those without.

  Args:
    tree: what a verb made: the classes of its modules are set in place.

  Raises:
    ValueError: a module that is no pytree.
  """
  if not _flax_is_loaded():
    return tree
  from jaxopt_compress.modules import dressed

  return dressed.dress(tree)


@functools.wraps(lift_lib.materialize)
def materialize(tree):
  return dress(lift_lib.materialize(tree))


@functools.wraps(compression.freeze)
def freeze(tree):
  return dress(compression.freeze(tree))


@functools.wraps(lift_lib.lift)
def lift(
  fun: Callable, *, strict: bool = False, keep: bool = False
) -> Callable:
  lifted = lift_lib.lift(fun, strict=strict, keep=keep)
  if not _flax_is_loaded():
    return lifted

  @functools.wraps(fun)
  def called(*args, **kwargs):
    from jaxopt_compress.modules import written

    if not written.can_be((args, kwargs)):
      return lifted(*args, **kwargs)
    return written.call(fun, args, kwargs, strict=strict, keep=keep)

  return called
