"""Interleaving and ratios, with a clock that the test holds."""

from absl.testing import absltest
import jax
import jax.numpy as jnp

from jaxopt_compress.report import latency


class Clock:
  """Every call of a program lasts what the test says."""

  def __init__(self):
    self.now = 0.0
    self.order = []

  def __call__(self):
    return self.now

  def program(self, name, seconds):
    def called(x):
      self.now += seconds
      self.order.append(name)
      return x

    def fun(w, x):
      y = jax.pure_callback(called, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
      return y + w

    return fun, (jnp.ones(()), jnp.ones(()))


class LatencyTest(absltest.TestCase):
  def test_programs_alternate_and_are_compared(self):
    clock = Clock()
    programs = {'a': clock.program('a', 0.25), 'b': clock.program('b', 0.5)}
    timings = latency.measure(
      programs, against='a', warmup=1, repeats=3, seconds=0.0, clock=clock
    )
    self.assertEqual(''.join(clock.order), 'aa' + 'bb' + 'ab' * 3)
    self.assertEqual(timings['a'].speed, 1.0)
    b = timings['b']
    self.assertEqual((b.median_ms, b.low_ms, b.high_ms), (500.0, 500.0, 500.0))
    self.assertEqual((b.speed, b.against, b.repeats), (0.5, 'a', 3))

  def test_rounds_go_on_for_the_time_given(self):
    clock = Clock()
    timings = latency.measure(
      {'a': clock.program('a', 0.25)}, repeats=2, seconds=2.0, clock=clock
    )
    self.assertEqual(timings['a'].repeats, 8)
    self.assertIsNone(timings['a'].speed)

  def test_quick_programs_run_in_bursts(self):
    clock = Clock()
    timings = latency.measure(
      {'a': clock.program('a', 2.0**-10)},
      warmup=1,
      repeats=2,
      burst=2.0**-7,
      seconds=0.0,
      clock=clock,
    )
    self.assertLen(clock.order, 2 + 2 * 8)
    self.assertEqual(timings['a'].median_ms, 1e3 * 2.0**-10)

  def test_batches(self):
    clock = Clock()
    out = latency.by_batch(
      lambda n: {'a': clock.program('a', n / 16)},
      batches=(1, 8),
      repeats=2,
      seconds=0.0,
      clock=clock,
    )
    self.assertEqual([t.median_ms for t in out['a'].values()], [62.5, 500.0])

  def test_unknown_reference(self):
    with self.assertRaisesRegex(ValueError, "No program 'float'.*'a'"):
      latency.measure({'a': (jnp.sin, (1.0,))}, against='float')


if __name__ == '__main__':
  absltest.main()
