"""What the walk asks for, of small programs."""

from absl.testing import absltest
from absl.testing import parameterized
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis.plan import shares


def looped(p, x):
  """A loop whose state begins as zeros, and is read at last."""

  def step(h, x):
    return jnp.tanh(x @ p['a'] + h @ p['b']), None

  h, _ = lax.scan(step, jnp.zeros((5, 4)), x[None].repeat(2, 0))
  return h @ p['c']


def branches(p, x):
  h = x @ p['a'] + p['b'][:1]
  return lax.cond(x.sum() > 0, jnp.tanh, jnp.sin, h) @ p['c']


class CopiedTest(parameterized.TestCase):
  @parameterized.parameters(looped, branches)
  def test_loops_and_branches(self, fun):
    p = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 4)), 'c': jnp.ones((4, 2))}
    structure = jc.structure(fun)(p, jnp.ones((5, 3)))
    got = shares.shares(structure, {'a:-1': np.array([0, 1, 2, 3, 3])})
    self.assertEqual(got.left, {})
    want = {('c', 0): 1.0} | ({('b', 0): 1.0} if fun is looped else {})
    self.assertEqual({k[:2]: v for k, v in got.powers.items()}, want)


if __name__ == '__main__':
  absltest.main()
