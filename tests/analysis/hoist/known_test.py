"""Values that no data touch are nodes, each once."""

import types

from absl.testing import absltest
import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis.hoist import known


def program(fun, *args):
  return jax.make_jaxpr(fun)(*args).jaxpr


class KnownTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.graph = known.Graph()
    self.w = self.graph.given(0, jax.ShapeDtypeStruct((4, 4), jnp.float32))
    self.b = self.graph.given(1, jax.ShapeDtypeStruct((4, 4), jnp.float32))

  def step(self, fun, *operands):
    (eqn,) = program(fun, *(x.aval for x in operands)).eqns
    return self.graph.step(eqn, operands)

  def test_the_same_step_is_one_node(self):
    first, second = (self.step(jnp.add, self.w, self.b)[0] for _ in range(2))
    self.assertIs(first, second)
    self.assertEqual(first.parents, {0, 1})
    others = [
      self.step(jnp.add, self.b, self.w),  # the order counts
      self.step(jnp.subtract, self.w, self.b),
      self.step(lambda w: w.sum(0), self.w),
      self.step(lambda w: w.sum(1), self.w),
    ]
    nodes = {id(x) for x in (first, *(x for (x,) in others))}
    self.assertLen(nodes, 5)

  def test_results_that_are_dropped_are_no_others(self):
    (eqn,) = program(lambda w: lax.split(w, (2, 2)), self.w.aval).eqns
    first, second = eqn.outvars
    nobody = type('DropVar', (), {'aval': second.aval})()
    dropping = types.SimpleNamespace(
      primitive=eqn.primitive, params=eqn.params, outvars=[first, nobody]
    )
    all_read = self.graph.step(eqn, [self.w])
    self.assertEmpty({*all_read} & {*self.graph.step(dropping, [self.w])})
    self.assertEqual(all_read, self.graph.step(eqn, [self.w]))

  def test_equal_numbers_are_one_constant(self):
    constants = [self.graph.constant(x) for x in (2.0, 2.0, jnp.float32(2), 2)]
    self.assertIs(constants[0], constants[1])
    self.assertLen(set(constants), 3)  # types count

  def test_loops_are_in_the_order_of_their_nesting(self):
    inner, outer = known.Loop(1, 5), known.Loop(0, 3)
    slices = jax.ShapeDtypeStruct((4,), jnp.float32)
    of_inner = self.graph.row(self.w, inner, slices)
    of_outer = self.graph.row(self.b, outer, slices)
    (x,) = self.step(jnp.add, of_inner, of_outer)
    self.assertEqual(x.loops, (outer, inner))
    self.assertEqual(x.shape, (3, 5, 4))

  def test_what_is_behind_a_value_comes_first(self):
    (x,) = self.step(jnp.add, self.w, self.b)
    (y,) = self.step(jnp.multiply, x, self.w)
    behind = known.behind([y], lambda z: False)
    self.assertEqual(behind, [self.w, self.b, x, y])
    self.assertEqual(known.behind([y], lambda z: z is x), [self.w, x, y])


if __name__ == '__main__':
  absltest.main()
