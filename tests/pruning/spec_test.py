"""What a Sparsity accepts, and what it says of the rest."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.pruning import spec


class SparsityTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(target=0.8), 0.8),
    (dict(target=0), 0),
    (dict(kind='n_m', n=2, m=4), 0.5),
    (dict(kind='n_m', n=1, m=4, target=0.75), 0.75),
    (dict(kind='n_m', n=1, m=3, target=1 - 1 / 3), 1 - 1 / 3),
    (dict(target=0.5, kind='neurons', scope='global'), 0.5),
    (dict(target=0.5, score='soft_threshold', k=0.1), 0.5),
  )
  def test_accepts(self, kwargs, target):
    self.assertEqual(spec.Sparsity(**kwargs).target, target)

  @parameterized.parameters(
    (dict(), 'needs a target'),
    (dict(target=80), 'Did you mean 0.8'),
    (dict(target=1.0), r'in \[0, 1\)'),
    (dict(target=-0.1), r'in \[0, 1\)'),
    (dict(target=float('nan')), r'in \[0, 1\)'),
    (dict(target=0.5, kind='blocks'), "kind='blocks'; choose one of"),
    (dict(target=0.5, score='taylor'), "score='taylor'; choose one of"),
    (dict(target=0.5, schedule='linear'), 'choose one of'),
    (dict(target=0.5, scope='model'), 'choose one of'),
    (dict(target=0.5, n=2, m=4), "are for kind='n_m'"),
    (dict(kind='n_m', n=4, m=4), '1 <= n < m'),
    (dict(kind='n_m', n=2, m=4, target=0.8), 'makes 0.5 of zeros'),
    (dict(kind='n_m', n=2, m=4, scope='global'), "scope='leaf'"),
    (dict(target=0.5, k=1.0), "for score='soft_threshold'"),
    (dict(target=0.5, score='soft_threshold', k=-1.0), 'k >= 0'),
    (dict(target=0.5, begin=5, end=4), 'begin=5 and end=4'),
    (dict(target=0.5, begin=-1), 'begin=-1'),
    (dict(target=0.5, every=0), 'every=0'),
    (dict(target=0.5, floor=1.5), 'floor=1.5'),
    (dict(target=0.5, floor=float('nan')), 'floor=nan'),
  )
  def test_refuses(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      spec.Sparsity(**kwargs)


if __name__ == '__main__':
  absltest.main()
