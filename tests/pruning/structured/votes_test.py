from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.pruning.structured import votes


class VotesTest(parameterized.TestCase):
  @parameterized.parameters('mean', 'sum')
  def test_channels_that_an_axis_has_several_times(self, entries):
    #  [4 x 6]: two heads of three, beside each other, of two inputs that stay
    def fused(p, x):
      q, k = (y.reshape(1, 2, 3) for y in jnp.split(x @ p, 2, -1))
      return jnp.einsum('thd,shd->hts', q, k).sum(0)

    w = np.arange(24.0).reshape(2, 12)
    found = jc.structure(fused)(w, jnp.ones((1, 2)))
    apart = w.reshape(2, 2, 2, 3)  # [in, q or k, head, d]
    reduce = getattr(np, entries)
    want = {2: reduce(apart, (0, 1, 3)), 6: reduce(apart, (0, 1))}
    got = dict(votes.by_group(found, '', jnp.asarray(w), entries))
    self.assertLen(got, 2)
    for x in got.values():
      np.testing.assert_allclose(x, want[x.size], rtol=1e-6)

  def test_no_votes(self):
    fun = lambda p, x: jnp.cumsum(x @ p['a'], -1)
    p = {'a': jnp.ones((2, 3)), 'unused': jnp.ones(4)}
    found = jc.structure(fun)(p, jnp.ones((1, 2)))
    with self.assertRaisesRegex(
      ValueError, 'None of .*unused:-1.*; all other groups stay, and print'
    ):
      votes.put_together(found, [])

  def test_sharded_values_stay_where_they_are(self):
    mesh = jax.sharding.Mesh(jax.devices()[:4], ('d',))
    spec = jax.sharding.PartitionSpec('d')
    x = jax.device_put(jnp.ones((8, 3)), jax.sharding.NamedSharding(mesh, spec))
    text = votes._reduced.lower(x, ((1,), (0,)), False).compile().as_text()
    # Sums leave the devices.
    self.assertNotIn('all-gather', text)
    self.assertIn('all-reduce', text)


if __name__ == '__main__':
  absltest.main()
