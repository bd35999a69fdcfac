from absl.testing import absltest
import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis.layers import flat


def fun(x, y):
  z = jax.checkpoint(jax.nn.relu)(x * 2)
  _, dead = lax.scan(lambda c, a: (c, a + z), 0.0, y)
  return (z + y.sum(), dead[0])


class FlatTest(absltest.TestCase):
  def setUp(self):
    x, self.args = jnp.float32(3), [jnp.float32(3), jnp.arange(4.0)]
    self.made = flat.flatten(jax.make_jaxpr(fun)(x, self.args[1]))

  def test_calls_are_put_in_their_place(self):
    names = [step.eqn.primitive.name for step in self.made.steps]
    self.assertEqual(names[:2], ['mul', 'max'])
    self.assertIn('scan', names)
    self.assertLen(
      self.made.types, 2 + sum(len(s.outputs) for s in self.made.steps)
    )

  def test_run(self):
    got = flat.run(self.made, self.args, self.made.outputs)
    self.assertEqual([float(x) for x in got], [12.0, 6.0])
    got = jax.jit(lambda a: flat.run(self.made, a, self.made.outputs))(
      self.args
    )
    self.assertEqual([float(x) for x in got], [12.0, 6.0])

  def test_only_what_is_needed(self):
    steps = flat.live(self.made, self.made.outputs[:1])
    self.assertNotIn('scan', [s.eqn.primitive.name for s in steps])
    doubled, positive = (s.outputs[0] for s in self.made.steps[:2])
    instead = {positive: doubled, doubled: self.made.inputs[0]}
    steps = flat.live(self.made, [positive], instead)
    self.assertEmpty(steps)
    got = flat.run(self.made, self.args, self.made.outputs[:1], instead)
    self.assertEqual(float(got[0]), 9.0)


if __name__ == '__main__':
  absltest.main()
