"""What is said of words that are not among the choices."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.core import choices


class ChoicesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('sede', ('seed', 'steps'), " Did you mean 'seed'?"),
    ('int9', ('int8', 'e4m3'), " Did you mean 'int8'?"),
    ('w8a8', ('W8A8', 'W8A16'), " Did you mean 'W8A8'?"),
    (80, (8, 800), " Did you mean '800'?"),
    ('lion', ('seed', 'steps'), ''),
    ('lion', (), ''),
  )
  def test_guess(self, word, words, want):
    self.assertEqual(choices.guess(word, words), want)

  def test_one_of(self):
    choices.one_of('kind', 'n_m', ('block', 'n_m'))
    with self.assertRaisesRegex(
      ValueError, r"^kind is 'nm'; choose one of .* Did you mean 'n_m'\?$"
    ):
      choices.one_of('kind', 'nm', ('block', 'n_m'))
    with self.assertRaisesRegex(
      ValueError, r"^kind='x'; choose one of .*\)\.$"
    ):
      choices.one_of('kind', 'x', ('block', 'n_m'), '=')


if __name__ == '__main__':
  absltest.main()
