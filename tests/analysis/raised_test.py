"""What models raise, and the line of theirs that does."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.analysis import raised


class Heads(nn.Module):
  """Four heads, whatever its parameters are."""

  features: int = 24

  @nn.compact
  def __call__(self, x):
    y = nn.Dense(self.features, name='up')(x)
    y = jnp.tanh(y.reshape(*x.shape[:-1], 4, 6))  # the size of its own
    return nn.Dense(2, name='down')(y.reshape(*x.shape[:-1], -1))


def _deep():
  raise ValueError('a first line.\nand another')


class RaisedTest(parameterized.TestCase):
  def test_line_of_the_user(self):
    for fun, line in (
      (_deep, r'a first line at .*raised_test.py:\d+ \(_deep\)'),
      (
        lambda: jnp.ones((2, 3)).reshape(5),
        r'reshape .* at .*raised_test.py:\d+ \(<lambda>\)',
      ),
    ):
      try:
        fun()
      except (TypeError, ValueError) as e:
        self.assertRegex(raised.said(e), line)

  def test_a_model_that_reshapes_by_a_constant(self):
    """Each step says the line, and the last one what is to be changed."""
    model, x = Heads(), jnp.ones((2, 5))
    params = model.init(jax.random.key(0), x)['params']

    def apply(p, x):
      y = x @ p['up']['kernel'] + p['up']['bias'][None]
      y = jnp.tanh(y.reshape(*x.shape[:-1], 4, 6))
      return y.reshape(*x.shape[:-1], -1) @ p['down']['kernel']

    found = jc.structure(apply)(params, x)
    (heads,) = (g for g in found.free.values() if g.size == 4)
    line = r'reshape.*raised_test.py:\d+ \(apply\)'
    self.assertRegex(heads.fixed, line)
    plan = jc.Plan(found, {heads.name: [0, 2]})
    self.assertRegex(str(plan), f'build the model again: .*{line}')
    small = jc.shrink(plan, params)
    with self.assertRaisesRegex(
      ValueError, f'{line}.*4 -> 2.*jc.analysis.config_delta'
    ):
      jc.analysis.fold_sizes(apply, plan)(small, x)
    # The config has its width, and not its heads.
    shapes = lambda m: jax.eval_shape(m.init, jax.random.key(0), x)['params']
    message = (
      r"With {'features': 12} .*raises: .*raised_test.py:2\d \(__call__\)"
    )
    with self.assertRaisesRegex(ValueError, message):
      jc.analysis.config_delta(shapes, model, plan)

  def test_without_the_address_that_flax_gives(self):
    error = ValueError('It is 3, not 4. (https://flax.org/errors#Shape)')
    self.assertEqual(raised.said(error), 'It is 3, not 4')


if __name__ == '__main__':
  absltest.main()
