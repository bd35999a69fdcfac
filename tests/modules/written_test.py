"""What functions change in modules is written back to them."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import module_nets as nets
import numpy as np

import jaxopt_compress as jc

X, call = nets.X, nets.call


class Inner(nnx.Module):
  """A module whose layers run in a transformation of Flax."""

  def __init__(self, rngs):
    self.a = nnx.Linear(8, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)

  @nnx.jit
  def __call__(self, x):
    return nnx.remat(lambda m, x: m.norm(m.a(x)))(self, x)


class WrittenTest(parameterized.TestCase):
  def test_values_of_several_arguments(self):
    """Also of `nnx.Rngs`, of lists of modules, and of what two of them share."""

    def run(pair, x, *, rngs):
      a, b = pair
      for m in (a, b):
        x = m.layers[0](x) + jax.random.normal(rngs(), x.shape)
      b.seen[...] += 1
      return x, a.seen[...]

    def made(quantised):
      model = nets.Net(nnx.Rngs(0))
      q, dense = nets.quantized(model)
      a = q if quantised else dense
      b = nnx.clone(a)
      a.seen = b.seen = nnx.Variable(jnp.zeros(()))
      return (a, b), nnx.Rngs(3)

    pair, rngs = made(True)
    want_pair, want_rngs = made(False)
    for n in (1, 2):
      got, seen = jc.lift(run)(pair, X, rngs=rngs)
      want, _ = run(want_pair, X, rngs=want_rngs)
      np.testing.assert_allclose(got, want, atol=1e-5)
      self.assertEqual(float(seen), n)
    self.assertIs(pair[0].seen, pair[1].seen)
    self.assertEqual(
      int(rngs.default.count[...]), int(want_rngs.default.count[...])
    )

  def test_a_module_comes_back_as_itself(self):
    q, _ = nets.quantized(nets.Net(nnx.Rngs(0)))
    y, same = jc.lift(lambda m, x: (m(x), m.layers[0]))(q, X)
    self.assertIs(same, q.layers[0])
    self.assertEqual(y.shape, (4, 6))

  def test_transformations_of_flax_inside(self):
    """They give back all weights: those that they did not change stay codes."""
    q, dense = nets.quantized(Inner(nnx.Rngs(0)))
    for _ in range(2):
      np.testing.assert_allclose(q(X), dense(X), atol=1e-5)
    self.assertTrue(jc.is_compressed(q.a.kernel.get_value()))
    mean = q.norm.mean[...]
    self.assertGreater(float(jnp.abs(mean).max()), 0)
    np.testing.assert_allclose(mean, dense.norm.mean[...], atol=1e-6)
    q.eval(), dense.eval()
    got = jax.jit(lambda x: q(x))(X)  # nothing changes, so nothing is written
    np.testing.assert_allclose(got, dense(X), atol=1e-5)

  def test_a_weight_that_is_written_is_refused(self):
    def scale(model, x):
      model.table[...] = 2 * model.table[...]
      return x @ model.table

    q, _ = nets.quantized(nets.Net(nnx.Rngs(0)))
    with self.assertRaisesRegex(ValueError, r'^table is compressed.*jc\.hoist'):
      jc.lift(scale)(q, X)
    self.assertTrue(jc.is_compressed(q.table.get_value()))

  def test_weights_that_a_layer_normalises_are_refused(self):
    """What it writes depends on a flag, and goes through its Variables."""
    rngs = nnx.Rngs(0)
    norm = nnx.SpectralNorm(nnx.Linear(8, 8, rngs=rngs), rngs=rngs)
    rules = [('layer_instance/kernel', 'W8A16'), ('.*', None)]
    q = jc.quantize(norm, rules)
    with self.assertRaisesRegex(ValueError, 'kernel is compressed.*writes'):
      q(X, update_stats=False)

  def test_a_variable_that_is_written_as_an_argument_is_refused(self):
    def scale(model, bias):
      bias[...] = 2 * bias[...]
      return X @ model.table

    q, _ = nets.quantized(nets.Net(nnx.Rngs(0)))
    with self.assertRaisesRegex(ValueError, 'is an argument is written'):
      jc.lift(scale)(q, nnx.Param(jnp.ones(8)))

  def test_a_change_from_inside_another_trace_is_refused(self):
    """As Flax refuses it of the dense module."""
    q, dense = nets.quantized(nets.Net(nnx.Rngs(0)))
    for m in (q, dense):
      with self.assertRaisesRegex(Exception, 'trace level'):
        jax.jit(lambda x, m=m: m(x))(X)

  def test_results_stay_leaves_if_asked(self):
    q, _ = nets.quantized(nets.Net(nnx.Rngs(0)))
    f = lambda m: m.table.T
    self.assertFalse(jc.is_compressed(jc.lift(f)(q)))
    self.assertTrue(jc.is_compressed(jc.lift(f, keep=True)(q)))


if __name__ == '__main__':
  absltest.main()
