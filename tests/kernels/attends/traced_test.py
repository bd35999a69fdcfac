"""Where values come from."""

from absl.testing import absltest
import jax
import jax.numpy as jnp

from jaxopt_compress.kernels import flow
from jaxopt_compress.kernels.attends import traced


def _trace(f, *args):
  """(a trace, the variables it reads, its result as seen)."""
  jaxpr = jax.make_jaxpr(f)(*args).jaxpr
  trace = traced.Trace(flow.Flow(jaxpr))
  (out,) = jaxpr.outvars
  seen = traced.Seen(out, trace.parts.new(out.aval.shape))
  return trace, jaxpr.invars, seen


class TracedTest(absltest.TestCase):
  def test_behind_moves_and_casts(self):
    f = lambda x: x.T.astype(jnp.float32).reshape(8, 5)
    trace, (x,), seen = _trace(f, jnp.ones((5, 8), jnp.bfloat16))
    found = trace.back(seen)
    self.assertIs(found.v, x)
    self.assertEqual(found.layout, seen.layout[::-1])

  def test_casts_that_keep_numbers(self):
    f = lambda x: x.astype(jnp.bfloat16).astype(jnp.float32)
    trace, (x,), seen = _trace(f, jnp.ones(3))
    self.assertIs(trace.back(seen).v, x)
    kept = trace.back(seen, casts='wider')
    self.assertEqual(kept.v.aval.dtype, jnp.bfloat16)

  def test_casts_from_whole_numbers_are_none(self):
    trace, _, seen = _trace(lambda x: x.astype(jnp.float32), jnp.ones(3, int))
    self.assertIs(trace.back(seen).v, seen.v)

  def test_constants(self):
    f = lambda x: jnp.broadcast_to(1 / jnp.sqrt(jnp.float32(16)), (3,))
    trace, _, seen = _trace(f, jnp.ones(3))
    self.assertEqual(trace.constant(seen.v), 0.25)
    trace, _, seen = _trace(lambda x: x + 1, jnp.ones(3))
    self.assertIsNone(trace.constant(seen.v))

  def test_what_makes_a_value(self):
    f = lambda x, y: jnp.exp(x * y).T
    trace, (x, y), seen = _trace(f, jnp.ones((5, 8)), jnp.ones((1, 8)))
    name, (product,) = trace.made(seen)
    self.assertEqual(name, 'exp')
    name, operands = trace.made(product)
    self.assertEqual((name, [o.v for o in operands]), ('mul', [x, y]))
    self.assertEqual(operands[1].layout, ((), operands[0].layout[1]))


if __name__ == '__main__':
  absltest.main()
