"""Which leaves go into loops and branches, and come out of them."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
from jax import lax
import jax.numpy as jnp
from signs import signs
from signs import STACK
from signs import W
from signs import X

from jaxopt_compress.analysis import explain
from jaxopt_compress.core import array
from jaxopt_compress.core import bodies
from jaxopt_compress.core import context
from jaxopt_compress.core import lift


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Log(array.CompressedArray):
  """Stands for x; may be written where what is written is a half of its type."""

  x: jax.Array
  shape = property(lambda self: self.x.shape)
  dtype = property(lambda self: jnp.dtype('float32'))
  writable = True

  def materialize(self):
    return self.x.astype(jnp.float32)


@lift.rule(lax.mul_p, Log)
def mul(log, other, **_):
  return Log(log.x * other.astype(log.x.dtype))


def _scan(f):
  return lambda log, xs: lax.scan(lambda c, x: (f(c, x), c[0]), log, xs)


class WrittenTest(parameterized.TestCase):
  @parameterized.parameters(
    (lambda c, x: c * x, Log),  # comes back in its form
    (lambda c, x: c + x, jax.Array),  # no rule: dense
  )
  def test_scan(self, f, kind):
    log, xs = Log(jnp.ones(4, jnp.bfloat16)), jnp.array([2.0, 3.0])
    (got, seen), want = (
      lift.lift(_scan(f), keep=True)(log, xs),
      _scan(f)(log.materialize(), xs),
    )
    self.assertIsInstance(got, kind)
    chex.assert_trees_all_equal((array.materialize(got), seen), want)

  def test_a_scan_of_no_turns(self):
    log = Log(jnp.ones(4, jnp.bfloat16))
    (got, seen) = lift.lift(_scan(lambda c, x: c * x))(log, jnp.zeros(0))
    chex.assert_trees_all_equal(got, jnp.ones(4))
    self.assertEqual(seen.shape, (0,))

  @parameterized.parameters(
    (lambda c: c * 2.0, Log), (lambda c: jnp.ones(4), jax.Array)
  )
  def test_branches_agree_or_the_result_is_dense(self, other, kind):
    log = Log(jnp.ones(4, jnp.bfloat16))

    def f(log, i):
      return lax.cond(i > 0, lambda c: c * 3.0, other, log)

    got = jax.jit(lift.lift(f, keep=True))(log, 1)
    self.assertIsInstance(got, kind)
    chex.assert_trees_all_equal(array.materialize(got), jnp.full(4, 3.0))

  def test_a_branch_chooses_a_weight(self):
    def f(ws, x, i):
      a, b = ws
      return x @ lax.cond(i > 0, lambda: a, lambda: b)

    for other, primitives in (
      (signs(8, 8, seed=2), ['dot_general']),
      # Branches of different forms: that the weight became dense is told.
      (jnp.ones((8, 8)), ['cond']),
    ):
      met = explain.explain(f)((W, other), X, 1)
      self.assertEqual([m.primitive for m in met], primitives)
      self.assertEqual([m.native for m in met], [primitives != ['cond']])
      self.assertIn(met[0].path, ('0', '1'))  # it is one of them
      got = lift.lift(f)((W, other), X, 1)
      chex.assert_trees_all_equal(got, X @ W.materialize())


class CarriedTest(parameterized.TestCase):
  def test_leaves_leave_the_carry_and_come_back(self):
    log = Log(jnp.ones(2))
    state, rebuild = bodies.carried([W, 1.0, log, 2.0], {2})
    self.assertEqual(list(state), [1, 2, 3])
    self.assertEqual(rebuild({1: 'a', 2: 'b', 3: 'c'}), [W, 'a', 'b', 'c'])

  @parameterized.parameters(
    (STACK, 3, True),
    (STACK, 8, False),
    (jnp.ones(5), 3, True),
    (signs(8, 8), 8, False),  # the scale has one row
  )
  def test_sliceable(self, x, length, expected):
    self.assertEqual(bodies.sliceable(x, length), expected)


class FoundTest(parameterized.TestCase):
  def test_over_the_turns_of_a_loop(self):
    most = context.Monoid(jnp.maximum, jnp.zeros_like, lambda x, a, k: x)
    stacked = jnp.array([[1.0, 5.0], [4.0, 2.0], [3.0, 3.0]])
    self.assertEqual(bodies.over(most, stacked).tolist(), [4.0, 5.0])

  def test_branches_that_find_out_nothing_are_completed(self):
    total = context.Monoid(
      jnp.add, lambda like: jnp.zeros(like.shape), lambda x, a, k: x
    )
    ctx = lift.context(monoids={'w': total})
    branches = [lambda x: (x, {'w': x}), lambda x: (x, {})]
    _, other = bodies.complete(ctx, branches, [jnp.ones(2)])
    self.assertEqual(other(jnp.ones(2))[1]['w'].tolist(), [0.0, 0.0])


if __name__ == '__main__':
  absltest.main()
