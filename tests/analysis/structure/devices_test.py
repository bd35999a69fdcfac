"""Channels on several devices: (device, place), as many places on each."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis.plan import plan as plan_lib

COLUMNS = {'a': P(None, 'm'), 'b': P('m')}


def _tanh(p, x):
  return jnp.tanh(x @ p['a'])


def _gathered(p, x):
  a = lax.all_gather(p['a'], 'm', axis=1, tiled=True)
  b = lax.all_gather(p['b'], 'm', axis=0, tiled=True)
  return lax.pmean(jnp.tanh(x @ a) @ b, 'm')


def _scattered(p, x):
  h = lax.psum_scatter(_tanh(p, x), 'm', scatter_dimension=1, tiled=True)
  rows = lax.psum_scatter(p['b'], 'm', scatter_dimension=0, tiled=True)
  return lax.psum(h @ rows, 'm')


def _exchanged(p, x):
  # Two products that take turns: rows are apart, then columns.
  h = lax.all_to_all(_tanh(p, x), 'm', 0, 1, tiled=True)
  h = lax.all_to_all(jnp.tanh(h), 'm', 1, 0, tiled=True)
  return lax.psum(h @ p['b'], 'm')


# body, the specs of the parameters, how many channels go together, and whether each
# device may keep others
CASES = {
  'columns': (
    lambda p, x: lax.psum(_tanh(p, x) @ p['b'], 'm'),
    COLUMNS,
    4,
    True,
  ),
  'replicated': (lambda p, x: _tanh(p, x) @ p['b'], P(), 8, False),
  'gathered': (_gathered, COLUMNS, 4, False),
  'scattered': (_scattered, P(), 4, True),
  'exchanged': (_exchanged, COLUMNS, 4, False),
  'passed on': (
    lambda p, x: lax.psum(
      lax.ppermute(_tanh(p, x), 'm', [(0, 1), (1, 0)]) @ p['b'], 'm'
    ),
    COLUMNS,
    4,
    False,
  ),
  'added up': (
    lambda p, x: lax.psum(lax.psum(_tanh(p, x), 'm') @ p['b'], 'm'),
    COLUMNS,
    4,
    False,
  ),
}


class StructureDevicesTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_masked_is_shrunk(self, name):
    body, specs, size, each = CASES[name]
    mesh = jax.make_mesh(
      (2,), ('m',), devices=jax.devices()[:2], axis_types=(AxisType.Auto,)
    )
    fun = jax.jit(
      jax.shard_map(
        body, mesh=mesh, in_specs=(specs, P()), out_specs=P(), check_vma=False
      )
    )
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    p, x = {'a': draw(3, 8), 'b': draw(8, 2)}, draw(4, 3)
    found = jc.structure(fun)(p, x)
    (group,) = found.free.values()
    self.assertEqual((group.size, group.fixed), (size, ''))
    self.assertEqual(bool(group.within), each)
    sources = [[1, 2], [0, 3]] if each else [1, 2]
    plan = plan_lib.Plan(found, {group.name: sources})
    np.testing.assert_allclose(
      fun(plan.mask(p), x), fun(plan.apply(p), x), rtol=1e-5
    )
    if size < 8 and specs == COLUMNS:
      self.assertIn('one for each device of m', str(found))

  def test_pmap(self):
    fun = lambda p, x: jax.pmap(lambda x: x @ p['a'] @ p['b'])(x)
    p = {'a': jnp.ones((3, 8)), 'b': jnp.ones((8, 2))}
    found = jc.structure(fun)(p, jnp.ones((jax.device_count(), 4, 3)))
    self.assertEqual({g.size for g in found.free.values()}, {8})


if __name__ == '__main__':
  absltest.main()
