"""By the names that optax has: what of a state is a moment, of which parameter."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import optax

import jaxopt_compress as jc
from jaxopt_compress.distillation.growth import moments

NAMES = {'a': 'a', 'mu/v': 'mu/v'}


class MomentsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('a', ('a', '', 0)),
    ('1/0/mu/a', ('a', '', 1)),
    ('0/trace/a', ('a', '', 1)),
    ('1/0/nu/mu/v', ('mu/v', '', 2)),
    ('mu/v', ('mu/v', '', 0)),
    ('ema/a', ('a', '', 0)),
    ('0/nu/a/1', ('a', '1', 2)),
    ('0/count', (None, '', 0)),
  )
  def test_of(self, path, want):
    self.assertEqual(moments.of(path, NAMES), want)

  @parameterized.parameters(
    (optax.adam(1e-3), {1, 2}),
    (optax.sgd(1e-3, momentum=0.9), {1}),
    (optax.rmsprop(1e-3), {2}),
    (optax.amsgrad(1e-3), {1, 2}),
    (optax.lion(1e-3), {1}),
    (optax.adagrad(1e-3), {2}),
  )
  def test_names_of_optax(self, tx, orders):
    found = set()
    for path, x in jc.rules.named_leaves(tx.init({'a': jnp.ones((2, 2))})):
      if getattr(x, 'ndim', 0):
        found.add(moments.of(path, {'a': 'a'})[2])
    self.assertEqual(found, orders)


if __name__ == '__main__':
  absltest.main()
