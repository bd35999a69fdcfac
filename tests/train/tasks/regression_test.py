"""Numbers as answers: metrics over batches, and targets that are standardised."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.train.tasks import errors
from jaxopt_compress.train.tasks import regression

RNG = np.random.default_rng(0)
# Far from 0, as years are: float32 squares of them tell nothing of their differences.
T = 20_000 + RNG.normal(size=(12, 2)) * [1.0, 30.0]
Y = T + RNG.normal(size=(12, 2)) * [0.1, 20.0]


def of_batches(metric, y, t):
  """The metric of batches of 5, of which the last is padded."""
  found = []
  for begin in range(0, 12, 5):
    i = np.minimum(np.arange(begin, begin + 5), 11)
    mask = np.broadcast_to(
      (np.arange(begin, begin + 5) < 12).reshape(5, *[1] * (t.ndim - 1)),
      t[i].shape,
    )
    sums = metric.sums(jnp.float32(y[i]), jnp.float32(t[i]), jnp.array(mask))
    found.append([np.asarray(x, float) for x in sums])
  return metric.finish(*map(sum, zip(*found, strict=True)))


def task(targets, standardize=False):
  scale = regression.scale_of(targets)
  return regression.regression(errors.mse, 'mse', scale, standardize)


class RegressionTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_metrics(self, one):
    y, t = (Y[:, 1:], T[:, 1]) if one else (Y, T)
    e = (y[:, 0] - t) if one else y - t
    around = ((t - t.mean(0)) ** 2).sum(0)
    expected = {
      'rmse': np.sqrt((e**2).mean()),
      'mae': np.abs(e).mean(),
      'r2': np.mean(1 - (e**2).sum(0) / around),
    }
    for name, metric in task(t).metrics.items():
      np.testing.assert_allclose(
        of_batches(metric, y, t), expected[name], rtol=5e-3, err_msg=name
      )
      self.assertEqual(metric.higher_is_better, name == 'r2')

  def test_standardised_loss(self):
    t = task(T, standardize=True)
    found = t.loss(jnp.float32(Y), jnp.float32(T), None)
    expected = (((Y - T) / T.std(0)) ** 2).sum()
    np.testing.assert_allclose(found[0], expected, rtol=5e-3)
    self.assertEqual(t.loss_name, 'mse of standardised targets')

  def test_answers_are_in_the_units_of_targets(self):
    def apply(z):
      return z, {}, {}

    z = np.float32(RNG.normal(size=(3, 2)))
    y, *_ = regression.standardized(regression.scale_of(T), apply)(z)
    np.testing.assert_allclose(y, T.mean(0) + T.std(0) * z, rtol=1e-5)
    one = regression.standardized(regression.scale_of(T[:, 0]), apply)
    y, *_ = one(z[:, :1])
    np.testing.assert_allclose(
      y, T[:, 0].mean() + T[:, 0].std() * z[:, :1], rtol=1e-5
    )

  def test_answers_of_few_bits(self):
    z = jnp.bfloat16([[0.5], [-0.5]])
    scale = regression.Scale(np.float32(20_000), np.float32(3))
    y, *_ = regression.standardized(scale, lambda z: (z, {}, {}))(z)
    np.testing.assert_array_equal(y[:, 0], [20_001.5, 19_998.5])

  def test_targets_of_one_number(self):
    t = np.full((12,), 3.0)
    self.assertEqual(float(regression.scale_of(t).std), 1.0)
    r2 = of_batches(task(t).metrics['r2'], t + 1, t)
    self.assertEqual(r2, -np.inf)


if __name__ == '__main__':
  absltest.main()
