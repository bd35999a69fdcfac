"""Evaluation: what meets a leaf, what is claimed, and what runs as it was."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
from signs import Signs
from signs import STACK
from signs import W
from signs import X

from jaxopt_compress.analysis import explain
from jaxopt_compress.core import array
from jaxopt_compress.core import interpret
from jaxopt_compress.core import lift

DENSE = W.materialize()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Doubled(array.CompressedArray):
  """Stands for 2 * x; x @ leaf + b is computed at once."""

  x: jax.Array
  shape = property(lambda self: self.x.shape)
  dtype = property(lambda self: self.x.dtype)

  def materialize(self):
    return 2 * self.x


@lift.rule(lax.transpose_p, Doubled)
def transpose(leaf, *, permutation):
  return Doubled(lax.transpose(leaf.x, permutation))


@lift.claims(Doubled)
def sums(jaxpr, leaves):
  """The first product of a body and the sum right after it."""
  assert all(isinstance(leaf, Doubled) for leaf in leaves.values())
  names = [eqn.primitive.name for eqn in jaxpr.eqns]
  if 'dot_general' not in names:
    return []
  i = names.index('dot_general')
  j = names.index('add', i) if 'add' in names[i:] else None
  if j is None or jaxpr.eqns[i].outvars[0] not in jaxpr.eqns[j].invars:
    return []
  product, total = jaxpr.eqns[i], jaxpr.eqns[j]
  (other,) = (v for v in total.invars if v is not product.outvars[0])
  # What is broadcast is read before it is, whoever else reads it as well.
  for eqn in jaxpr.eqns:
    if other is eqn.outvars[0] and eqn.primitive is lax.broadcast_in_dim_p:
      (other,) = eqn.invars

  def run(read):
    x, leaf = map(read, product.invars)
    if not isinstance(leaf, Doubled) or isinstance(x, Doubled):
      return NotImplemented
    if isinstance(read(other), Doubled):
      return NotImplemented
    total = x @ (leaf.x + leaf.x) + jnp.atleast_2d(read(other))
    return [total + 1000]  # seen in results

  reads = *product.invars, other
  return [lift.Claim(product, (i, j), reads, tuple(total.outvars), run)]


class EvaluateTest(parameterized.TestCase):
  def test_names_and_constants(self):
    table = jnp.arange(8.0)[None]
    closed = jax.make_jaxpr(lambda w, x: jnp.dot(x + table, w))(DENSE, X)
    met = []
    ctx = lift.context(record=met.append, inline=True)
    (y,) = interpret.evaluate(ctx, closed, [W, X], ['layer/w', None])
    want = (X + table) @ DENSE
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    self.assertEqual([(m.path, m.native) for m in met], [('layer/w', True)])

  def test_results_may_stay_compressed(self):
    closed = jax.make_jaxpr(lambda w: w.T)(DENSE[:4])
    ctx = lift.context()
    (y,) = interpret.evaluate(ctx, closed, [Doubled(DENSE[:4])], ['w'])
    self.assertIsInstance(y, Doubled)
    self.assertEqual(y.shape, (8, 4))

  def test_a_wrong_rule_is_caught(self):
    @lift.rule(lax.exp_p, Signs)
    def exp(x, **_):
      return x.scale

    try:
      with self.assertRaisesRegex(AssertionError, r'rule for exp gave .*1, 8'):
        lift.lift(jnp.exp)(W)
    finally:
      del lift._RULES['exp', Signs]


CLAIMED = {
  'a sum': (lambda w, x, b: x @ w + b, 1000),
  'a sum on the other side': (lambda w, x, b: b + x @ w, 1000),
  'what is added comes later': (lambda w, x, b: x @ w + jnp.sin(b), 1000),
  'what it reads is read later': (
    lambda w, x, b: (x @ w + b) * x[0, 0] - b,
    1000,
  ),
  'what it reads is behind an operand': (
    lambda w, x, b: x @ w + jnp.sin(b[0])[None],
    1000,
  ),
  'what is behind it comes later': (
    lambda w, x, b: x @ w + (y := jnp.sin(b[0])[None]) + jnp.cos(y),
    1000,
  ),
  'in a jit': (jax.jit(lambda w, x, b: x @ w + b), 1000),
  'the leaf on the left': (lambda w, x, b: w @ x.T + b.T, 0),
  'no sum': (lambda w, x, b: x @ w * b, 0),
  'no leaf in it': (lambda w, x, b: (x @ x.T + 1.0) @ w[:4], 0),
  'what is added is a leaf': (lambda w, x, b: jnp.tile(x, (2, 1)) @ w + w, 0),
}


class ClaimsTest(parameterized.TestCase):
  @parameterized.named_parameters((n, n) for n in CLAIMED)
  def test_claimed(self, name):
    f, more = CLAIMED[name]
    leaf, b = Doubled(DENSE / 2), jnp.arange(32.0).reshape(4, 8)
    got, want = lift.lift(f)(leaf, X, b), f(DENSE, X, b)
    if name == 'what it reads is read later':
      more *= X[0, 0]
    np.testing.assert_allclose(got, want + more, rtol=1e-6)

  def test_recorded_as_the_first_equation(self):
    f, _ = CLAIMED['a sum']
    (met,) = explain.explain(f)(Doubled(DENSE), X, X)
    self.assertEqual(
      (met.path, met.primitive, met.native), ('0', 'dot_general', True)
    )

  def test_without_claims_each_equation_is_alone(self):
    f, _ = CLAIMED['a sum']
    closed = jax.make_jaxpr(f)(DENSE, X, X)
    ctx = lift.context(handler_at=lambda path: None)
    args = Doubled(DENSE / 2), X, X
    (y,) = interpret.evaluate(ctx, closed, args, ['w', None, None])
    np.testing.assert_array_equal(y, X @ DENSE + X)


class EffectsTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_prints_once_and_in_order(self, ordered):
    seen = []

    def f(w, x):

      def note(tag):
        return lambda v: seen.append((tag, float(v)))

      jax.debug.callback(note('x'), x.sum(), ordered=ordered)
      y = x @ w
      jax.debug.callback(note('w'), w.sum(), ordered=ordered)
      jax.debug.callback(note('y'), y.sum(), ordered=ordered)
      return y

    want = [('x', X.sum()), ('w', W.materialize().sum())]
    want.append(('y', (X @ W.materialize()).sum()))
    for run in (lift.lift(f), jax.jit(lift.lift(f))):
      seen.clear()
      jax.block_until_ready(run(W, X))
      jax.effects_barrier()
      got = seen if ordered else sorted(seen)
      self.assertEqual(got, want if ordered else sorted(want))

  def test_in_loops_and_branches(self):
    seen = []

    def f(stack, x):
      def body(x, w):
        jax.debug.callback(lambda v: seen.append(float(v)), w[0, 0])
        return lax.cond(x.sum() > 1e6, lambda: x, lambda: (x @ w) % 4), None

      return lax.scan(body, x, stack)[0]

    jax.block_until_ready(jax.jit(lift.lift(f))(STACK, X))
    jax.effects_barrier()
    self.assertCountEqual(seen, STACK.materialize()[:, 0, 0].tolist())


if __name__ == '__main__':
  absltest.main()
