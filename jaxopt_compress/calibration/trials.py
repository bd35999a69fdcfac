"""Repairs are judged one by one, beside the others, and kept where they help.

    kept <- kept + {repair}    if error(kept + {repair}) < error(kept), else without

with the error on batches that no repair was made from. A repair that is right by
itself may still harm a network: layers behind it had made up for what it mends.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.calibration import known
from jaxopt_compress.core import lift


class Trial(NamedTuple):
  """The errors without a repair and with it, beside the others that were kept."""

  without: float
  repaired: float

  @property
  def applied(self) -> bool:
    return self.repaired < self.without


@known.computed
def output_error(
  apply: Callable, params: Any, batches: Iterable[Any]
) -> Callable[[Any], float]:
  """How far a compressed network is from what it was, on held-out batches.

      sum |apply(tree, x) - apply(params, x)|^2 / sum |apply(params, x)|^2

  Args:
    apply: a function of parameters and the arguments that a batch is; all floating
      entries that it returns count.
    params: as they were trained.
    batches: as in `jc.calibrate`, of examples that are used for nothing else. They
      and the outputs of `params` are kept.

  Returns:
    `error(tree)`, for trees of compressed leaves.

  Raises:
    ValueError: no batches, nothing floating in what is returned, or arrays that
      are traced.

  >>> f = lambda p, x: x @ p
  >>> error = output_error(f, jnp.array([[2.0]]), [jnp.ones((1, 1))])
  >>> error(jnp.array([[1.0]]))
  0.25
  """
  lifted = lift.lift(apply)

  @jax.jit
  def run(tree, batch):
    leaves = jax.tree.leaves(batches_lib.call(lifted, (tree,), batch))
    kept = [y for y in leaves if jnp.issubdtype(y.dtype, jnp.floating)]
    return [y.astype(jnp.float32) for y in kept]

  @jax.jit
  def squares(tree, batch, wanted):
    pairs = zip(run(tree, batch), wanted, strict=True)
    return sum(jnp.sum(jnp.square(y - want)) for y, want in pairs)

  batches = list(batches)
  known.check('output_error', batches)
  wanted = [run(params, batch) for batch in batches]
  if not sum(y.size for y in jax.tree.leaves(wanted)):
    raise ValueError(
      f'{len(batches)} held-out batches, for which apply returns no floating'
      ' entry: there is nothing to compare. Give batches of examples.'
    )
  total = sum(float(jnp.sum(jnp.square(y))) for y in jax.tree.leaves(wanted))

  @known.computed
  def error(tree):
    pairs = zip(batches, wanted, strict=True)
    apart = sum(float(squares(tree, *pair)) for pair in pairs)
    return apart / max(total, np.finfo(np.float32).tiny)

  return error


def keep(
  repaired: Callable[[Sequence[str]], Any],
  names: Sequence[str],
  error: Callable[[Any], float],
) -> tuple[Any, dict[str, Trial]]:
  """The repairs that help beside the others that are kept.

  Begins with all of them or with none, whichever is better, and then takes each one
  out or in. So the error is no larger than that of all, or of none.

  Args:
    repaired: some of the names -> what these repairs give.
    names: of the repairs, in the order in which they are judged.
    error: of what `repaired` gives; called twice, and once for each name.

  Returns:
    (what the kept repairs give, {name: what its trial showed}).

  Raises:
    ValueError: the error is not finite without repairs.
  """

  def measured(chosen):
    found = error(repaired([name for name in names if name in chosen]))
    return found if np.isfinite(found) else np.inf

  kept, now = set(), measured(())
  if now == np.inf:
    raise ValueError(
      'The error is not finite before any repair, so that none can be judged. Look'
      ' for where the network overflows on the held-out batches.'
    )
  with_all = measured(names)
  if with_all < now:
    kept, now = set(names), with_all
  found = {}
  for name in names:
    other = kept ^ {name}
    turned = measured(other)
    pair = (turned, now) if name in kept else (now, turned)
    found[name] = Trial(*pair)
    if found[name].applied != (name in kept):
      kept, now = other, turned
  return repaired([name for name in names if name in kept]), found
