from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.analysis.structure import next_steps


class NextStepsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('boundary', 'the size of a result', r"opened\('a:-1'\)"),
    ('config', 'its parts do not fit each other: slice at f.py:1', 'build'),
    ('known', 'cumsum at f.py:1 (f)', 'without cumsum'),
    ('unknown', 'kernel at f.py:1 (f)', 'jax.numpy.*kernel'),
    ('numbers', 'mul computes with their numbers at f.py:1', 'keep them'),
  )
  def test_of(self, why, step):
    self.assertRegex(next_steps.of('a:-1', why), step)

  def test_plan_and_table(self):
    found = jc.structure(lambda p, x: x @ p['a'])(
      {'a': jnp.ones((3, 4))}, jnp.ones((2, 3))
    )
    self.assertIn("; open the boundary by structure.opened('a:-1')", str(found))
    with self.assertRaisesRegex(
      ValueError, r"result, so open.*opened\('a:-1'\)"
    ):
      jc.Plan(found, {'a:-1': [0]})


if __name__ == '__main__':
  absltest.main()
