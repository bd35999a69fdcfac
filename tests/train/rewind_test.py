"""Masks of one stage on the weights of another."""

import types

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.train import options
from jaxopt_compress.train import rewind

EARLY, LATE = (
  {'b': jnp.ones(3), 'w': w}
  for w in jax.random.normal(jax.random.key(0), (2, 4, 5))
)


def built(fraction):
  prune = options.Prune(rules=(('w', fraction), ('b', None)), masks='found')
  stage = options.Stage(name='again', model='m', steps=4, prune=prune)
  return types.SimpleNamespace(
    stage=stage, model=types.SimpleNamespace(uses=None)
  )


class RewindTest(absltest.TestCase):
  def test_the_zeros_of_one_on_the_weights_of_the_other(self):
    least = jnp.sort(jnp.abs(LATE['w']).ravel())[10]
    found = {
      'b': 2 * LATE['b'],
      'w': jnp.where(jnp.abs(LATE['w']) < least, 0, 1),
    }
    got = rewind.rewound(built(0.5), EARLY, found)
    np.testing.assert_array_equal(
      got['w'], jnp.where(found['w'] == 0, 0, EARLY['w'])
    )
    np.testing.assert_array_equal(got['b'], EARLY['b'])

  def test_rules_that_make_other_masks(self):
    with self.assertRaisesRegex(
      ValueError,
      "'again' takes the masks of 'found', of which w has 0.00% zeros",
    ):
      rewind.rewound(built(0.5), EARLY, LATE)


if __name__ == '__main__':
  absltest.main()
