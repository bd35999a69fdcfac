"""Words of pruning."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.pruning import spec
from jaxopt_compress.pruning import words

Sparsity = spec.Sparsity


def own_score(x):
  return x


class WordsTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.8, Sparsity(0.8)),
    (0, Sparsity(0.0)),
    ('0.8', Sparsity(0.8)),
    ('.5', Sparsity(0.5)),
    ('2:4', Sparsity(kind='n_m', n=2, m=4)),
    ('12:16 taylor', Sparsity(kind='n_m', n=12, m=16, score='taylor')),
    ('unstructured 0.5', Sparsity(0.5)),
    ('neurons 0.5 axis=-1', Sparsity(0.5, kind='neurons', axis=-1)),
    ('0.25 heads size=8', Sparsity(0.25, kind='heads', size=8)),
    ('block 4x16 0.5 pool=max', Sparsity(0.5, kind='block', block=(4, 16), pool='max')),
    ('0.8 wanda', Sparsity(0.8, score='wanda')),
    ('0.8 wanda leaf', Sparsity(0.8, score='wanda', scope='leaf')),
    ('0.8 global cap=2', Sparsity(0.8, scope='global', cap=2.0)),
    ('erk power=0.5 0.8', Sparsity(0.8, allocation='erk', power=0.5)),
    ('0.8 cosine begin=10 end=100 every=5',
     Sparsity(0.8, schedule='cosine', begin=10, end=100, every=5)),
    ('1e-1 movement memory=1', Sparsity(0.1, score='movement', memory=1.0)),
  )  # fmt: skip
  def test_say(self, value, want):
    found = words.sparsity(value)
    self.assertEqual(found, want)
    self.assertEqual(words.sparsity(found.describe()), want)

  def test_leave_what_is_said_already(self):
    self.assertIsNone(words.sparsity(None))
    own = Sparsity(0.5, score=own_score)
    self.assertIs(words.sparsity(own), own)
    self.assertEqual(own.describe(), '0.5 own_score')

  @parameterized.parameters(
    ('half', "'half'.*Write a fraction"),
    (True, 'True is no sparsity'),
    ('', 'is no sparsity'),
    ((0.5,), 'is no sparsity'),
    ('2to4', "'2to4'"),
    ('2:0', "'2:0'"),
    ('4:2', '1 <= n < m'),
    ('neurons', 'has no fraction'),
    ('rows 0.5', "'rows'.*Did you mean 'row'"),
    ('0.8 wnada', "Did you mean 'wanda'"),
    ('0.8 n_m', "'n_m'"),
    ('2:4 0.7', 'is n:m, which says how many'),
    ('2:4 2:4', 'says .* twice'),
    ('2:4:8', "'2:4:8'"),
    ('neurons 2:4', "says 'kind' twice"),
    ('neurons 0.5 0.7', "says 'target' twice"),
    ('0.5 0.7', "says 'target' twice"),
    ('block 0.5', 'blocks have a size'),
    ('4x4 0.5', 'blocks have a size'),
    ('block 4 0.5', "says 'target' twice"),
    ('block 4x4x4 0.5', "'4x4x4'"),
    ('0.5 end=soon', "end='soon' is no number"),
    ('0.5 edn=5', "Did you mean 'end='"),
    ('0.5 score=wanda', "'score=wanda'"),
    ('0.5 axis=1', "axis=1 is for kind='neurons' or 'heads'"),
    ('80', r'target=80.0;.*Did you mean 0.8'),
  )
  def test_refuse(self, value, message):
    with self.assertRaisesRegex(ValueError, message):
      words.sparsity(value)
    with self.assertRaisesRegex(ValueError, "^The rule 'w': .*"):
      words.rules([('w', value)])


if __name__ == '__main__':
  absltest.main()
