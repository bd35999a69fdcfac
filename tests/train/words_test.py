"""Words of a config as specifications."""

from absl.testing import parameterized
import jax.numpy as jnp
import pytest

import jaxopt_compress as jc
from jaxopt_compress.train import fields
from jaxopt_compress.train import options
from jaxopt_compress.train import words


class WordsTest(parameterized.TestCase):
  def test_quantize(self):
    rules = (('a', 'W8A8'), ('b', 'int4 g32, int8 token'), ('.*', None))
    found = dict(words.quantize_rules(options.Quantize(rules=rules), {}))
    self.assertEqual(found['a'], jc.W8A8)
    self.assertEqual(found['b'].weight.group, 32)
    self.assertIsNone(found['.*'])

  def test_prune_spans_a_part_of_the_steps(self):
    prune = options.Prune(
      rules=(('a', 0.8), ('b', '2:4'), ('.*', None)),
      span=(0.1, 0.6),
      every=5,
      scope='leaf',
    )
    found = dict(words.prune_rules(prune, 200, {}))
    self.assertEqual(
      found['a'], jc.Sparsity(0.8, begin=20, end=120, every=5, scope='leaf')
    )
    self.assertEqual((found['b'].n, found['b'].m), (2, 4))
    self.assertIsNone(found['.*'])

  def test_lora(self):
    rules = (('a', 8), ('.*', None))
    self.assertEqual(
      words.lora_rules(options.Adapters(rules=rules), {}), list(rules)
    )

  def test_blocks_heads_and_rows(self):
    rules = (('a', 'block 2x8 0.5'), ('b', 'heads 0.25'))
    found = dict(words.prune_rules(options.Prune(rules=rules), 10, {}))
    self.assertEqual((found['a'].kind, found['a'].block), ('block', (2, 8)))
    self.assertEqual((found['b'].kind, found['b'].target), ('heads', 0.25))
    prune = options.Prune(rules=(('a', 0.5),), score='wanda')
    self.assertEqual(words.prune_rules(prune, 10, {})[0][1].scope, 'row')

  def test_words_of_a_rule_before_those_of_the_stage(self):
    rules = (('a', '0.5 magnitude every=3'), ('b', 0.5))
    prune = options.Prune(rules=rules, score='wanda', every=7)
    (_, a), (_, b) = words.prune_rules(prune, 10, {})
    self.assertEqual((a.score, a.every, a.scope), ('magnitude', 3, 'leaf'))
    self.assertEqual((b.score, b.every, b.scope), ('wanda', 7, 'row'))

  @parameterized.parameters((('a',),), (('a', 1, 2),), ('ab',))
  def test_what_is_no_rule(self, rule):
    with pytest.raises(ValueError, match=r'A rule is a pair \(regex, value\)'):
      words.lora_rules(options.Adapters(rules=(rule,)), {})

  def test_by_use(self):
    params = {'embed': jnp.ones((50, 80)), 'head': jnp.ones((80, 50))}
    f = lambda p, x: p['embed'][x] @ p['head']
    uses = jc.uses(f)(params, jnp.zeros(3, jnp.int32))
    rules = dict(dot='W4A16', gather='int8', at_least=1000)
    found = words.quantize_rules(options.Quantize(rules=rules), uses)
    self.assertEqual(dict(found)['head'], jc.W4A16)
    self.assertEqual(dict(found)['embed'].weight, jc.schemes.Spec('int8'))
    prune = options.Prune(rules=dict(dot='0.5 wanda', at_least=0), every=7)
    ((path, spec), _) = words.prune_rules(prune, 10, uses)
    self.assertEqual((path, spec.score, spec.every), ('head', 'wanda', 7))
    stage = options.Stage(name='s', model='m', init='t', prune=prune)
    self.assertEqual(words.asks(stage), {'input_squares'})
    lora = options.Adapters(rules=dict(dot=8, at_least=0))
    self.assertEqual(words.lora_rules(lora, uses)[0], ('head', 8))
    with pytest.raises(
      ValueError, match="quantize has no 'dots'. Did you mean 'dot'"
    ):
      words.quantize_rules(options.Quantize(rules=dict(dots='int8')), uses)

  def test_by_use_from_a_config(self):
    said = dict(name='s', model='m', quantize=dict(dot='W4A16', last=None))
    stage = fields.read(options.Stage, 'config.stage.s', said)
    self.assertEqual(stage.quantize.rules, dict(dot='W4A16', last=None))
    with pytest.raises(ValueError, match="config.stage.s.quantize is 'W8A8'"):
      fields.read(options.Stage, 'config.stage.s', said | dict(quantize='W8A8'))
