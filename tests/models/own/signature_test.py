"""What networks of a user's are told, and what is said where that does not fit."""

from absl.testing import absltest
from absl.testing import parameterized
import jax

from jaxopt_compress.models import own
from jaxopt_compress.models.own import signature
from tests.models.own import networks

LIKE = jax.ShapeDtypeStruct((2, 4), 'float32')
KEY = jax.random.key(0)


class SignatureTest(parameterized.TestCase):
  @parameterized.parameters(
    (networks.Linen, dict(widht=3), "n has no 'widht'. Did you mean 'width'"),
    (networks.Nnx, dict(num_classes=2), "n needs 'in_features'"),
    (networks.Logits, {}, 'n returns a dict of logits; an array y, or'),
    (networks.TwoInputs, {}, 'n is called with x, y; one input is expected'),
    (networks.number, {}, 'n makes a value of type int; a Flax module'),
    (networks, {}, 'n is of type module; a class, or a function'),
  )
  def test_mistakes(self, make, keywords, message):
    with self.assertRaisesRegex(ValueError, message):
      parts = own.taken_apart('n', make, keywords, LIKE)
      parts.apply(*parts.init(KEY), jax.numpy.ones((2, 4)))

  @parameterized.parameters(
    (lambda x, train: x, dict(train=True)),
    (lambda x, is_training=False: x, dict(is_training=True)),
    (lambda x, *, deterministic: x, dict(deterministic=False)),
    (lambda x, use_running_average, rng: x, dict(use_running_average=False)),
    (lambda x, mask=None: x, {}),
  )
  def test_modes(self, call, told):
    found = signature.modes('n', call)(True, KEY)
    self.assertIs(found.pop('rng', KEY), KEY)
    self.assertEqual(found, told)

  @parameterized.parameters(
    (networks.Linen, {}, {}),  # its default stays
    (networks.Nnx, {}, dict(num_classes=7)),
    (networks.Nnx, dict(num_classes=2), {}),
    (networks.tree, {}, dict(classes=7)),
  )
  def test_classes_where_they_are_required(self, make, keywords, more):
    self.assertEqual(signature.sized(make, keywords, 7), more)


if __name__ == '__main__':
  absltest.main()
