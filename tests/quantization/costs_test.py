"""The table of costs, and rules that follow from it."""

import math

from absl.testing import absltest
from absl.testing import parameterized

import jaxopt_compress as jc
from jaxopt_compress.quantization import agreement
from jaxopt_compress.quantization import costs
from jaxopt_compress.quantization import schemes

INT4 = schemes.scheme('int4, int8 token')


def _row(path, part, error, bytes=100, format='int4 channel', weight=None):
  return costs.Row(
    path, part, format, error, 1 - error**2, 0.5, bytes, weight or path
  )


def _all(path, weight_error, act_error, **how):
  both = math.hypot(weight_error, act_error)
  return [
    _row(path, 'both', both, format='int4 channel, int8 token', **how),
    _row(path, 'weight', weight_error, **how),
    _row(path, 'activations', act_error, format='int8 token', **how),
  ]


def _agreement(error, lost=0):
  return agreement.Agreement(error, 1 - error**2, 0.5, 0.9, 8, lost)


PARTS = {'weight': _agreement(0.2), 'activations': _agreement(0.45)}
ROWS = [
  *_all('a', 0.03, 0.4),
  *_all('b', 0.3, 0.01),
  *_all('c[0]', 0.01, 0.01, weight='c'),
  *_all('c[1]', 0.02, 0.01, weight='c'),
]
BETTER = (
  _row('a', 'activations', 0.02, 100, 'int8 token asym'),
  _row('b', 'weight', 0.02, 200, 'int8 channel'),
  _row('b', 'weight', 0.1, 120, 'int4 g32'),
)


def _costs(measure=None, **changed):
  weights = {
    'a': costs.Weight(INT4, 100, 800),
    'b': costs.Weight(INT4, 100, 800),
    'c': costs.Weight(INT4, 200, 1600),
  }
  made = dict(
    rows=costs.sorted_rows(ROWS),
    together=_agreement(0.5),
    weights=weights,
    better=BETTER,
    given=(('a|b|c', INT4), ('.*', None)),
    measure=measure,
  )
  return costs.Costs(**(made | changed))


class TableTest(absltest.TestCase):
  def test_drawn(self):
    self.assertEqual(
      str(_costs(parts=PARTS)),
      '\n'.join(
        """\
weight        rounded to                bytes  error  share  of weight  of input   cosine  argmax  what helps
------------  ------------------------  -----  -----  -----  ---------  --------  -------  ------  ----------------------------------------
a             int4 channel, int8 token    100    0.4  63.9%       0.03       0.4  0.83910   50.0%  activations int8 token asym: 0.4 -> 0.02
b             int4 channel, int8 token    100    0.3  35.8%        0.3      0.01  0.90990   50.0%  weight int8 channel: 0.3 -> 0.02
c[1]          int4 channel, int8 token    100  0.022   0.2%       0.02      0.01  0.99950   50.0%
c[0]          int4 channel, int8 token    100  0.014   0.1%       0.01      0.01  0.99980   50.0%
all together                              400    0.5               0.2      0.45  0.75000   90.0%""".split(
          '\n'
        )
      ),
    )

  def test_what_helps_the_cheaper_part_alone_is_no_help(self):
    """Of 0.4, 0.03 are the weight's: without them 0.3995 are left."""
    better = (_row('a', 'weight', 0.001, 200, 'int8 channel'), *BETTER[1:])
    line = str(_costs(better=better)).splitlines()[2]
    self.assertTrue(line.endswith('nothing that was tried'), line)

  def test_lost_numbers_come_first(self):
    bad = costs.Row.of(
      _agreement(math.nan, lost=3),
      path='d',
      part='weight',
      format='int2',
      bytes=1,
      weight='d',
    )
    self.assertEqual(costs.sorted_rows([*ROWS, bad])[0], bad)

  def test_of_many_the_costliest_are_listed(self):
    rows = [_row(f'w{i}', 'weight', 1 / (i + 1)) for i in range(70)]
    said = str(_costs(rows=costs.sorted_rows(rows), better=()))
    self.assertIn('10 cheaper ones are in `rows`', said)
    self.assertIn('w59', said)
    self.assertNotIn('w60', said)


class RulesTest(parameterized.TestCase):
  def test_given_rules_that_do(self):
    self.assertEqual(_costs().rules(error=0.6), list(_costs().given))

  def test_takes_what_saves_most_for_its_bytes(self):
    asked = []

    def measure(rules):
      asked.append(rules)
      return _agreement(0.29)

    rules = _costs(measure).rules(error=0.35)
    # The zero point is free; b may stay as it is.
    act = 'int4 channel, int8 token asym'
    self.assertEqual(rules, [('a', act), ('a|b|c', INT4), ('.*', None)])
    self.assertEqual(asked, [rules])

  def test_a_tighter_budget_where_it_was_not_reached(self):
    measured = iter([0.4, 0.2, 0.05])
    found = _costs(lambda rules: _agreement(next(measured)))
    rules = dict(found.rules(error=0.1))
    self.assertEqual(rules['a'], 'int4 channel, int8 token asym')
    self.assertIn(rules['b'], ('int8 channel, int8 token', None))

  def test_by_cosine(self):
    found = _costs(lambda rules: _agreement(0.001))
    rules = dict(found.rules(cosine=0.995))
    self.assertEqual(rules['a'], 'int4 channel, int8 token asym')
    self.assertEqual(rules['b'], 'int8 channel, int8 token')

  def test_refused(self):
    for both in (dict(), dict(cosine=0.9, error=0.1)):
      with self.assertRaisesRegex(ValueError, 'give one of them'):
        _costs().rules(**both)
    with self.assertRaisesRegex(ValueError, 'Hardly anything but floats'):
      _costs(lambda rules: _agreement(0.4)).rules(error=0.001)

  def test_are_rules(self):
    """What is made is read again by the verb, also where a rule has nothing left."""
    found = _costs(lambda rules: _agreement(0.0), given=(('a', INT4),))
    only = {'a': found.weights['a']}
    rows = [r for r in found.rows if r.path == 'a']
    found = costs.Costs(
      tuple(rows), _agreement(0.4), only, BETTER, (('a', INT4),), found.measure
    )
    rules = found.rules(error=0.1)
    chosen = jc.quantization.schemes.by_leaf(rules, {'a': 1.0})
    self.assertEqual(chosen['a'].act, jc.W8A8.act)


if __name__ == '__main__':
  absltest.main()
