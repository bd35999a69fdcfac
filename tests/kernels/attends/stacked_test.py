"""Layers of a cache of all layers."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import structural
from jaxopt_compress.kernels import flow
from jaxopt_compress.kernels.attends import stacked
from jaxopt_compress.kernels.attends import traced

CACHE = jnp.ones((3, 5, 8))


def _found(f):
  jaxpr = jax.make_jaxpr(f)(CACHE, jnp.int32(1)).jaxpr
  jaxpr = jaxprs.flattened(jaxpr, structural.plain_body)
  trace = traced.Trace(flow.Flow(jaxpr))
  (out,) = jaxpr.outvars
  seen = traced.Seen(out, trace.parts.new(out.aval.shape))
  return stacked.find(trace, trace.back(seen)), jaxpr.invars, seen.layout


class StackedTest(parameterized.TestCase):
  @parameterized.parameters(1, -1)
  def test_by_a_number(self, number):
    found, (cache, _), layout = _found(lambda c, i: c[number].T)
    self.assertIs(found.whole.v, cache)
    self.assertEqual(found.whole.layout, layout[::-1])
    self.assertEqual(found.index, number % 3)

  def test_by_an_index(self):
    found, (cache, index), _ = _found(lambda c, i: c[i])
    self.assertIs(found.whole.v, cache)
    self.assertEqual(found.meant, (index, True, 3))

  def test_by_an_index_as_it_is(self):
    found, (_, index), _ = _found(
      lambda c, i: lax.dynamic_index_in_dim(
        c, i, keepdims=False, allow_negative_indices=False
      )
    )
    self.assertEqual(found.meant, (index, False, 0))

  def test_by_an_index_that_counts_otherwise(self):
    found, (_, index), _ = _found(
      lambda c, i: lax.dynamic_index_in_dim(
        c,
        jnp.where(i < 0, i + 2, i),
        keepdims=False,
        allow_negative_indices=False,
      )
    )
    self.assertIsNot(found.meant[0], index)
    self.assertFalse(found.meant[1])

  @parameterized.named_parameters(
    ('all layers', lambda c, i: c),
    ('two layers', lambda c, i: c[1:]),
    ('part of a layer', lambda c, i: c[i, :2]),
    ('along another axis', lambda c, i: lax.dynamic_index_in_dim(c, i, 1)),
    ('made', lambda c, i: c[i] * 2),
  )
  def test_none(self, f):
    self.assertIsNone(_found(f)[0])


if __name__ == '__main__':
  absltest.main()
