"""The sparsity wanted at a step, and the steps at which masks change."""

import jax
import jax.numpy as jnp


def constant(step, *, target, begin=0, end=None) -> jax.Array:
  """`target` from step `begin` on, 0 before.

  Args:
    step: scalar int, finished optimizer steps.
    target: fraction of zeros, in [0, 1).
    begin: the first step with masks.
    end: unused, so that all schedules have one signature.

  Returns:
    Scalar float32.

  >>> [round(float(constant(s, target=0.5, begin=10)), 3) for s in (9, 10, 99)]
  [0.0, 0.5, 0.5]
  """
  del end
  return jnp.where(jnp.asarray(step) >= begin, jnp.float32(target), 0.0)


def cubic(step, *, target, begin, end) -> jax.Array:
  """Sparsity that rises from 0 to `target` as 1 - (1 - t)^3.

      t = (step - begin) / (end - begin), within [0, 1]

  Fast while many weights are redundant, slow while few are. Zhu and Gupta 2017,
  https://arxiv.org/abs/1710.01878, eq. 1 with s_i = 0. `target` is reached at
  `end`, exactly, and held.

  Args:
    step: scalar int, finished optimizer steps.
    target: final fraction of zeros, in [0, 1).
    begin: the step at which the rise starts.
    end: the step at which it stops; `begin` for a jump.

  Returns:
    Scalar float32.

  >>> round(float(cubic(50, target=0.8, begin=0, end=100)), 3)
  0.7
  """
  rising = target * (1.0 - (1.0 - _way(step, begin, end)) ** 3)
  return _reached(step, end, target, rising)


def one_shot(step, *, target, begin=0, end) -> jax.Array:
  """Nothing before `end`, `target` from then on.

  A network is trained, pruned at once and trained on: Han et al. 2015,
  https://arxiv.org/abs/1506.02626, section 3, once.

  Args:
    step: scalar int, finished optimizer steps.
    target: final fraction of zeros, in [0, 1).
    begin: unused, so that all schedules have one signature.
    end: the step of the masks.

  Returns:
    Scalar float32.

  >>> [round(float(one_shot(s, target=0.5, end=10)), 3) for s in (9, 10)]
  [0.0, 0.5]
  """
  return constant(step, target=target, begin=end)


def cosine(step, *, target, begin, end) -> jax.Array:
  """Sparsity that rises from 0 to `target` as (1 - cos(pi t)) / 2.

      t = (step - begin) / (end - begin), within [0, 1]

  Slow at both ends, for networks that the first zeros already hurt. `target` is
  reached at `end`, exactly, and held.

  Args:
    step: scalar int, finished optimizer steps.
    target: final fraction of zeros, in [0, 1).
    begin: the step at which the rise starts.
    end: the step at which it stops; `begin` for a jump.

  Returns:
    Scalar float32.

  >>> [round(float(cosine(s, target=0.8, begin=0, end=4)), 3) for s in range(5)]
  [0.0, 0.117, 0.4, 0.683, 0.8]
  """
  rising = target * 0.5 * (1.0 - jnp.cos(jnp.pi * _way(step, begin, end)))
  return _reached(step, end, target, rising)


def cyclic(step, *, target, begin, end, periods=4) -> jax.Array:
  """Dense and sparse phases in turn: 0 and `target`, `periods` times each.

  The phases of AC/DC, Peste et al. 2021, https://arxiv.org/abs/2106.12379, algorithm
  1, of equal length: each period is dense in its first half. The last phase is sparse
  and goes on after `end`. Here what is masked keeps its value for the next dense
  phase; there it starts again from zero.

  Masks change at updates alone. So that phases turn where this says, `every` of a
  `Sparsity` divides (end - begin) / (2 periods), the steps of a phase. One that does
  not turns them at the next update, and a phase between two updates is left out.

  Args:
    step: scalar int, finished optimizer steps.
    target: fraction of zeros of the sparse phases, in [0, 1).
    begin: the step at which the first dense phase starts.
    end: the step at which the last period ends.
    periods: how many periods lie between them.

  Returns:
    Scalar float32.

  >>> [float(cyclic(s, target=0.5, begin=0, end=8, periods=2)) for s in range(9)]
  [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5, 0.5]
  """
  # In whole numbers: a fraction of a step would be rounded at the turns.
  done = jnp.clip(jnp.asarray(step, jnp.int32) - begin, 0, end - begin)
  half = 2 * periods * done // max(end - begin, 1)
  return _reached(step, end, target, jnp.where(half % 2 == 1, target, 0.0))


def _way(step, begin, end):
  """How much of the way from `begin` to `end` is done, in [0, 1]."""
  return jnp.clip((jnp.asarray(step) - begin) / max(end - begin, 1), 0.0, 1.0)


def _reached(step, end, target, before):
  """`target` itself from `end` on, whatever was rounded on the way."""
  reached = jnp.asarray(step) >= end
  return jnp.where(reached, target, before).astype(jnp.float32)


def updates(step, *, begin: int, end: int, every: int) -> jax.Array:
  """How many times masks have been computed by `step`.

  They are computed at begin, begin + every, begin + 2 every, ... below `end`, and at
  `end` itself, where the target is reached, whether or not `every` divides the ramp.

  Masks are due when this count has grown since they were last computed, however
  many steps lie in between.

  Args:
    step: scalar int, finished optimizer steps.
    begin: the step of the first update.
    end: the step of the last.
    every: steps from one update to the next.

  Returns:
    Scalar int32.

  >>> [int(updates(s, begin=5, end=12, every=3)) for s in (4, 5, 7, 8, 11, 12, 99)]
  [0, 1, 1, 2, 3, 4, 4]
  """
  step = jnp.asarray(step, jnp.int32)
  # Updates on the grid so far, the first at `begin`; `end` adds one of its own if
  # the grid does not hit it.
  on_grid = (jnp.minimum(step, end) - begin) // every + 1
  forced = (step >= end).astype(jnp.int32) if (end - begin) % every else 0
  return jnp.where(step >= begin, on_grid + forced, 0)
