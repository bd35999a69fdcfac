"""Makers and readers of variables, and which may be leaves."""

from absl.testing import absltest
import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.kernels import flow


def _f(w, x):
  seen = w.reshape(4, 2).T  # 0, 1
  y = x @ seen  # 2
  return y * y, lax.cond(x[0, 0] > 0, lambda w: w, jnp.sin, w)


class FlowTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    jaxpr = jax.make_jaxpr(_f)(jnp.ones((2, 4)), jnp.ones((2, 2))).jaxpr
    self.flow = flow.Flow(jaxpr)
    self.w, self.x = jaxpr.invars
    self.names = [e.primitive.name for e in jaxpr.eqns]

  def test_makers_and_readers(self):
    dot = self.names.index('dot_general')
    (y,) = self.flow.jaxpr.eqns[dot].outvars
    mul = self.names.index('mul')
    self.assertEqual(self.flow.readers[y], [mul, mul])
    self.assertEqual(self.flow.makers[y], dot)
    self.assertEqual(self.flow.maker(y).primitive.name, 'dot_general')
    self.assertIsNone(self.flow.maker(self.x))
    out = self.flow.jaxpr.outvars[0]
    self.assertEqual(self.flow.readers[out], [None])

  def test_what_may_be_a_leaf(self):
    found = self.flow.perhaps_leaves([self.w])
    of = {
      name: any(v in found for v in eqn.outvars)
      for name, eqn in zip(self.names, self.flow.jaxpr.eqns, strict=True)
    }
    want = {'reshape': True, 'transpose': True, 'cond': True}
    self.assertEqual(of, dict.fromkeys(of, False) | want)

  def test_keeps_numbers(self):
    wider = ('float8_e4m3fn', 'bfloat16', 'float32')
    for i, old in enumerate(wider):
      for j, new in enumerate(wider):
        self.assertEqual(flow.keeps_numbers(old, new), i <= j, (old, new))
    self.assertFalse(flow.keeps_numbers('float16', 'bfloat16'))
    self.assertFalse(flow.keeps_numbers('bfloat16', 'float16'))
    self.assertFalse(flow.keeps_numbers('int8', 'float32'))


if __name__ == '__main__':
  absltest.main()
