"""Softmax by what is computed."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import structural
from jaxopt_compress.kernels import flow
from jaxopt_compress.kernels.attends import softmaxes
from jaxopt_compress.kernels.attends import traced


def _powers(x, axis=-1):
  return jnp.exp(x - x.max(axis, keepdims=True))


def _found(f, find=softmaxes.find):
  """(what is found in f(x), x, its layout if it comes in the shape of the result)."""
  jaxpr = jax.make_jaxpr(f)(jnp.ones((5, 7, 3))).jaxpr
  jaxpr = jaxprs.flattened(jaxpr, structural.plain_body)
  trace = traced.Trace(flow.Flow(jaxpr))
  (out,) = jaxpr.outvars
  layout = trace.parts.new(out.aval.shape)
  found = find(trace, traced.Seen(out, layout))
  keys = found and [layout.index((p,)) for p in trace.parts.known(found.keys)]
  return found, keys, jaxpr.invars[0]


class SoftmaxesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('jax', jax.nn.softmax, [2]),
    ('another axis', lambda x: jax.nn.softmax(x, 1), [1]),
    ('two axes', lambda x: jax.nn.softmax(x, (0, 2)), [0, 2]),
    ('written', lambda x: _powers(x) / _powers(x).sum(-1, keepdims=True), [2]),
    ('moved', lambda x: jax.nn.softmax(x.T).transpose(2, 1, 0), [0]),
    ('split', lambda x: jax.nn.softmax(x.reshape(35, 3)).reshape(5, 7, 3), [2]),
    (
      'logsumexp',
      lambda x: jnp.exp(x - jax.nn.logsumexp(x, 0, keepdims=True)),
      [0],
    ),
    ('log softmax', lambda x: jnp.exp(jax.nn.log_softmax(x, 1)), [1]),
    (
      'inverse',
      lambda x: _powers(x) * (1 / _powers(x).sum(-1, keepdims=True)),
      [2],
    ),
  )
  def test_found(self, f, axes):
    found, keys, x = _found(f)
    self.assertIs(found.x.v, x)
    self.assertEqual(keys, axes)

  def test_numerator(self):
    found, keys, x = _found(lambda x: _powers(x, 1), softmaxes.power)
    self.assertIs(found.x.v, x)
    self.assertEqual(keys, [1])

  @parameterized.named_parameters(
    ('numerator alone', _powers),
    ('no maximum', lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)),
    (
      'sum of another axis',
      lambda x: _powers(x) / _powers(x).sum(1, keepdims=True),
    ),
    (
      'maximum of something else',
      lambda x: (
        (e := jnp.exp(x - (2 * x).max(-1, keepdims=True)))
        / e.sum(-1, keepdims=True)
      ),
    ),
    (
      'a sum that is more',
      lambda x: _powers(x) / (1 + _powers(x).sum(-1, keepdims=True)),
    ),
    ('sigmoid', jax.nn.sigmoid),
  )
  def test_none(self, f):
    self.assertIsNone(_found(f)[0])


if __name__ == '__main__':
  absltest.main()
