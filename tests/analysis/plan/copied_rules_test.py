"""Operations in the middle of a network whose channels are there twice.

y = f(x a) c        a' = a twice, c' = c / 2 twice:  y' = y, or why not is said
"""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

A, C = (
  jax.random.normal(jax.random.key(i), s)
  for i, s in enumerate([(3, 4), (4, 2)])
)
X = jax.random.normal(jax.random.key(2), (5, 3))
UNEVEN = np.array([0, 1, 2, 3, 3, 0, 3])
EVEN = np.arange(8) % 4


def conv(h):
  window = jnp.ones((2, 1, h.shape[-1]))
  dims = ('NHC', 'HIO', 'NHC')
  return lax.conv_general_dilated(
    h[None],
    window,
    (1,),
    'SAME',
    dimension_numbers=dims,
    feature_group_count=h.shape[-1],
  )[0]


# Of each: whether copies that are not there equally often keep the function, and
# whether those that are do.
MIDDLE = {
  'tanh': (jnp.tanh, True, True),
  'relu': (jax.nn.relu, True, True),
  'clip': (lambda h: jnp.clip(h, -0.5, 0.5), True, True),
  'gate': (lambda h: h * jax.nn.sigmoid(h), True, True),
  'transpose': (lambda h: jnp.sin(h.T).T, True, True),
  'join': (lambda h: jnp.concatenate([h, -h], 0)[2:7], True, True),
  'pad': (lambda h: jnp.pad(h, ((1, 0), (0, 0)))[:5], True, True),
  'stack': (lambda h: jnp.stack([h, 2 * h]).sum(0), True, True),
  'choice': (lambda h: jnp.where(h > 0, h, 0.1 * h), True, True),
  'gather': (lambda h: h[jnp.array([4, 0, 1, 2, 3])], True, True),
  'write': (lambda h: h.at[1].set(0.0), True, True),
  'power': (lambda h: (h**2 + 1.0) ** 0.5, True, True),
  'cumulate': (lambda h: jnp.cumsum(h, 0), True, True),
  'depthwise': (conv, True, True),
  'maximum over': (lambda h: h - h.max(-1, keepdims=True), True, True),
  'mean over': (lambda h: h - h.mean(-1, keepdims=True), False, True),
  'sum over': (lambda h: jnp.tanh(h.sum(-1, keepdims=True)) + h, False, False),
  'softmax': (jax.nn.softmax, False, True),
  'l2 norm': (
    lambda h: h / jnp.sqrt((h * h).sum(-1, keepdims=True)),
    True,
    True,
  ),
}


class CopiedRulesTest(parameterized.TestCase):
  @parameterized.parameters(*MIDDLE)
  def test_kept_or_said(self, name):
    middle, *kept = MIDDLE[name]
    fun = lambda p, x: middle(x @ p['a']) @ p['c']
    params = {'a': A, 'c': C}
    structure = jc.structure(fun)(params, X)
    for source, keeps in zip((UNEVEN, EVEN), kept, strict=True):
      plan = jc.Plan(structure, {'a:-1': source})
      if not keeps:
        with self.assertRaisesRegex(ValueError, 'keep the function'):
          jc.grow(plan, params)
        continue
      got = fun(jc.grow(plan, params, key=jax.random.key(3)), X)
      np.testing.assert_allclose(got, fun(params, X), rtol=1e-5, atol=2e-6)


if __name__ == '__main__':
  absltest.main()
