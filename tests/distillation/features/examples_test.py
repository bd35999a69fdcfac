"""Relations of examples: the number of devices and padding change nothing."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import by_oracle
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from jaxopt_compress.distillation import features
from jaxopt_compress.distillation.features import examples

S, T = by_oracle.values(0, 8, 5), by_oracle.values(1, 8, 5)
W = jnp.asarray(by_oracle.values(2, 5, 5), jnp.float32)
MASK = np.array([1, 1, 0, 1, 0, 0, 1, 1], np.float32)  # none of device 2
RELATIONS = ['similarity', 'distances', 'angles', 'contrastive']


def _shared(loss, s, t, mask, w):
  total, count = loss(jnp.tanh(s @ w), t, mask=mask)
  return total, count


class ExamplesTest(parameterized.TestCase):
  @parameterized.product(name=RELATIONS, check=[True, False])
  def test_the_number_of_devices_changes_nothing(self, name, check):
    loss = getattr(features, name)
    s, t, mask = (jnp.asarray(x, jnp.float32) for x in (S, T, MASK))

    def alone(w):
      total, count = _shared(loss, s, t, mask, w)
      return total / count

    def on_device(s, t, mask, w):
      # As a step does it: gradients of own sums, which are then added.
      gathered = functools.partial(loss, axis_name='d')
      if check:
        w = lax.pcast(w, ('d',), to='varying')
      grads, count = jax.grad(
        lambda w: _shared(gathered, s, t, mask, w), has_aux=True
      )(w)
      total, _ = _shared(gathered, s, t, mask, w)
      total, count, grads = lax.psum((total, count, grads), 'd')
      return total / count, grads / count

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ('d',))
    cut = P('d')
    run = jax.shard_map(
      on_device,
      mesh=mesh,
      in_specs=(cut, cut, cut, P()),
      out_specs=P(),
      check_vma=check,
    )
    got, grads = jax.jit(run)(s, t, mask, W)
    want, expected = jax.jit(jax.value_and_grad(alone))(W)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(grads, expected, rtol=1e-4, atol=1e-6)

  @parameterized.parameters(*RELATIONS)
  def test_padding_changes_nothing(self, name):
    loss = getattr(features, name)
    want, n, grads = by_oracle.run(loss, S, T)
    padded = [np.concatenate([x, np.full((3, 5), np.nan)]) for x in (S, T)]
    mask = np.arange(11) < 8
    total, count, more = by_oracle.run(loss, *padded, mask)
    np.testing.assert_allclose(total, want, rtol=1e-5)
    np.testing.assert_allclose(count, n)
    np.testing.assert_allclose(more[:8], grads, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(more[8:], 0)

  @parameterized.parameters(*RELATIONS)
  def test_other_examples_are_refused(self, name):
    with self.assertRaisesRegex(ValueError, 'examples|connector'):
      getattr(features, name)(jnp.asarray(S), jnp.asarray(T[:4]))

  def test_tuples_of_distinct_examples(self):
    counts = jnp.array([True, False, True, True])
    kept = examples.distinct(counts, 3)
    self.assertEqual(int(kept.sum()), 3 * 2 * 1)
    self.assertFalse(bool(kept[0, 0, 2] | kept[0, 1, 2] | kept[2, 0, 2]))


if __name__ == '__main__':
  absltest.main()
