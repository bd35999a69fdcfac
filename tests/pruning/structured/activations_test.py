from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

KEY = jax.random.key(0)


def close(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-5)


def norm(batches, axes):
  """The score of the paper, of arrays of activations."""
  means = [np.abs(np.asarray(x, float)).mean(axes) for x in batches]
  return np.sqrt(np.square(means).sum(0))


class ActivationsTest(parameterized.TestCase):
  def test_neurons(self):
    k1, k2 = jax.random.split(KEY)
    p = {'a': jax.random.normal(k1, (3, 4)), 'b': jnp.ones((4, 2))}
    batches = [jax.random.normal(k, (5, 3)) for k in jax.random.split(k2, 3)]
    hidden = lambda p, x: jax.nn.relu(x @ p['a'])
    f = lambda p, x: hidden(p, x) @ p['b']
    found = jc.structure(f)(p, batches[0])
    got = jc.pruning.activations(
      found, f, p, batches, balanced=False, normalize='none'
    )
    close(got['a:-1'], norm([hidden(p, x) for x in batches], 0))

  def test_heads(self):
    #  two projections read the heads: [h, k, d] and, flat, [h * k, d]
    w = jax.random.normal(KEY, (4, 2, 3))
    p = {'v': w, 'o': jnp.ones((2, 3, 5)), 'flat': jnp.ones((6, 5))}

    def f(p, x):
      v = jnp.einsum('td,dhk->thk', x, p['v'])
      out = jnp.einsum('thk,hkd->td', v, p['o'])
      return out + v.reshape(-1, 6) @ p['flat']

    x = jax.random.normal(KEY, (7, 4))
    found = jc.structure(f)(p, x)
    got = jc.pruning.activations(
      found, f, p, [x], members='max', balanced=False, normalize='none'
    )
    v = jnp.einsum('td,dhk->thk', x, w)
    by_size = {x.size: x for x in got.values()}
    close(by_size[2], norm([v], (0, 2)))
    close(by_size[6], norm([v], 0))

  def test_scanned_layers(self):
    p = {
      'up': jax.random.normal(KEY, (2, 3, 4)),
      'down': jax.random.normal(KEY, (2, 4, 3)),
    }

    def f(p, x):
      layer = lambda x, p: (x + jnp.tanh(x @ p['up']) @ p['down'], None)
      return jax.lax.scan(layer, x, p)[0]

    x = jax.random.normal(KEY, (6, 3))
    found = jc.structure(f)(p, x)
    got = jc.pruning.activations(
      found, f, p, [x], balanced=False, normalize='none'
    )
    first = jnp.tanh(x @ p['up'][0])
    second = jnp.tanh((x + first @ p['down'][0]) @ p['up'][1])
    each = np.stack([norm([first], 0), norm([second], 0)])
    close(got['down:-2'], each)
    alike = jc.pruning.activations(
      found, f, p, [x], within='', balanced=False, normalize='none'
    )
    close(alike['down:-2'], each.mean(0))

  def test_convolution(self):
    p = {'a': jax.random.normal(KEY, (1, 1, 2, 3)), 'b': jnp.ones((1, 1, 3, 2))}
    conv = lambda x, w: jax.lax.conv_general_dilated(
      x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    hidden = lambda p, x: jax.nn.relu(conv(x, p['a']))
    f = lambda p, x: conv(hidden(p, x), p['b'])
    x = jax.random.normal(KEY, (2, 4, 4, 2))
    found = jc.structure(f)(p, x)
    got = jc.pruning.activations(found, f, p, [x], normalize='max')
    want = norm([hidden(p, x)], (0, 1, 2))
    close(got['a:-1'], want / want.max())

  @parameterized.named_parameters(
    ('nothing', [], 'no batch'),
    ('nan', [jnp.full((1, 3), jnp.nan)], 'b meets is not finite at 4 of 4'),
  )
  def test_refused(self, batches, message):
    p = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}
    f = lambda p, x: x @ p['a'] @ p['b']
    found = jc.structure(f)(p, jnp.ones((1, 3)))
    with self.assertRaisesRegex(ValueError, message):
      jc.pruning.activations(found, f, p, batches)

  def test_nobody_reads(self):
    f = lambda p, x: x @ p['a']
    found = jc.structure(f)({'a': jnp.ones((3, 4))}, jnp.ones((1, 3)))
    with self.assertRaisesRegex(ValueError, 'No product reads'):
      jc.pruning.activations(
        found, f, {'a': jnp.ones((3, 4))}, [jnp.ones((1, 3))]
      )


if __name__ == '__main__':
  absltest.main()
