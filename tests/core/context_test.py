"""What an evaluation knows and finds out."""

import operator
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from jaxopt_compress.core import context
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import lift


def _model(x):
  with jax.named_scope('head'):
    return jax.jit(lambda x: jnp.sin(x) + 1)(x)


class ContextTest(parameterized.TestCase):
  def test_paths_and_what_handlers_want(self):
    (call,) = jax.make_jaxpr(_model)(1.0).jaxpr.eqns
    name = call.primitive.name
    for wanted, expected in (
      ('head/sin', True),
      ('head/cos', False),
      (f'head/{name}', False),  # what has a body is entered
    ):
      ctx = lift.context(handler_at=lambda path, w=wanted: path == w or None)
      self.assertEqual(ctx.path(call), f'head/{name}')
      self.assertLen(ctx.bodies(call), 1)
      self.assertEqual(ctx.wants(call), expected, wanted)
      self.assertEqual(ctx.scope, ())
    self.assertFalse(lift.context().wants(call))

  def test_a_table_without_the_primitive_has_no_bodies(self):
    (call,) = jax.make_jaxpr(_model)(1.0).jaxpr.eqns
    ctx = context.Context(rule_for=None, structural={})
    self.assertEqual(ctx.bodies(call), [])

  def test_findings_are_merged_and_kept_apart(self):
    total = context.Monoid(operator.add, lambda like: 0, lambda x, a, k: x)
    ctx = lift.context(monoids={'w': total})
    ctx.give({'w': 1})

    def body(x):
      ctx.give({'w': 10})
      ctx.give({'w': 100})
      return 2 * x

    self.assertEqual(ctx.apart(body)(3), (6, {'w': 110}))
    self.assertEqual(ctx.found, {'w': 1})
    ctx.give({'w': 110})
    self.assertEqual(ctx.found, {'w': 111})

  def test_quiet_keeps_the_rules_alone(self):
    met = []
    ctx = lift.context(
      record=met.append, inline=True, handler_at=lambda path: print
    )
    quiet = ctx.quiet()
    self.assertIs(quiet.rule_for, ctx.rule_for)
    self.assertIs(quiet.structural, ctx.structural)
    self.assertIs(quiet.finders, ctx.finders)
    self.assertIs(quiet.opens, ctx.opens)
    self.assertEqual(
      (quiet.record, quiet.inline, quiet.handler_at), (None, False, None)
    )

  def test_a_line_of_the_call_stands_for_one_that_is_missing(self):
    met = []
    ctx = lift.context(record=met.append)
    (call,) = jax.make_jaxpr(_model)(1.0).jaxpr.eqns
    with mock.patch.object(jaxprs, 'source_of') as source_of:
      source_of.side_effect = ['model.py:7', '', '']
      with ctx.entering(call):
        ctx.note(call, 'w', native=True)
      ctx.note(call, 'w', native=False, reason='why')
    self.assertEqual([m.source for m in met], ['model.py:7', ''])
    self.assertEqual([m.reason for m in met], ['', 'why'])


if __name__ == '__main__':
  absltest.main()
