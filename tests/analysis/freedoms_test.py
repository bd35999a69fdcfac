"""Freedoms of whole models: random factors on all leave them what they were."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models
from jaxopt_compress.analysis import freedoms as freedoms_lib
from jaxopt_compress.core import rules

_RNG = np.random.default_rng(0)


def _w(*shape):
  return jnp.asarray(_RNG.normal(size=shape), jnp.float32)


def _relu(p, x):
  return jax.nn.relu(x @ p['a'] + p['c']) @ p['b']


RELU = dict(a=(4, 6), c=(1, 6), b=(6, 3))


def _attention(p, x):
  q, k, v = (jnp.einsum('bti,ihd->bthd', x, p[n]) for n in 'qkv')
  a = jax.nn.softmax(jnp.einsum('bthd,bshd->bhts', q, k))
  return jnp.einsum(
    'bthd,hdo->bto', jnp.einsum('bhts,bshd->bthd', a, v), p['o']
  )


class RescalingsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('resnet', dict(widths=(8, 16)), (2, 8, 8, 1), 120),
    ('cnn', dict(), (2, 8, 8, 1), 96),
    ('vit', dict(), (2, 8, 8, 1), 1088),
    # In each of 4 layers two gains and the values (256 each), pairs of queries and
    # keys that a rotation mixes (128), and what the gate multiplies (704).
    ('decoder', dict(vocab=50), (2, 16), 6400),
  )
  def test_models(self, name, kwargs, shape, num):
    f = models.functional(models.build(name, **kwargs))
    params = {'params': f.params, 'variables': f.variables}
    params = rules.map_named(
      lambda path, x: (
        (x + jnp.asarray(_RNG.uniform(0.2, 1.0, x.shape), x.dtype))
        if path.endswith(('mean', 'var', 'bias', 'scale'))
        else x
      ),
      params,
    )
    apply = lambda p, x: f.apply(p['params'], p['variables'], x)[0]
    x = _w(*shape)
    if name == 'decoder':
      x = jnp.asarray(_RNG.integers(0, 50, shape))
    freedoms = jc.analysis.rescalings(apply)(params, x)
    self.assertEqual(freedoms.num, num)
    moved = freedoms.apply(params, 0.5 * _RNG.normal(size=num))
    want, got = apply(params, x), apply(moved, x)
    np.testing.assert_allclose(got, want, atol=5e-5 * np.abs(want).max())

  def test_statistics_outside_the_parameters_allow_nothing(self):
    f = models.functional(models.build('cnn'))
    apply = lambda p, v, x: f.apply(p, v, x)[0]
    freedoms = jc.analysis.rescalings(apply)(
      f.params, f.variables, _w(2, 8, 8, 1)
    )
    moved = freedoms.apply(f.params, np.ones(freedoms.num))
    x = _w(2, 8, 8, 1)
    np.testing.assert_allclose(
      apply(moved, f.variables, x), apply(f.params, f.variables, x), atol=1e-5
    )
    np.testing.assert_array_equal(
      moved['convs']['0']['kernel'], f.params['convs']['0']['kernel']
    )

  def test_abstract_arguments(self):
    like = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    params = {**dict.fromkeys('qkv', like(4, 2, 3)), 'o': like(2, 3, 4)}
    self.assertEqual(
      jc.analysis.rescalings(_attention)(params, like(2, 5, 4)).num, 12
    )

  def test_bfloat16_keeps_its_type(self):
    params = {k: _w(*s).astype(jnp.bfloat16) for k, s in RELU.items()}
    x = _w(5, 4).astype(jnp.bfloat16)
    freedoms = jc.analysis.rescalings(_relu)(params, x)
    # Powers of two are exact in any float.
    logs = np.log(2.0) * _RNG.integers(-3, 4, 6)
    moved = freedoms.apply(params, logs)
    self.assertEqual(moved['a'].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(
      _relu(moved, x).astype(jnp.float32), _relu(params, x).astype(jnp.float32)
    )


class ComponentsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    dict(testcase_name='none', edges=[], want=[0, 1, 2, 3, 4, 5]),
    dict(
      testcase_name='a path, from its end',
      edges=[(5, 4), (4, 3), (3, 2), (2, 1), (1, 0)],
      want=[0] * 6,
    ),
    dict(
      testcase_name='a star around the largest',
      edges=[(5, i) for i in range(5)],
      want=[0] * 6,
    ),
    dict(
      testcase_name='two, with loops and doubles',
      edges=[(1, 1), (1, 3), (3, 1), (5, 3), (2, 4)],
      want=[0, 1, 2, 1, 2, 1],
    ),
  )
  def test_least_of_each(self, edges, want):
    a, b = np.array(edges, int).reshape(-1, 2).T
    np.testing.assert_array_equal(freedoms_lib.components(6, a, b), want)

  def test_against_flooding(self):
    edges = _RNG.integers(0, 400, (300, 2))
    want = np.arange(400)
    for _ in range(400):
      for a, b in edges:
        want[a] = want[b] = min(want[a], want[b])
    got = freedoms_lib.components(400, *edges.T)
    np.testing.assert_array_equal(got, want)


if __name__ == '__main__':
  absltest.main()
