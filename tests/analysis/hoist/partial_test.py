"""What data read of a program's known values, and what stays as it is."""

from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis.hoist import partial

W, X = jnp.ones((2, 2)), jnp.ones((3, 2))


@jax.custom_vjp
def own(w, x):
  return x @ (2 * w)


own.defvjp(lambda w, x: (own(w, x), None), lambda _, dy: (W, X))


def reads(fun):
  closed = jax.make_jaxpr(fun)(W, X)
  asked = partial.Partial()
  given, _ = asked.run(closed, [W])
  return {
    ('w' if x is given else x.step.eqn.primitive.name, by)
    for x, primitives in asked.reads.items()
    for by in primitives
  }


class PartialTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('a_parameter', lambda w, x: x @ w, {('w', 'dot_general')}),
    ('a_step', lambda w, x: x @ jnp.exp(w), {('exp', 'dot_general')}),
    (
      'both',
      lambda w, x: x @ jnp.exp(w) @ w,
      {('exp', 'dot_general'), ('w', 'dot_general')},
    ),
    ('a_result', lambda w, x: (x, jnp.exp(w)), {('exp', 'a result')}),
    (
      'in_a_jit',
      lambda w, x: jax.jit(lambda v: x @ jnp.exp(v))(w),
      {('exp', 'dot_general')},
    ),
    (
      'own_derivative',
      lambda w, x: own(jnp.exp(w), x),
      {('exp', 'custom_vjp_call')},
    ),
    (
      'a_constant_branch',
      lambda w, x: lax.cond(x[0, 0] > 0, lambda: jnp.exp(w), lambda: w),
      {('exp', 'cond'), ('w', 'cond')},
    ),
    (
      'one_value_of_all_branches',
      lambda w, x: x @ lax.cond(x[0, 0] > 0, lambda: w, lambda: w),
      {('w', 'dot_general')},
    ),
    (
      'a_carry',
      lambda w, x: lax.scan(lambda h, y: (h @ h + y[0], None), jnp.exp(w), x)[
        0
      ],
      {('exp', 'scan')},
    ),
    (
      'a_carry_that_stays',
      lambda w, x: lax.scan(lambda h, y: (h, y @ h), jnp.exp(w), x)[1],
      {('exp', 'dot_general')},
    ),
    (
      'a_choice',
      lambda w, x: lax.cond(w[0, 0] > 0, lambda: x, lambda: -x),
      {('convert_element_type', 'cond')},
    ),
  )
  def test_reads(self, fun, want):
    self.assertEqual(reads(fun), want)

  def test_an_effect_is_not_computed_once(self):
    def printed(w, x):
      jax.debug.print('{}', w.sum())
      return x @ w

    made = {by for x, by in reads(printed) if x == 'reduce_sum'}
    self.assertLen(made, 1)  # what prints, however this release calls it
