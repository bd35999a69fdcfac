"""What the tests of observing share: data, layers, and what they meet."""

from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

_rng = np.random.default_rng(0)
X = _rng.normal(size=(8, 6)).astype(np.float32)
LAYERS = _rng.normal(size=(3, 6, 6)).astype(np.float32)


class Case(parameterized.TestCase):
  """Draws the same numbers whatever ran before."""

  def setUp(self):
    super().setUp()
    global _rng
    _rng = np.random.default_rng(0)


def rand(*shape):
  return jnp.asarray(_rng.normal(size=shape).astype(np.float32))


def observed(f, statistic, w, *args):
  """The statistic of the one weight of `f({'w': w}, *args)`."""
  _, stats = jax.jit(jc.observe(f, {'w': statistic}))({'w': w}, *args)
  return stats['w']


def close(got, want):
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-4)


def mesh():
  return jax.sharding.Mesh(np.array(jax.devices()), ('d',))


def hidden(ws):
  """What each layer of tanh(h w) meets."""
  h, met = X, []
  for w in ws:
    met.append(h)
    h = np.tanh(h @ w)
  return met


def scan(p, x, wrap=lambda f: f):
  layer = wrap(lambda h, w: jnp.tanh(h @ w))
  return lax.scan(lambda h, w: (layer(h, w), None), x, p['w'])[0]


def conv(w, x):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(
    x, w, (1, 1), 'SAME', dimension_numbers=numbers
  )
