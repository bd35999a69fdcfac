"""What a Sparsity accepts, and what it says of the rest."""

import functools

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.pruning import scores
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
    (dict(target=0.5, kind='blok'), "Did you mean 'block'"),
    (dict(target=0.5, score='tailor'), "Did you mean 'taylor'"),
    (dict(target=0.5, allocation='ekr'), "'erk', 'er', 'owl'.*mean 'er"),
    (dict(target=0.5, schedule='linear'), 'choose one of'),
    (dict(target=0.5, scope='model'), 'choose one of'),
    (dict(target=0.5, n=2, m=4), "n=2 is for kind='n_m', but"),
    (dict(kind='n_m', n=4, m=4), '1 <= n < m'),
    (dict(kind='n_m', n=2, m=4, target=0.8), 'makes 0.5 of zeros'),
    (dict(kind='n_m', n=2, m=4, scope='global'), "scope='leaf'"),
    (dict(target=0.5, k=1.0), "for score='soft_threshold'"),
    (dict(target=0.5, score='soft_threshold', k=-1.0), 'k >= 0'),
    (dict(target=0.5, quantile=0.5), "for score='soft_threshold'"),
    (dict(target=0.5, score='soft_threshold', quantile=1.5), 'in place of k'),
    (
      dict(target=0.5, score='soft_threshold', quantile=0.5, k=1.0),
      'in place of k',
    ),
    (dict(target=0.5, kind='block'), 'needs its size'),
    (dict(target=0.5, block=(4, 4)), "for kind='block', but"),
    (dict(target=0.5, axis=-2), "for kind='neurons' or 'heads', but"),
    (dict(target=0.5, power=2.0), "for allocation='erk' or 'er', but"),
    (dict(target=0.5, spread=0.1), "for allocation='owl', but"),
    (dict(target=0.5, periods=2), "for schedule='cyclic', but"),
    (dict(target=0.5, memory=2.0), 'memory=2.0'),
    (dict(target=0.5, scope='layers/.*'), r'choose one of.*\(layers'),
    (dict(target=0.5, scope='globl'), "Did you mean 'global'"),
    (dict(target=0.5, scope='global', allocation='erk'), "Use scope='leaf'"),
    (dict(target=0.5, cap=2.0), "but scope='leaf'"),
    (dict(target=0.5, scope='global', cap=0.5), '1 at least'),
    (dict(kind='n_m', n=2, m=4, allocation='erk'), "scope='leaf'"),
    (dict(target=0.5, begin=5, end=4), 'begin=5 and end=4'),
    (dict(target=0.5, begin=-1), 'begin=-1'),
    (dict(target=0.5, every=0), 'every=0'),
    (dict(target=0.5, floor=1.5), 'floor=1.5'),
    (dict(target=0.5, floor=float('nan')), 'floor=nan'),
  )
  def test_refuses(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      spec.Sparsity(**kwargs)

  def test_functions_do_in_place_of_names(self):
    def cube(x):
      return x**3

    def jump(step, target, begin, end):
      return target

    given = spec.Sparsity(0.5, score=cube, schedule=jump)
    self.assertEqual(
      hash(given), hash(spec.Sparsity(0.5, score=cube, schedule=jump))
    )
    self.assertEqual(given.call('score', 2), 8)
    self.assertEqual(given.ramp(0), 1.0)
    self.assertEqual(given.inputs(), ())

  def test_what_a_partial_says_stays(self):
    huber = functools.partial(scores.soft_threshold, k=2.0)
    given = spec.Sparsity(0.5, score=huber)
    self.assertEqual(float(given.call('score', 3.0)), 1.0)
    given = spec.Sparsity(0.5, score=huber, k=1.0)
    self.assertEqual(float(given.call('score', 3.0)), 2.0)

  def test_prints_what_was_said(self):
    given = spec.Sparsity(0.5, score='wanda', end=3)
    self.assertEqual(
      repr(given), "Sparsity(target=0.5, score='wanda', end=3, scope='row')"
    )
    self.assertEqual(eval(repr(given), vars(spec)), given)

  @parameterized.parameters(
    ('magnitude', 'leaf', ()),
    ('taylor', 'leaf', ('gradient',)),
    ('fisher', 'leaf', ('gradient_squares',)),
    ('wanda', 'row', ('input_squares',)),
    ('random', 'leaf', ('key',)),
  )
  def test_scores_say_what_they_take(self, score, scope, inputs):
    given = spec.Sparsity(0.5, score=score)
    self.assertEqual((given.scope, given.inputs()), (scope, inputs))


if __name__ == '__main__':
  absltest.main()
