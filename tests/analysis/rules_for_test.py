"""Tests of `rules_for`: rules by what a weight is used for."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import made_weights

import jaxopt_compress as jc

SMALL = dict(at_least=1)


class Cnn(nn.Module):
  @nn.compact
  def __call__(self, x):
    for width in (8, 16, 16):
      x = nn.relu(nn.Conv(width, (3, 3))(x))
    x = nn.LayerNorm()(x.mean((1, 2)))
    x = nn.relu(nn.Dense(64)(x))
    return nn.Dense(10)(x)


def cnn():
  x = jnp.ones((1, 8, 8, 3))
  params = jax.eval_shape(Cnn().init, jax.random.key(0), x)
  return params, jc.uses(Cnn().apply)(params, x)


def language_model(p, tokens):
  """Embeddings tied to the head, scanned layers with experts beside each other."""
  x = p['embed'][tokens] + p['position'][tokens]

  def layer(x, w):
    h = jnp.broadcast_to(x @ w['q'], (2, *x.shape))
    h = jnp.einsum(
      'etf,efd->etd', jnp.einsum('etd,edf->etf', h, w['up']), w['down']
    )
    return x + h.sum(0), None

  x, _ = lax.scan(layer, x, p['layers'])
  x = lax.ragged_dot(x, p['ragged'], jnp.array([2, 1], jnp.int32))
  return x * p['scale'] @ p['embed'].T


LM = {
  'embed': jnp.ones((50, 8)),
  'layers': {
    'down': jnp.ones((3, 2, 6, 8)),
    'q': jnp.ones((3, 8, 8)),
    'up': jnp.ones((3, 2, 8, 6)),
  },
  'position': jnp.ones((4, 8)),
  'ragged': jnp.ones((2, 8, 8)),
  'scale': jnp.ones((1, 8)),
}
LM_USES = jc.uses(language_model)(LM, jnp.arange(3))


def values(uses, **given):
  """{path: value} of what has one."""
  rules = jc.rules_for(uses, **given)
  found = jc.rules.match(rules, dict.fromkeys(uses, 0))
  return {path: value for path, value in found.items() if value is not None}


class RulesForTest(parameterized.TestCase):
  def test_layers_that_differ_in_numbers_share_a_rule(self):
    _, uses = cnn()
    rules = jc.rules_for(uses, conv='W8A8', dot='W4A16', **SMALL)
    self.assertEqual(
      list(rules),
      [
        (r'params/Conv_\d+/kernel', 'W8A8'),
        (r'params/Dense_\d+/kernel', 'W4A16'),
        (r'.*', None),
      ],
    )

  def test_exceptions_come_before(self):
    _, uses = cnn()
    self.assertEqual(
      list(jc.rules_for(uses, conv='W8A8', first=None, **SMALL)),
      [
        ('params/Conv_0/kernel', None),
        (r'params/Conv_\d+/kernel', 'W8A8'),
        (r'.*', None),
      ],
    )
    self.assertEqual(
      list(jc.rules_for(uses, dot='W4A16', last='W8A8', **SMALL)),
      [
        ('params/Dense_1/kernel', 'W8A8'),
        ('params/Dense_0/kernel', 'W4A16'),
        (r'.*', None),
      ],
    )

  @parameterized.named_parameters(
    ('product', dict(dot=4), {'embed': 4, 'layers/q': 4, 'layers/down': 4,
                              'layers/up': 4, 'ragged': 4}),
    ('experts', dict(dot=4, experts=2), {'embed': 4, 'layers/q': 4,
     'layers/down': 2, 'layers/up': 2, 'ragged': 2}),
    ('tied_by_gather', dict(gather=8), {'embed': 8, 'position': 8}),
    ('tied_before_dot', dict(gather=8, dot=4, experts=None),
     {'embed': 8, 'position': 8, 'layers/q': 4}),
    ('last_before_gather', dict(gather=8, last=3), {'embed': 3, 'position': 8}),
    # 50 x 8; of layers and experts each by itself, 8 x 8 and 8 x 6.
    ('size', dict(gather=8, dot=4, at_least=64),
     {'embed': 8, 'layers/q': 4, 'ragged': 4}),
  )  # fmt: skip
  def test_precedence(self, given, want):
    found = values(LM_USES, **({'at_least': 1} | given))
    self.assertEqual(found, dict(sorted(want.items())))

  @parameterized.named_parameters(
    ('a_typo', dict(dott=8), r"keyword of rules_for is 'dott'.*mean 'dot'"),
    ('nothing_asked', {}, r'Say for which'),
    ('no_such_kind', dict(conv=1), r'conv=1 is for no weight: .* gather for 2, .* dot for 5'),
    ('small', dict(gather=8), r'embed, position have fewer than at_least=4096 elements .at_least=0 takes'),
    ('a_stack_first', dict(dot=4, first=None, **SMALL), '(?s)q hold 3 layers'),
  )  # fmt: skip
  def test_refuses(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      jc.rules_for(LM_USES, **given)

  def test_refuses_a_keyword_that_others_take(self):
    one = jc.uses(jnp.dot)(jnp.ones((64, 64)), jnp.ones(64))
    with self.assertRaisesRegex(
      ValueError, 'dot=4 is for no weight: .* go by last'
    ):
      jc.rules_for(one, dot=4, last=8)
    for wrong in (jc.uses(jnp.dot), LM, {'a': (jnp.ones(2),)}):
      with self.assertRaisesRegex(ValueError, r'jc.uses\(apply\)\(params, x\)'):
        jc.rules_for(wrong, dot=4)

  def test_says_what_it_takes_and_leaves(self):
    rules = jc.rules_for(LM_USES, gather=jc.W8A16, dot=None, **SMALL)
    lines = str(rules).splitlines()
    self.assertLen(lines, 3)
    self.assertRegex(
      lines[0], "'embed' .* int8 .* 1 weight, 400 elements: gather"
    )
    self.assertRegex(lines[2], r'layers/down.*\(dot\), 1 leaf in no product')

  def test_says_where_hoisting_makes_a_weight(self):
    fun, params, _ = made_weights.PROGRAMS['weight_norm']
    used = jc.uses(lambda p, x: fun(p, x) @ p['w'])(
      params | {'w': jnp.ones((3, 4))}, made_weights.X
    )
    found = jc.rules_for(used, dot='int8', at_least=0)
    self.assertIn('g, v (in no product before jc.hoist)', str(found))
    del used['w']
    with self.assertRaisesRegex(
      ValueError, 'jc.hoist makes .* of what g, v give'
    ):
      jc.rules_for(used, dot='int8')

  def test_names_are_escaped(self):
    params = {
      'net/~/linear': {'w.1': jnp.ones((4, 4)), 'w-1': jnp.ones((4, 4))}
    }
    f = lambda p, x: x @ p['net/~/linear']['w.1'] @ p['net/~/linear']['w-1']
    uses = jc.uses(f)(params, jnp.ones((1, 4)))
    rules = jc.rules_for(uses, dot='int8', last=None, **SMALL)
    found = jc.rules.match(rules, params)
    self.assertEqual(found['net/~/linear/w.1'], 'int8')
    self.assertIsNone(found['net/~/linear/w-1'])

  def test_quantises_and_prunes(self):
    params = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape), LM)
    rules = jc.rules_for(LM_USES, gather='int8', dot='int4', at_least=60)
    q = jc.quantize(params, rules, LM_USES)
    stored = [p for p, x in jc.rules.named_leaves(q) if jc.is_compressed(x)]
    self.assertEqual(stored, ['embed', 'layers/q', 'ragged'])

  def test_goes_with_rules_of_ones_own(self):
    rules = jc.rules_for(LM_USES, dot='int4', **SMALL)
    # All that one of them takes may be taken before.
    found = jc.rules.match([('layers/q', 'int8'), *rules], LM)
    self.assertEqual(found['layers/q'], 'int8')
    self.assertEqual(found['layers/up'], 'int4')
    found = jc.rules.match([*rules[:-1], ('.*', 'int8')], LM)
    self.assertEqual(found['scale'], 'int8')
    with self.assertRaisesRegex(ValueError, 'never used: earlier rules take'):
      jc.rules.match([*rules[:-1], ('layers/q', 8), ('.*', None)], LM)
    # But of another tree they match nothing, which nobody meant.
    with self.assertRaisesRegex(ValueError, 'matches no path'):
      jc.rules.match(rules, {'embed': 0})


if __name__ == '__main__':
  absltest.main()
