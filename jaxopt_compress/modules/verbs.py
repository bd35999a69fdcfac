"""Verbs where they meet NNX modules; without Flax there are none, and nothing is done.

A module is a pytree, so a verb that takes a tree takes it. What puts leaves into one
ends in `dress`, which makes the result callable. The verbs of `core`, which knows no
modules, are here once more.
"""

from collections.abc import Callable
import functools
import sys
from typing import Any

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import compression
from jaxopt_compress.core import lift as lift_lib
from jaxopt_compress.core import operators


def _flax_is_loaded() -> bool:
  return 'flax.nnx' in sys.modules


def dress(tree: Any, like: Any) -> Any:
  """`tree`, whose NNX modules with compressed leaves are called as those without.

  Args:
    tree: what a verb made: the classes of its modules are set in place.
    like: what it was made from: what is one object there is one in `tree`.

  Raises:
    ValueError: a module that is no pytree, or one object with two formats.
  """
  if not _flax_is_loaded():
    return tree
  from jaxopt_compress.modules import dressed

  return dressed.dress(tree, like)


@functools.wraps(lift_lib.materialize)
def materialize(tree):
  return dress(lift_lib.materialize(tree), tree)


@functools.wraps(compression.freeze)
def freeze(tree):
  return dress(compression.freeze(tree), tree)


@functools.wraps(operators.cast)
def cast(tree, dtype):
  return dress(operators.cast(tree, dtype), tree)


@functools.wraps(uses_lib.uses)
def uses(fun):
  of_leaves = uses_lib.uses(fun)

  @functools.wraps(of_leaves)
  def used(params, *args, **kwargs):
    if not _flax_is_loaded():
      return of_leaves(params, *args, **kwargs)
    from jaxopt_compress.modules import dressed

    dressed.check_reached(params)
    found = of_leaves(params, *args, **kwargs)
    for paths in dressed.shared_paths(params):
      # One leaf, which is used wherever one of its paths is.
      together = dict.fromkeys(use for path in paths for use in found[path])
      found |= dict.fromkeys(paths, tuple(together))
    return found

  return used


@functools.wraps(lift_lib.lift)
def lift(
  fun: Callable, *, strict: bool = False, keep: bool = False
) -> Callable:
  lifted = lift_lib.lift(fun, strict=strict, keep=keep)

  @functools.wraps(fun)
  def called(*args, **kwargs):
    if not _flax_is_loaded():
      return lifted(*args, **kwargs)
    from jaxopt_compress.modules import written

    if not written.can_be((args, kwargs)):
      return lifted(*args, **kwargs)
    return written.call(fun, args, kwargs, strict=strict, keep=keep)

  return called
