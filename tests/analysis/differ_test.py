"""What differs between devices, value by value."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import differ


def mean(x):
  return lax.pmean(x, 'data')


def shifted(w, x):
  """A value that reaches the end of a loop in three turns."""

  def turn(carry, _):
    a, b, c = carry
    return (a, b + w, c * b), a

  def late(carry, _):
    a, b, c = carry
    return (x, a, b), c

  same = lax.scan(turn, (w, w, w), None, length=3)
  return *same[0], lax.scan(late, (w, w, w), None, length=3)


def halved(w, x):
  """Loops of as many turns as the data say, and as the parameters say.

  The second of what they carry is always w.
  """
  until = lambda limit: lax.while_loop(
    lambda c: c[0] < limit, lambda c: (c[0] * 2, c[1]), (w, w)
  )
  return until(x), until(w + 3), mean(until(x)[0])


class DifferTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('parameters', lambda w, x: (w, jnp.sin(w), w + 1.0), [0, 0, 0]),
    ('data', lambda w, x: (x, w * x, jnp.stack([w, x])), [1, 1, 1]),
    ('a mean', lambda w, x: (mean(x), w - mean(x), x - mean(x)), [0, 0, 1]),
    (
      'collectives',
      lambda w, x: (
        lax.psum(x, 'data'),
        lax.pmax(x, 'data'),
        lax.all_gather(x, 'data'),
        lax.ppermute(w, 'data', [(0, 1)]),
        lax.axis_index('data'),
        lax.psum(x, 'model'),
        lax.psum(w, 'model'),
      ),
      [0, 0, 0, 1, 1, 1, 0],
    ),
    (
      'a sum of some devices',
      lambda w, x: lax.psum(w, 'data', axis_index_groups=[[0], [1]]),
      [1],
    ),
    (
      'branches',
      lambda w, x: (
        lax.cond(x > 0, lambda: w, lambda: 2 * w),
        lax.cond(w > 0, lambda: w, lambda: 2 * w),
        lax.cond(w > 0, lambda: w, lambda: x),
      ),
      [1, 0, 1],
    ),
    ('a scan', shifted, [0, 0, 0, 1, 1, 1, 1]),
    ('a while', halved, [1, 0, 0, 0, 0]),
    (
      'jit, remat and a gradient',
      lambda w, x: (
        jax.grad(jax.checkpoint(jax.jit(lambda w: jnp.tanh(w * x))))(w),
        mean(jax.grad(lambda w: jnp.tanh(w * x))(w)),
      ),
      [1, 0],
    ),
  )
  def test_results(self, f, expected):
    axes = [('data', 2), ('model', 2)]
    program = jax.make_jaxpr(f, axis_env=axes)(1.0, 2.0)
    got = differ.differ(program, 'data', [False, True])
    self.assertEqual([int(d) for d in got], expected)


if __name__ == '__main__':
  absltest.main()
