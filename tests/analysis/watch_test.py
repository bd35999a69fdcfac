"""One statistic for each weight, put together from several meetings."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import observing

import jaxopt_compress as jc
from jaxopt_compress.analysis import probes
from jaxopt_compress.analysis import rows
from jaxopt_compress.analysis import watch


def _seen(of, w, x, mask=None):
  """What a watch makes of rows x [stack..., n, k] that meet all of w."""
  mask = jnp.ones(x.shape[:-1], bool) if mask is None else jnp.asarray(mask)
  stack = tuple(range(x.ndim - 2))
  met = rows.Rows(jnp.asarray(x), mask, x.shape[-1], (w.ndim - 2,), stack)
  return of.see(probes.probe(w, of.name), met)


class WatchTest(observing.Case):
  def test_meetings_are_merged(self):
    of, w = watch.Watch('w', jc.statistics.sums()), observing.LAYERS[0]
    a, b = (_seen(of, w, x) for x in (observing.X[:3], observing.X[3:]))
    merged = of.merge(a, b)
    self.assertEqual(merged.count, 8)
    observing.close(merged.state, observing.X.sum(0))
    observing.close(of.merge(merged, of.empty(merged)).state, merged.state)

  def test_each_expert_has_its_own(self):
    of, w = watch.Watch('w', jc.statistics.absmax()), observing.LAYERS
    x = observing.rand(3, 4, 6)
    mask = np.arange(4) < np.array([[4], [0], [2]])
    seen = _seen(of, w, x, mask)
    np.testing.assert_array_equal(seen.count, [4, 0, 2])
    observing.close(seen.state[0], np.abs(x[0]).max(0))
    observing.close(seen.state[1], np.zeros(6))
    observing.close(seen.state[2], np.abs(x[2, :2]).max(0))
    twice = of.merge(seen, seen)
    np.testing.assert_array_equal(twice.count, [8, 0, 4])
    observing.close(twice.state, seen.state)

  def test_shapes_that_do_not_fit(self):
    of = watch.Watch('w', jc.statistics.sums())
    a = _seen(of, observing.LAYERS[0], observing.X)
    b = _seen(of, observing.LAYERS, observing.rand(3, 4, 6))
    with self.assertRaisesRegex(ValueError, 'w has uses whose statistics'):
      of.merge(a, b)

  def test_nothing_has_the_shapes_of_something(self):
    of = watch.Watch('w', jc.statistics.minmax())
    seen = _seen(of, observing.LAYERS, observing.rand(3, 4, 6))
    like = jax.eval_shape(lambda s: s, seen)
    none = of.empty(like)
    self.assertEqual(
      jax.tree.map(jnp.shape, none), jax.tree.map(jnp.shape, seen)
    )
    jax.tree.map(observing.close, of.merge(none, seen), seen)


if __name__ == '__main__':
  absltest.main()
