from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

import jaxopt_compress as jc


class SizeNumbersTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('mean', lambda h: h - h.mean(-1, keepdims=True), 'div by 6'),
    ('root', lambda h: h * (h @ h.T).sum() * 6**-0.5, 'mul by 0.408'),
    ('none', lambda h: h * (h @ h.T).sum() * 0.3, ''),
  )
  def test_numbers_that_fit(self, rest, why):
    # The program wants six channels, so it cannot be traced with seven.
    def fun(p, x):
      return rest((x @ p['a']).reshape(5, 6)) @ p['b']

    p = {'a': jnp.ones((3, 6)), 'b': jnp.ones((6, 2))}
    (group,) = jc.structure(fun)(p, jnp.ones((5, 3))).free.values()
    self.assertRegex(
      group.fixed, r'cannot reshape.* at .*size_numbers_test.py:\d+'
    )
    self.assertIn(why, ' '.join(group.inexact))
    self.assertEqual(bool(group.inexact), bool(why))


if __name__ == '__main__':
  absltest.main()
