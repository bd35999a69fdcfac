"""Statistics are monoids: in parts, masked and merged as numpy on all."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import observing

from jaxopt_compress.analysis import statistics


class StatisticsTest(observing.Case):
  @parameterized.named_parameters(
    ('absmax', statistics.absmax(), lambda x: np.abs(x).max(0)),
    ('absmax_tensor', statistics.absmax('tensor'), lambda x: np.abs(x).max()),
    ('minmax', statistics.minmax(), lambda x: (x.min(0), x.max(0))),
    (
      'minmax_tensor',
      statistics.minmax('tensor'),
      lambda x: (x.min(), x.max()),
    ),
    ('sums', statistics.sums(), lambda x: x.sum(0)),
    ('sum_abs', statistics.sum_abs(), lambda x: np.abs(x).sum(0)),
    ('sum_squares', statistics.sum_squares(), lambda x: np.square(x).sum(0)),
    ('gram', statistics.gram(), lambda x: x.T @ x),
    ('moments', statistics.moments(), lambda x: (x.sum(0), x.T @ x)),
  )
  def test_against_numpy_in_parts_and_masked(self, statistic, want):
    mask = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    add = lambda s, rows: statistic.add(
      s, observing.X[rows], jnp.asarray(mask[rows])
    )
    a = add(statistic.init(6), slice(0, 3))
    b = add(add(statistic.init(6), slice(3, 5)), slice(5, 8))
    for merged in (statistic.merge(a, b), statistic.merge(b, a)):
      jax.tree.map(
        observing.close,
        tuple(jax.tree.leaves(merged)),
        _leaves(want(observing.X[mask])),
      )


def _leaves(x):
  return x if isinstance(x, tuple) else (x,)


if __name__ == '__main__':
  absltest.main()
