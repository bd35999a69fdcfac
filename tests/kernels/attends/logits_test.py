"""What is made of a product before the softmax."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import structural
from jaxopt_compress.kernels import flow
from jaxopt_compress.kernels.attends import logits
from jaxopt_compress.kernels.attends import traced

Q, K, B = jnp.ones((5, 8)), jnp.ones((7, 8)), jnp.ones((5, 7))


def _found(f):
  jaxpr = jax.make_jaxpr(f)(Q, K, B).jaxpr
  jaxpr = jaxprs.flattened(jaxpr, structural.plain_body)
  trace = traced.Trace(flow.Flow(jaxpr))
  (out,) = jaxpr.outvars
  seen = traced.Seen(out, trace.parts.new(out.aval.shape))
  return trace, list(logits.find(trace, seen))


class LogitsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('plain', lambda q, k, b: q @ k.T, 1, [], 0),
    ('scaled', lambda q, k, b: q @ k.T / 4 * 2, 0.5, [], 0),
    ('bias', lambda q, k, b: q @ k.T * 3 - b, 3, [-1], 0),
    ('bias that is scaled', lambda q, k, b: (b + q @ k.T) * 3, 3, [3], 0),
    (
      'mask',
      lambda q, k, b: jnp.where(b > 0, q @ k.T + b, -1e9),
      1,
      [1],
      -1e9,
    ),
    (
      'mask that is scaled',
      lambda q, k, b: jnp.where(b > 0, q @ k.T, -1e9) / 2,
      0.5,
      [],
      -5e8,
    ),
    (
      'bias after a mask of -inf',
      lambda q, k, b: jnp.where(b > 0, q @ k.T, -np.inf) + b,
      1,
      [1],
      -np.inf,
    ),
  )
  def test_found(self, f, scale, biases, masked):
    (found,) = _found(f)[1]
    self.assertEqual(found.product.primitive.name, 'dot_general')
    self.assertEqual(found.scale, scale)
    self.assertEqual([factor for _, factor in found.biases], biases)
    self.assertEqual(found.masked, np.float32(masked))

  @parameterized.named_parameters(
    ('curve', lambda q, k, b: jnp.tanh(q @ k.T)),
    ('negative', lambda q, k, b: -2.0 * (q @ k.T)),
    ('factor of each', lambda q, k, b: q @ k.T * b),
    (
      'two kinds of masked',
      lambda q, k, b: jnp.where(b > 0, jnp.where(b > 1, q @ k.T, -1e9), -1e8),
    ),
    (
      'bias after a finite mask',
      lambda q, k, b: jnp.where(b > 0, q @ k.T, -1e9) + b,
    ),
  )
  def test_none(self, f):
    self.assertEmpty(_found(f)[1])

  def test_two_products(self):
    # Either may be the scores, the other the bias.
    _, found = _found(lambda q, k, b: q @ k.T + q[:, ::-1] @ k.T)
    self.assertLen(found, 2)

  def test_operand(self):
    def f(q, k, b):
      return (2 * q.T / 8).T.astype(jnp.float32)

    jaxpr = jax.make_jaxpr(f)(Q.astype(jnp.bfloat16), K, B).jaxpr
    trace = traced.Trace(flow.Flow(jaxpr))
    seen = traced.Seen(jaxpr.outvars[0], trace.parts.new((5, 8)))
    found = logits.operand(trace, seen)
    self.assertIs(found.seen.v, jaxpr.invars[0])
    self.assertEqual(found.scale, 0.25)


if __name__ == '__main__':
  absltest.main()
