from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

import jaxopt_compress as jc


class OwnSizesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('mean', lambda h: h.mean(-1)),
    ('softmax', lambda h: jax.nn.softmax(h) @ jnp.ones((h.shape[-1], 2))),
    ('sum of sigmoids', lambda h: jax.nn.sigmoid(h).sum(-1)),
    ('root', lambda h: (h @ h.T) * h.shape[-1] ** -0.5),
    ('root of an array', lambda h: (h @ h.T) / jnp.sqrt(h.shape[-1])),
    ('root behind a sum', lambda h: (h @ h.T + 1) / h.shape[-1] ** 0.5),
    ('divided before', lambda h: (h / h.shape[-1]).sum(-1)),
    ('0 / 0', lambda h: (h / jnp.tanh(h)).sum(-1)),
    ('0 log 0', lambda h: (h * jnp.log(h)).sum(-1)),
    ('1 / root', lambda h: (h * jax.lax.rsqrt(h)).sum(-1)),
    ('norm', lambda h: jnp.linalg.norm(h, axis=0).sum()),
    ('deviation', lambda h: h.std(0).sum()),
    ('power below 1', lambda h: (h**0.75).sum(-1)),
    ('n // 4', lambda h: (h @ h.T) / (h.shape[-1] // 4 + 1)),
    ('min', lambda h: (h @ h.T) / min(h.shape[-1], 5)),
    ('branch', lambda h: (h if h.shape[-1] < 7 else jnp.tanh(h)).sum(-1)),
    (
      'dropout',
      lambda h: (h * jax.random.bernoulli(jax.random.key(0), 0.5, h.shape)).sum(
        -1
      ),
    ),
  )
  def test_not_exact(self, rest):
    p, x = {'a': jnp.ones((3, 6))}, jnp.ones((5, 3))
    found = jc.structure(lambda p, x: rest(x @ p['a']))(p, x)
    self.assertNotEmpty(found.groups['a:-1'].inexact)

  @parameterized.named_parameters(
    ('tanh', lambda h: jnp.tanh(h).sum(-1)),
    ('eps', lambda h: (h * jax.lax.rsqrt(h + 1e-5)).sum(-1)),
    ('power above 1', lambda h: (h**1.5).sum(-1)),
    ('product', lambda h: jax.nn.softplus(h) * h @ h.T),
  )
  def test_exact(self, rest):
    p, x = {'a': jnp.ones((3, 6))}, jnp.ones((5, 3))
    found = jc.structure(lambda p, x: rest(x @ p['a']))(p, x)
    self.assertEmpty(found.groups['a:-1'].inexact)

  def test_kinds_without_numbers_share_a_trace(self):
    p = {f'{n}': jnp.ones((n, n + 1)) for n in range(3, 9)}
    traces = []

    def f(p, x):
      traces.append(0)
      for w in p.values():
        x = jnp.tanh(x @ w)
      return x.reshape(-1, 9)

    found = jc.structure(f)(p, jnp.ones((2, 3)))
    self.assertLen(found.free, 5)
    self.assertLen(traces, 3)  # as it is, with more, with few

  def test_one_of_many_kinds_has_its_size(self):
    p = {f'{n}': jnp.ones((n, n + 1)) for n in range(3, 9)}

    def f(p, x):
      for name, w in p.items():
        x = jnp.tanh(x @ w)
        if name == '5':
          x = x.reshape(-1, 6)
      return x

    found = jc.structure(f)(p, jnp.ones((2, 3)))
    self.assertEqual([n for n, g in found.free.items() if g.fixed], ['5:-1'])

  def test_sizes_that_must_agree(self):
    # The features of keys and of values are apart, but this function wants one size.
    def attention(p, x):
      q, k, v = (jnp.einsum('btd,dhk->bthk', x, p[n]) for n in 'qkv')
      y = jax.nn.dot_product_attention(q, k, v)
      return jnp.einsum('bthk,hkd->btd', y, p['o'])

    p = {n: jnp.ones((3, 4, 8)) for n in 'qkv'} | {'o': jnp.ones((4, 8, 3))}
    found = jc.structure(attention)(p, jnp.ones((2, 5, 3)))
    fixed = {n: bool(g.fixed) for n, g in found.free.items()}
    self.assertEqual(fixed, {'k:-2': False, 'k:-1': True, 'o:-2': True})

  @parameterized.named_parameters(
    # one channel more does not fit, or becomes one more for each of the heads
    (
      'refused',
      lambda y: y.reshape(5, 2, 4),
      'cannot reshape.*(5, 2, 4)',
      True,
    ),
    ('another', lambda y: y.reshape(5, 2, -1), 'it has other groups', True),
    ('taken', lambda y: y.reshape(5, -1, 4), 'cannot reshape', False),
  )
  def test_sizes_of_the_program(self, cut, why, both):
    def fun(p, x):
      return jnp.tanh(cut(x @ p['a'])).reshape(5, -1) @ p['b']

    p = {'a': jnp.ones((3, 8)), 'b': jnp.ones((8, 2))}
    found = jc.structure(fun)(p, jnp.ones((5, 3)))
    heads, within = found.free.values()
    self.assertEqual((heads.size, within.size), (2, 4))
    self.assertEqual(bool(heads.fixed), both)
    if both:
      self.assertRegex(heads.fixed, why)
    self.assertIn('build the model again', str(found))

  def test_a_slice_of_a_computed_size(self):
    # With one channel more in what is left, the first quarter is as large.
    def fun(p, x):
      h = x @ p['a']
      return h @ p['b'] + h[:, : h.shape[-1] // 4].sum(-1, keepdims=True)

    p = {'a': jnp.ones((3, 8)), 'b': jnp.ones((8, 2))}
    first, rest = jc.structure(fun)(p, jnp.ones((5, 3))).free.values()
    self.assertEqual((first.size, rest.size), (2, 6))
    self.assertIn('with one channel more', first.fixed)
    self.assertIn('with 2 channels', rest.fixed)

  def test_where_a_slice_begins(self):
    # Indices that may count from the end are counted with the sizes of all axes.
    def fun(p, x):
      body = lambda i, x: x + jnp.tanh(x @ p['a'][i]) @ p['b'][i]
      return jax.lax.fori_loop(0, 2, body, x)

    p = {'a': jnp.ones((2, 3, 6)), 'b': jnp.ones((2, 6, 3))}
    (group,) = jc.structure(fun)(p, jnp.ones((5, 3))).free.values()
    self.assertEqual((group.size, group.inexact, group.fixed), (6, (), ''))


if __name__ == '__main__':
  absltest.main()
