from absl.testing import absltest
import jax
import jax.numpy as jnp

from jaxopt_compress.analysis.layers import cuts
from jaxopt_compress.analysis.layers import flat
from jaxopt_compress.analysis.layers import overlay
from jaxopt_compress.analysis.layers import siblings

FAMILY = ('', 'w')


def kinds(fun, n):
  p = {f'w{i}': jnp.ones((4, 4)) for i in range(n)}
  closed = jax.make_jaxpr(fun)(p, jnp.ones((2, 4)))
  made = cuts.Program(flat.flatten(closed), list(p))
  found = cuts.between(made, lambda path: siblings.member(path, FAMILY), n)
  begins = [None, *(c[0] for c in found)]
  ends = [list(pair) for pair in zip(begins, [*found, []], strict=True)]
  got = overlay.kinds(made, FAMILY, list(range(n)), ends)
  return [members for members, _ in got], ends, made


class OverlayTest(absltest.TestCase):
  def test_ends_are_found(self):
    def fun(p, x):
      x = jnp.exp(x)
      for w in p.values():
        x = x + jnp.sin(x) @ w
      return jnp.tanh(x).sum()

    for n in (2, 4):
      found, ends, made = kinds(fun, n)
      self.assertEqual(found, [list(range(n))])
      names = {
        x: step.eqn.primitive.name
        for step in made.flat.steps
        for x in step.outputs
      }
      self.assertEqual(names[ends[0][0]], 'exp')
      self.assertEqual([names[x] for x in ends[-1][1]], ['add'])

  def test_kinds_take_turns(self):
    def fun(p, x):
      for i, w in enumerate(p.values()):
        x = x + (jnp.sin if i % 2 else jnp.cos)(x @ w)
      return x

    self.assertCountEqual(kinds(fun, 6)[0], [[0, 2, 4], [1, 3, 5]])


if __name__ == '__main__':
  absltest.main()
