"""Teachers teach and do not learn."""

from absl.testing import absltest
from absl.testing import parameterized
import doubled
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import lift
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import teachers


class TeachersTest(parameterized.TestCase):
  def test_no_gradient_through_a_frozen_teacher(self):
    apply = lambda w, x, *, train: (w * x, {'features': w + train})
    teacher = teachers.frozen(apply, train=False)
    y, out = teacher(2.0, 3.0)
    self.assertEqual((float(y), float(out['features'])), (6.0, 2.0))
    for i in (0, 1):
      grad = jax.grad(lambda *args: teacher(*args)[0], argnums=i)(2.0, 3.0)
      self.assertEqual(float(grad), 0.0)

  def test_a_compressed_teacher_under_jit(self):
    def apply(params, variables, x):
      return x @ params['w'] + variables['shift'], {'x': x}

    w = doubled.Doubled(jnp.array([[1.0], [2.0]]))
    teacher = teachers.frozen(lift.lift(apply))

    @jax.jit
    def loss(shift, x):
      y, _ = teacher({'w': w}, {'shift': shift}, x)
      return jnp.sum(y * shift)

    x, shift = jnp.array([[1.0, 3.0]]), jnp.float32(10.0)
    self.assertEqual(float(loss(shift, x)), (2 + 12 + 10) * 10)
    # Of y * shift only the factor outside the teacher has a derivative.
    self.assertEqual(float(jax.grad(loss)(shift, x)), 24.0)
    self.assertEqual(jax.grad(loss, 1)(shift, x).tolist(), [[0.0, 0.0]])

  def test_its_mode_cannot_be_overridden(self):
    teacher = teachers.frozen(lambda w, train: w, train=False)
    with self.assertRaisesRegex(ValueError, 'leave out'):
      teacher(1.0, train=True)

  @parameterized.parameters(1.0, 4.0)
  def test_an_ensemble_is_the_mean_distribution(self, temperature):
    keys = jax.random.split(jax.random.key(0), 3)
    logits = [jax.random.normal(k, (5, 7)) for k in keys]
    got = teachers.ensemble(logits, temperature=temperature)
    want = np.mean([jax.nn.softmax(x / temperature) for x in logits], axis=0)
    np.testing.assert_allclose(
      jax.nn.softmax(got / temperature), want, rtol=1e-5
    )

  def test_an_ensemble_of_one_is_that_teacher(self):
    t = jax.random.normal(jax.random.key(0), (5, 7))
    total, _ = losses.kl(teachers.ensemble([t]), t)
    np.testing.assert_allclose(total, 0, atol=1e-5)

  def test_what_no_teacher_allows(self):
    t = jnp.array([[0.0, 1.0, -jnp.inf]])
    got = teachers.ensemble([t, 2 * t])
    self.assertEqual(float(got[0, 2]), -np.inf)
    self.assertTrue(np.isfinite(losses.kl(t, got)[0]))

  def test_an_ensemble_has_one_shape(self):
    with self.assertRaisesRegex(ValueError, 'one shape'):
      teachers.ensemble([jnp.ones((2, 3)), jnp.ones((2, 4))])

  def test_moving_average(self):
    teacher = {'n': jnp.int32(1), 'w': jnp.array([1.0, 0.0])}
    student = {'n': jnp.int32(5), 'w': jnp.array([0.0, 1.0])}
    got = jax.jit(teachers.moving_average)(teacher, student, 0.9)
    np.testing.assert_allclose(got['w'], [0.9, 0.1], rtol=1e-6)
    self.assertEqual(int(got['n']), 5)

  @parameterized.parameters(2, -0.1, float('nan'))
  def test_shares_that_are_none(self, decay):
    with self.assertRaisesRegex(ValueError, f'decay={decay}: .* between 0'):
      teachers.moving_average(1.0, 2.0, decay)

  @parameterized.parameters((1.0, 'teacher'), (0.0, 'student'))
  def test_who_has_no_weight_has_no_part(self, decay, who):
    trees = {'student': jnp.array([5.0]), 'teacher': jnp.array([6.0])}
    want = trees[who]
    trees = {
      name: x if name == who else x * jnp.nan for name, x in trees.items()
    }
    for f in (teachers.moving_average, jax.jit(teachers.moving_average)):
      self.assertEqual(f(trees['teacher'], trees['student'], decay), want)

  def test_a_moving_average_of_compressed_leaves(self):
    a, b = ({'w': doubled.Doubled(jnp.array([x]))} for x in (1.0, 3.0))
    got = teachers.moving_average(a, b, 0.75)['w']
    self.assertEqual(got.tolist(), [3.0])  # .75 * 2 + .25 * 6


if __name__ == '__main__':
  absltest.main()
