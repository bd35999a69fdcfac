"""A model of a config, taken apart without computing anything."""

import contextlib
import io

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.train import model as model_lib
from tests.models.own import networks

X = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)


class ModelTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # The name in the config is not the module's.
    asked = dict(name='mlp', in_features=64, widths=(8,))
    cls.model = model_lib.build('small', asked, X)

  def test_init_is_what_was_promised(self):
    params, variables = self.model.init(0)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, self.model.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      variables, self.model.variables
    )
    chex.assert_trees_all_equal(params, self.model.init(0)[0])
    other = self.model.init(1)[0]['layers']['0']['kernel']
    self.assertTrue((params['layers']['0']['kernel'] != other).any())

  def test_forward(self):
    params, variables = self.model.init(0)
    x = np.ones(X.shape, np.float32)
    y = self.model.forward(params, variables, x)
    self.assertEqual((self.model.name, y.shape), ('small', (4, 10)))
    self.assertEqual(self.model.answers.shape, y.shape)
    np.testing.assert_allclose(
      y, self.model.apply(params, variables, x)[0], rtol=1e-6
    )

  def test_uses(self):
    self.assertIn('layers/0/kernel', self.model.uses)

  @parameterized.parameters(
    (dict(widht=(8,)), "mlp has no 'widht'. Did you mean 'widths'"),
    (dict(in_features=63), r'for inputs float32\[4, 8, 8, 1\]. TypeError'),
    (dict(activation='rellu'), "AttributeError: .* no attribute 'rellu'"),
    (dict(seed=1), "multiple values for .* 'seed'"),
  )
  def test_mistakes(self, said, message):
    with self.assertRaisesRegex(
      ValueError, f'config.models.small builds no model .*{message}'
    ):
      model_lib.build('small', {'name': 'mlp', **said}, X)

  def test_own_networks(self):
    where = f'{networks.__name__}:'
    asked = dict(name=f'{where}Nnx', in_features=64)
    with contextlib.redirect_stdout(io.StringIO()) as said:
      model = model_lib.build('net', asked, X, classes=3)
    self.assertIn('config.models.net: num_classes=3, as the', said.getvalue())
    self.assertEqual(model.answers.shape, (4, 3))
    self.assertEqual(model.keywords['width'], 4)
    self.assertEqual(
      model.shapes(model.keywords | {'width': 7})[0]['head']['kernel'].shape,
      (7, 3),
    )
    self.assertIn('head/kernel', model.uses)
    with self.assertRaisesRegex(
      ValueError, "config.models.net builds .*Linen has no 'widht'"
    ):
      model_lib.build('net', dict(name=f'{where}Linen', widht=3), X)


if __name__ == '__main__':
  absltest.main()
