"""The order of a body in which the equations of a claim stand together."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from jaxopt_compress.core import claims


def _chain(x, y):
  a = jnp.sin(x)  # 0
  b = jnp.cos(a)  # 1
  c = jnp.exp(y)  # 2
  d = b * c  # 3
  e = jnp.tanh(y)  # 4
  return d + e  # 5


def _printing(x, y):
  a = jnp.sin(x)  # 0
  jax.debug.callback(print, a)  # 1
  b = jnp.exp(y)  # 2
  jax.debug.callback(print, b)  # 3
  return a + b  # 4


def _order(f, *members):
  jaxpr = jax.make_jaxpr(f)(1.0, 2.0).jaxpr
  listed = [claims.Claim(None, m, (), (), print) for m in members]
  steps = claims.in_order(jaxpr, listed)
  at = {id(eqn): i for i, eqn in enumerate(jaxpr.eqns)}
  kept = [claim.indices for claim, _ in steps if claim]
  return [tuple(at[id(eqn)] for eqn in eqns) for _, eqns in steps], kept


class InOrderTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('nothing', _chain, [], [(0,), (1,), (2,), (3,), (4,), (5,)]),
    ('apart', _chain, [(0, 4)], [(0, 4), (1,), (2,), (3,), (5,)]),
    ('it waits', _chain, [(0, 1, 3)], [(2,), (0, 1, 3), (4,), (5,)]),
    ('two', _chain, [(1, 2), (3, 5)], [(0,), (1, 2), (4,), (3, 5)]),
    ('effects', _printing, [(0, 3)], None),
    ('effects together', _printing, [(1, 3)], [(0,), (2,), (1, 3), (4,)]),
  )
  def test_order(self, f, members, want):
    order, kept = _order(f, *members)
    if want is None:  # the first effect needs it, and it is the second
      self.assertEqual((order, kept), _order(f))
    else:
      self.assertEqual((order, kept), (want, [m for m in order if len(m) > 1]))

  def test_a_circle_is_not_closed(self):
    # b is between them: it reads what the claim makes, which reads it.
    order, kept = _order(_chain, (0, 3))
    self.assertEqual((order, kept), (_order(_chain)[0], []))

  def test_one_that_needs_itself_goes_before_one_that_it_needs(self):
    for two in ([(0, 5), (1, 2)], [(1, 2), (0, 5)]):
      self.assertEqual(_order(_chain, *two)[1], [(1, 2)])

  def test_of_two_that_overlap_the_first_stays(self):
    self.assertEqual(_order(_chain, (2, 4), (0, 4))[1], [(2, 4)])

  def test_what_a_claim_does_not_tell_no_other_reads(self):
    jaxpr = jax.make_jaxpr(_chain)(1.0, 2.0).jaxpr
    (a,), (b,) = (jaxpr.eqns[i].outvars for i in (0, 1))
    inner = claims.Claim(None, (0, 1), (), (b,), print)
    for v, most in ((a, 1), (b, None)):
      other = claims.Claim(None, (3, 5), (v,), (), print)
      for both in ((inner, other), (other, inner)):
        steps = claims.in_order(jaxpr, both)
        found = [claim for claim, _ in steps if claim]
        first = [both[0]] if most else [inner, other]
        self.assertEqual(found, first)

  def test_it_waits_for_all_that_it_reads(self):
    jaxpr = jax.make_jaxpr(_chain)(1.0, 2.0).jaxpr
    (c,) = jaxpr.eqns[2].outvars
    claim = claims.Claim(None, (0, 4), (c,), (), print)
    steps = claims.in_order(jaxpr, [claim])
    self.assertIs(steps[0][1][0], jaxpr.eqns[2])
    self.assertIs(steps[1][0], claim)

  def test_of_two_that_need_each_other_the_first_stays(self):
    f = lambda x, y: (jnp.cos(jnp.sin(x)), jnp.tanh(jnp.exp(y)))
    self.assertEqual(_order(f, (0, 3), (1, 2))[1], [(0, 3)])
    self.assertEqual(_order(f, (1, 2), (0, 3))[1], [(1, 2)])


if __name__ == '__main__':
  absltest.main()
