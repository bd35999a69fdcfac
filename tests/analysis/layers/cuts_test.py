import functools

from absl.testing import absltest
import jax
import jax.numpy as jnp

from jaxopt_compress.analysis.layers import cuts
from jaxopt_compress.analysis.layers import flat
from jaxopt_compress.analysis.layers import siblings

FAMILY = ('', 'w')


def program(fun, n=3):
  p = {f'w{i}': jnp.ones((4, 4)) for i in range(n)}
  closed = jax.make_jaxpr(fun)(p, jnp.ones((2, 4)))
  return cuts.Program(flat.flatten(closed), list(p))


def between(made, n=3):
  of = functools.partial(siblings.member, family=FAMILY)
  found = cuts.between(made, of, n)
  names = {
    x: step.eqn.primitive.name for step in made.flat.steps for x in step.outputs
  }
  return [[names[x] for x in values] for values in found]


class CutsTest(absltest.TestCase):
  def test_between(self):
    def chain(p, x):
      return jnp.tanh(jnp.tanh(x @ p['w0']) @ p['w1']) @ p['w2']

    def stream(p, x):
      for w in p.values():
        x = x + jnp.sin(x) @ w
      return x

    def skip(p, x):
      y = x @ p['w0']
      return jnp.tanh(y @ p['w1']) @ p['w2'] + y

    def beside(p, x):
      return sum(x @ w for w in p.values())

    for fun, want in (
      (chain, [['tanh', 'dot_general']] * 2),
      # What the first layer gets is made by none of them.
      (stream, [['add', 'dot_general'], ['add']]),
      (skip, [['dot_general'], []]),
      (beside, [[], []]),
    ):
      self.assertEqual(between(program(fun)), want)

  def test_a_loss_beside_the_stream(self):
    def fun(p, x):
      loss = 0.0
      for w in p.values():
        y = jnp.sin(x) @ w
        x, loss = x + y, loss + (y**2).mean()
      return x.sum() + loss

    want = [['add', 'dot_general'], ['add']]
    self.assertEqual(between(program(fun)), want)

  def test_bypassed(self):
    made = program(lambda p, x: jnp.tanh(x @ p['w0']) + x, 1)
    x = made.flat.inputs[-1]
    ends = [step.outputs[0] for step in made.flat.steps]
    bypassed = [cuts.bypassed(made, x, y) for y in ends]
    self.assertEqual(bypassed, [True, True, False])


if __name__ == '__main__':
  absltest.main()
