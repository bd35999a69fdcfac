"""Docstrings become what Sphinx reads, by rule."""

import doctest

from absl.testing import absltest
from absl.testing import parameterized
import docstrings


class DocstringsTest(parameterized.TestCase):
  def test_doctests(self):
    self.assertEqual(doctest.testmod(docstrings).failed, 0)

  @parameterized.named_parameters(
    ('words', 'One * of `x_`.', 'One \\* of ``x_``.'),
    ('equation', '    y = x * w', '::\n\n       y = x * w'),
    ('code', 'y = f(x)\nz = y', '::\n\n   y = f(x)\n   z = y'),
    (
      'columns',
      'kl    a loss\nmse   another',
      '::\n\n   kl    a loss\n   mse   another',
    ),
    ('doctest', '>>> a * b\n3', '>>> a * b\n3'),
    (
      'section',
      'Args:\n  x: [n], a *\n    b.\n  *args, **more: rest.',
      'Args:\n  x: [n], a \\*\n    b.\n  \\*args, \\*\\*more: rest.',
    ),
    ('result', 'Returns:\n  The x: y.', 'Returns:\n  The x: y.'),
    (
      'results',
      'Returns:\n  a: one.\n  b: two.',
      ':returns:\n  - ``a``: one.\n  - ``b``: two.',
    ),
    ('list', 'Some:\n- a *\n- b', 'Some:\n\n- a \\*\n- b'),
    ('behind', 'As in\n  x = 2\nhere.', 'As in\n\n::\n\n     x = 2\n\nhere.'),
  )
  def test_to_rst(self, text, expected):
    lines = docstrings.to_rst(text.splitlines())
    self.assertEqual('\n'.join(lines).strip(), expected)


if __name__ == '__main__':
  absltest.main()
