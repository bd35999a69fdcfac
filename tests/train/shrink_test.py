"""Channels go before a stage begins: how many is known first, then which."""

import dataclasses
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress import pruning
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.core import rules
from jaxopt_compress.train import fields
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import shrink
from jaxopt_compress.train import stages
from jaxopt_compress.train.tasks import classification
from tests.models.own import networks

DATA = options.Data(name='digits')
X = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
GROUP = 'params/layers/0/kernel:-1'


def _stage(**said):
  said = {'name': 's', 'model': 'mlp', 'init': 't', 'shrink': said}
  return fields.read(options.Stage, 'c', said)


class LayersTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_layers_go_whole(self, scan):
    sizes = dict(width=8, depth=4, heads=2, mlp_width=8, vocab=5, max_length=4)
    x = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    asked = dict(name='decoder', scan=scan, **sizes)
    model = model_lib.build('d', asked, x)
    said = fields.read(
      options.Shrink, 'c', dict(layers=0.5, layer_score='score')
    )
    shrink.check('c', said)
    guess = shrink.guessed(said, model)
    self.assertEqual(list(guess.sizes.values()), [2])
    params, variables = model.init(0)
    # The second and the last layer have the largest weights.
    grow = np.array([1.0, 9.0, 2.0, 8.0])
    blocks = params['blocks']
    if scan:
      mlp = blocks['mlp']['up']
      mlp['kernel'] = mlp['kernel'] * grow[:, None, None].astype('f')
    for i, block in enumerate([] if scan else blocks.values()):
      mlp = block['mlp']['up']
      mlp['kernel'] = mlp['kernel'] * np.float32(grow[i])
    args = model, params, variables
    plan, _ = shrink.chosen(said, *args, [], seed=0)
    self.assertEqual([x.tolist() for x in plan.sources.values()], [[1, 3]])
    tokens = np.zeros((2, 4), np.int32)
    # Of a layer that goes nothing takes over.
    small, variables, lost = shrink.cut(
      model, plan, params, variables, [tokens]
    )
    self.assertEqual({loss.after for loss in lost.values()} - {1.0}, set())
    shallow = shrink.resized(model, plan)
    y = shallow.forward(small, variables, tokens)
    same = model_lib.build('d', asked | dict(depth=2), x)
    np.testing.assert_array_equal(y, same.forward(small, variables, tokens))

  @parameterized.parameters(True, False)
  def test_starts_where_the_mask_was(self, scan):
    """Widths of a decoder with RMS norms, of which layers may go, too."""
    sizes = dict(width=16, depth=3, heads=2, mlp_width=8, vocab=5, max_length=4)
    x = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    model = model_lib.build('d', dict(name='decoder', scan=scan, **sizes), x)
    params, variables = model.init(0)
    found = shrink.structure(model)
    width = {n: g.size // 4 for n, g in found.free.items() if g.size == 16}
    layers = {n: 2 for n, g in found.free.items() if g.size == 3}
    tokens = np.arange(8, dtype=np.int32).reshape(2, 4) % 5
    first = lambda sizes: plan_lib.Plan(
      found, {n: np.arange(k) for n, k in sizes.items()}
    )
    plan = first(width | layers)
    small = shrink.resized(model, plan)
    cut = shrink.cut(model, plan, params, variables)[:2]
    *start, said = shrink.folded(model, plan, small, *cut)
    self.assertRegex(said, 'took up')
    self.assertEqual(shrink.folding(model, plan, small), (True, said))
    deep = first(layers)
    masked = first(width).mask(shrink.tree_of(params, variables))
    shallow = plan_lib.shrink(deep, masked).values()
    want = shrink.resized(model, deep).forward(*shallow, tokens)
    before, after = (
      np.abs(small.forward(*p, tokens) - want).max() for p in (cut, start)
    )
    self.assertGreater(before, 1e-2)
    self.assertLess(after, 1e-4)

  def test_a_model_without_layers(self):
    model = model_lib.build('mlp', dict(widths=(4, 4)), X)
    with pytest.raises(ValueError, match='has none that pass one value on'):
      shrink.guessed(options.Shrink(layers=0.5), model)


class OwnSizesTest(parameterized.TestCase):
  def build(self, name, **said):
    said = dict(name=f'{networks.__name__}:{name}', **said)
    task = dataclasses.replace(classification.classification, loss_name='own')
    return model_lib.build('net', said, X, task)

  def test_a_linen_network_is_built_again(self):
    model = self.build('Linen', width=8)
    plan = shrink.guessed(options.Shrink(keep=0.5), model)
    for found in (plan, plan_lib.Plan.from_json(plan.to_json())):
      small = shrink.resized(model, found)
      self.assertEqual(small.keywords, model.keywords | {'width': 4})
      self.assertEqual(small.params['Dense_1']['kernel'].shape, (4, 3))
      self.assertIs(small.task, model.task)

  def test_no_keyword_says_the_size(self):
    model = self.build('linen_of_a_function', classes=3)
    with pytest.raises(
      ValueError, match=r"none of \['classes'\] sets.*nn.Dense\(self.width"
    ):
      shrink.guessed(options.Shrink(keep=0.5), model)
    by = (('.*layers_1/kernel:-1', 0.5), ('.*', None))
    plan = shrink.guessed(options.Shrink(keep=0.5, by=by), model)
    with pytest.raises(ValueError, match='has to become a number of'):
      shrink.resized(model, plan)


class ShrinkTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = model_lib.build('mlp', dict(widths=(8, 6)), X)
    cls.params, cls.variables = cls.model.init(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 8, 8, 1)).astype(np.float32)
    cls.batches = list(zip(x, rng.integers(0, 10, (2, 16)), strict=True))

  def chosen(self, **said):
    stage = _stage(**said)
    shrink.check('c', stage.shrink)
    return shrink.chosen(
      stage.shrink,
      self.model,
      self.params,
      self.variables,
      self.batches,
      seed=3,
    )[0]

  @parameterized.parameters(
    'magnitude', 'soft_threshold', 'taylor', 'fisher', 'activations', 'random'
  )
  def test_sizes_are_known_before_scores(self, score):
    said = dict(keep=0.5, score=score)
    if score == 'soft_threshold':
      said |= dict(k=0.01)
    plan = self.chosen(**said)
    guessed = shrink.guessed(_stage(**said).shrink, self.model)
    self.assertEqual(plan.sizes, guessed.sizes)
    self.assertEqual(list(plan.sizes.values()), [3, 4])
    # A guess takes the first; whoever asks for scores gets others.
    self.assertFalse(np.array_equal(plan.sources[GROUP], range(4)))

  def test_scores_differ(self):
    kept = {
      score: tuple(self.chosen(keep=0.5, score=score).sources[GROUP])
      for score in ('magnitude', 'taylor', 'random')
    }
    self.assertLen(set(kept.values()), 3)
    self.assertNotIn('wanda', shrink.score_words())
    soft = dict(keep=0.5, score='soft_threshold', quantile=0.99)
    self.assertFalse(
      np.array_equal(self.chosen(**soft).sources[GROUP], kept['magnitude'])
    )

  def test_magnitude_is_that_of_the_library(self):
    name = 'params/head/kernel:-2'
    head = np.abs(self.params['head']['kernel']).mean(1)
    last = np.abs(self.params['layers']['1']['kernel']).mean(0)
    worth = head / head.mean() + last / last.mean()
    want = np.sort(np.argsort(-worth)[:2])
    got = self.chosen(keep=0.34).sources[name]
    np.testing.assert_array_equal(got, want)

  @parameterized.parameters(
    (dict(flops=0.5), 'flops'),
    (dict(params=300.0), 'params'),
    (dict(bytes=0.4), 'bytes'),
  )
  def test_limits(self, said, key):
    stage = _stage(**said)
    plan = shrink.guessed(stage.shrink, self.model)
    small = shrink.resized(self.model, plan)
    before, after = (
      sum(x.size for x in jax.tree.leaves(m.params))
      for m in (self.model, small)
    )
    limit = 300 if key == 'params' else before * said[key]
    # Products take nearly all of the operations, and weights all of the bytes.
    self.assertBetween(after / limit, 0.7, 1.02)

  def test_a_stage_that_shrinks(self):
    stage = _stage(keep=0.5, score='taylor')
    built = stages.build(stage, self.model, (), DATA)
    self.assertEqual(built.final['params']['head']['kernel'].shape, (3, 10))
    self.assertEqual(built.source.params['head']['kernel'].shape, (6, 10))
    plan = self.chosen(keep=0.5)
    params, variables, _ = shrink.cut(
      self.model, plan, self.params, self.variables
    )
    for (path, x), (_, like) in zip(
      rules.named_leaves(params), rules.named_leaves(built.model.params)
    ):
      self.assertEqual(x.shape, like.shape, path)
    y = built.model.forward(params, variables, self.batches[0][0])
    masked = plan.mask(shrink.tree_of(self.params, self.variables))
    want = self.model.forward(*masked.values(), self.batches[0][0])
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)

  def test_what_stays_takes_over(self):
    plan = self.chosen(keep=0.5, score='activations')
    inputs = [x for x, _ in self.batches]
    args = self.model, plan, self.params, self.variables
    _, _, lost = shrink.cut(*args, inputs)
    names = {'params/layers/1/kernel', 'params/head/kernel'}
    self.assertEqual(set(lost), names)
    want = self.model.forward(self.params, self.variables, inputs[0])
    off = [
      np.square(self.model.forward(*shrink.cut(*args, x)[:2], inputs[0]) - want)
      for x in ((), inputs)
    ]
    self.assertLess(off[1].sum(), 0.8 * off[0].sum())

  def test_latency_is_asked_of_the_machine_once_there_are_scores(self):
    budget = pruning.budget.Budget

    class Timed(budget):
      """One microsecond for each parameter."""

      def __init__(self, *args, latency=None, table=None):
        self.tables.append(table)
        super().__init__(*args, params=latency)

      tables = []

      def measured(self, plan):
        return 2.0

    said = fields.read(options.Shrink, 'c', dict(latency=0.5))
    with mock.patch.object(pruning.budget, 'Budget', Timed):
      guess = shrink.guessed(said, self.model)
      self.assertEqual((list(guess.sizes.values()), Timed.tables), ([3, 4], []))
      args = self.model, self.params, self.variables, ()
      plan, told = shrink.chosen(said, *args, seed=0, table='t.json')
    self.assertEqual(Timed.tables, ['t.json'])
    self.assertLess(plan.sizes[GROUP], 6)
    self.assertEqual(told[-1], 'latency  measured: 2 ms')
    self.assertIn('644 -> ', told[0])

  def test_ranked_together(self):
    said = dict(keep=0.5, scope='global')
    guess = shrink.guessed(_stage(**said).shrink, self.model)
    self.assertEqual(list(guess.sizes.values()), [3, 4])
    # 7 of the 14 channels stay, wherever they are worth most.
    found = self.chosen(**said, score='taylor')
    self.assertEqual(sum(found.sizes.values()), 7)

  @parameterized.parameters(
    (dict(score='taylor'), 'neither keep nor a limit'),
    (dict(keep=0.5, flops=0.5), r"\{'keep': 0.5, 'flops': 0.5\}"),
    (dict(keep=0.5, score='tailor'), "score is 'tailor'; choose .*'taylor'"),
    (dict(keep=0.5, batches=3), 'batches is 3, .* without a score of data'),
    (dict(keep=0.5, scope='all'), "scope is 'all'; choose one of"),
    (dict(layers=0.5, layer_score='sine'), "layer_score is 'sine'; choose"),
    (dict(keep=0.5, rounding='up'), "is 'up', .* no effect without multiple"),
    (dict(keep=0.5, score='soft_threshold'), 'k=0.0 and quantile=0.0: one of'),
    (
      dict(keep=0.5, score='soft_threshold', k=0.1, quantile=0.5),
      'k=0.1 and quantile=0.5: one of',
    ),
    (dict(keep=1.0), "'keep': 1.0}: all of it, so nothing goes"),
    (dict(flops=1.0), "'flops': 1.0}: all of it, so nothing goes"),
  )
  def test_mistakes(self, said, message):
    with pytest.raises(ValueError, match=message):
      shrink.check('c', _stage(**said).shrink)

  def test_what_cannot_be_met_begins_with_the_stage(self):
    stage = _stage(params=3.0)
    with pytest.raises(ValueError, match="^Stage 's': The budget cannot be"):
      stages.build(stage, self.model, (), DATA)
    stage = _stage(keep=0.5, by=(('nothing', 0.5), ('.*', None)))
    with pytest.raises(ValueError, match="^Stage 's': .*nothing"):
      stages.build(stage, self.model, (), DATA)
