"""Which results of a program differ between the devices that run it.

    a shared input    the same everywhere        a sum over devices   the same again
    a part of data    differs                    all else             as its operands

So a step that is meant to leave every device with one state can be asked whether it
does, before it runs: a gradient that nobody averaged differs.
"""

from collections.abc import Sequence
from typing import Any

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import walk

# What they give is the same on all devices of their axes.
_SHARED = ('psum', 'pmax', 'pmin', 'all_gather')
# What they give is each device's own, even if all bring the same.
_OWN = ('axis_index', 'ppermute', 'all_to_all', 'reduce_scatter')


def differ(program: Any, axis: str, inputs: Sequence[bool]) -> list[bool]:
  """For each result, whether it may differ along an axis of devices.

  Args:
    program: the jaxpr that each device runs.
    axis: name of the axis, over which the program has its collectives.
    inputs: for each input, whether it differs.

  >>> import jax
  >>> f = lambda w, x: (w * x, jax.lax.pmean(w * x, 'data'))
  >>> program = jax.make_jaxpr(f, axis_env=[('data', 2)])(1., 2.)
  >>> differ(program, 'data', [False, True])
  [True, False]
  """
  return algebra.evaluate(_Differ(axis), program, inputs)


def _collective(asked, at, inputs):
  params = at.eqn.params
  axes = params.get('axes', params.get('axis_name'))
  if asked.axis not in (axes if isinstance(axes, tuple) else (axes,)):
    return None
  everyone = params.get('axis_index_groups') is None
  same = everyone and at.eqn.primitive.name in _SHARED
  return [not same] * len(at.eqn.outvars)


def _cond(asked, at, inputs):
  which, *args = inputs
  branches = walk.enter(at.eqn).branches
  cases = [algebra.evaluate(asked, b, args, at) for b in branches]
  return [which or any(case) for case in zip(*cases, strict=True)]


def _scan(asked, at, inputs):
  loop = walk.enter(at.eqn)
  end = loop.num_consts + loop.num_carry
  consts, carry = inputs[: loop.num_consts], inputs[loop.num_consts : end]

  def turn(carry):
    operands = [*consts, *carry, *inputs[end:]]
    return algebra.evaluate(asked, loop.body, operands, at)

  return _settled(turn, carry)


def _while(asked, at, inputs):
  loop = walk.enter(at.eqn)
  begin = loop.num_test_consts + loop.num_body_consts
  of_test, consts = inputs[: loop.num_test_consts], inputs[:begin]
  consts = consts[loop.num_test_consts :]

  def turn(carry):
    # Where devices make different numbers of turns, all that they carry differs.
    (goes_on,) = algebra.evaluate(asked, loop.test, [*of_test, *carry], at)
    outs = algebra.evaluate(asked, loop.body, [*consts, *carry], at)
    return [goes_on or out for out in outs]

  return _settled(turn, inputs[begin:])


def _settled(turn, carry):
  """The results of a loop, when another turn adds no value that differs."""
  while True:
    outs = turn(carry)
    after = [a or b for a, b in zip(carry, outs[: len(carry)], strict=True)]
    if after == carry:
      return [*carry, *outs[len(carry) :]]
    carry = after


class _Differ(algebra.Algebra):
  """A value is whether it differs."""

  rules = {
    **dict.fromkeys((*_SHARED, *_OWN), _collective),
    'cond': _cond,
    'scan': _scan,
    'while': _while,
  }

  def __init__(self, axis: str):
    self.axis = axis

  def plain(self, aval):
    return False

  def unknown(self, at, inputs):
    return [any(inputs)] * len(at.eqn.outvars)

  def cut(self, at, x, spec, aval):
    return x

  def assemble(self, at, y, spec, aval):
    return y
