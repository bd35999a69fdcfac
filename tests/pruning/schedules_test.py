"""Schedules: the ramp, its exact end, and the grid of updates."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from jaxopt_compress.pruning import schedules


class SchedulesTest(parameterized.TestCase):
  @parameterized.parameters(
    # step, expected of target .8 from 100 to 300
    (0, 0.0),
    (100, 0.0),
    (150, 0.8 * (1 - 0.75**3)),
    (200, 0.8 * 0.875),
    (299, 0.8 * (1 - 0.005**3)),
  )
  def test_cubic(self, step, expected):
    got = schedules.cubic(step, target=0.8, begin=100, end=300)
    np.testing.assert_allclose(got, expected, atol=1e-6)

  @parameterized.product(
    name=['one_shot', 'cosine', 'cyclic'],
    target=[0.1, 0.9],
    span=[(7, 1007), (5, 5)],
  )
  def test_each_ends_exactly_and_holds(self, name, target, span):
    begin, end = span
    f = functools.partial(getattr(schedules, name), begin=begin, end=end)
    for step in (end, end + 1, 2 * end + 10):
      self.assertEqual(np.float32(f(step, target=target)), np.float32(target))
    self.assertEqual(float(f(begin - 1, target=target)), 0.0)

  @parameterized.parameters(
    # a mark for each step at which the target is reached, of begin 2, end 14
    (1, '.' * 8 + 'x' * 8),
    (2, '.' * 5 + 'xxx...' + 'x' * 5),
    (3, '....xx..xx..xxxx'),
  )
  def test_cyclic_phases(self, periods, drawn):
    f = functools.partial(schedules.cyclic, begin=2, end=14, periods=periods)
    got = [float(f(step, target=0.5)) for step in range(16)]
    self.assertEqual(''.join('.x'[int(2 * x)] for x in got), drawn)

  def test_cosine(self):
    got = [
      float(schedules.cosine(s, target=1.0, begin=0, end=6)) for s in range(7)
    ]
    want = [0.5 - 0.5 * np.cos(np.pi * s / 6) for s in range(7)]
    np.testing.assert_allclose(got, want, atol=1e-6)

  @parameterized.product(
    target=[0.1, 0.3, 0.8, 0.9, 0.99, 1.0],
    span=[(0, 1), (0, 3), (7, 1007), (5, 5), (0, 10**6 + 1)],
  )
  def test_cubic_ends_exactly_and_holds(self, target, span):
    begin, end = span
    f = jax.jit(
      lambda s: schedules.cubic(s, target=target, begin=begin, end=end)
    )
    for step in (end, end + 1, 2 * end + 10):
      self.assertEqual(np.float32(f(step)), np.float32(target))
    if begin:
      self.assertEqual(float(f(begin - 1)), 0.0)

  def test_constant(self):
    got = [
      float(schedules.constant(s, target=0.5, begin=3, end=9))
      for s in (0, 2, 3, 9, 10)
    ]
    self.assertEqual(got, [0.0, 0.0, 0.5, 0.5, 0.5])

  @parameterized.parameters(
    (1, '001100111'), (2, '001100111'), (3, '000111111'), (4, '000000001')
  )
  def test_cyclic_turns_at_updates(self, every, expected):
    # Phases of (8 - 0) / (2 * 2) steps.
    span, found, count = dict(begin=0, end=8), '', 0
    for step in range(9):
      due = int(schedules.updates(step, every=every, **span))
      if due > count:
        now = schedules.cyclic(step, target=0.5, periods=2, **span) > 0
      count, found = due, found + str(int(now))
    self.assertEqual(found, expected)

  @parameterized.parameters(
    # begin, end, every, and the steps at which masks are computed
    (0, 10, 5, '0 5 10'),
    (0, 10, 3, '0 3 6 9 10'),
    (5, 12, 3, '5 8 11 12'),
    (5, 14, 10, '5 14'),
    (4, 4, 1, '4'),
    (4, 4, 7, '4'),
    (0, 0, 1, '0'),
    (2, 5, 1, '2 3 4 5'),
  )
  def test_updates(self, begin, end, every, expected):
    count = [
      int(schedules.updates(s, begin=begin, end=end, every=every))
      for s in range(20)
    ]
    due = [s for s in range(20) if count[s] > (count[s - 1] if s else 0)]
    self.assertEqual(' '.join(map(str, due)), expected)
    self.assertEqual(count[-1], len(due))


if __name__ == '__main__':
  absltest.main()
