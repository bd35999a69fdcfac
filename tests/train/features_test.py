"""Features of a stage: which layers are compared, how, and what is left behind."""

import dataclasses
import functools
import tempfile

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.distillation import features as losses
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train import distil
from jaxopt_compress.train import features
from jaxopt_compress.train import final as final_lib
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import stages

DATA = options.Data(name='digits')
TEXT = options.Data(name='stdlib', input='tokens', target='targets')
RNG = np.random.default_rng(0)
BATCH = {
  'image': jnp.asarray(RNG.normal(size=(8, 8, 8, 1)), jnp.float32),
  'label': jnp.arange(8) % 4,
  'mask': jnp.array([1, 1, 1, 1, 1, 1, 0, 1]) > 0,
}
TOKENS = {'tokens': jnp.arange(12).reshape(3, 4) % 7}
TOKENS['targets'] = TOKENS['tokens'][:, ::-1]
HIDDEN = r'layers/\d/kernel'


def abstract(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


@functools.cache
def mlp(*widths):
  asked = dict(in_features=64, widths=widths)
  return model_lib.build('mlp', asked, abstract(BATCH['image']))


@functools.cache
def decoder(depth, width=8, scan=True):
  asked = dict(
    vocab=7, width=width, depth=depth, heads=2, kv_heads=2, scan=scan
  )
  return model_lib.build('decoder', asked, abstract(TOKENS['tokens']))


def stage_of(*entries, teacher='t', steps=5, **asked):
  optimizer = options.Optimizer(learning_rate=0.1)
  asked = options.Distil(teacher=teacher, features=entries, **asked)
  return options.Stage(
    name='s', model='m', steps=steps, distil=asked, optimizer=optimizer
  )


def run(stage, student, teacher, batch, data=DATA, mode='jit', devices=1):
  """(state before, state after a step, metrics, what the stage leaves)."""
  teachers = () if stage.distil.follows else (teacher,)
  built = stages.build(stage, student, teachers, data)
  params, variables = student.init(0)
  state = built.create(params, variables, jax.random.key(0), built.ranges)
  frozen = tuple(t.init(1) for t in teachers)
  mesh = mesh_lib.data_mesh(devices)
  step = step_lib.data_parallel(built.step, mode, mesh)
  place = functools.partial(mesh_lib.replicate, mesh=mesh)
  before = jax.tree.map(lambda x: x, state)
  after, metrics = step(
    place(state), mesh_lib.shard(batch, mesh), place(frozen)
  )
  left = final_lib.finish(after, stage, student, built.compression)
  return before, after, metrics, left


def hidden(model, seed, batch=BATCH):
  """What the products of an MLP give, in their order."""
  params, _ = model.init(seed)
  x, found = batch['image'].reshape(8, -1), []
  for layer in params['layers'].values():
    y = x @ layer['kernel'] + layer['bias'][None]
    found.append(y)
    x = jax.nn.relu(y)
  return found


class FeaturesTest(parameterized.TestCase):
  def test_a_hint_through_a_connector(self):
    stage = stage_of((HIDDEN, HIDDEN, 'hint', 0.5), alpha=0.0)
    student, teacher = mlp(6, 6), mlp(9, 9)
    before, after, metrics, left = run(stage, student, teacher, BATCH)
    self.assertEqual(
      sorted(before.connectors), ['0/layers/0/kernel', '0/layers/1/kernel']
    )
    want = []
    pairs = zip(hidden(student, 0), hidden(teacher, 1), strict=True)
    for i, (s, t) in enumerate(pairs):
      c = before.connectors[f'0/layers/{i}/kernel']
      s = s @ c['kernel'] + c['bias'][None]
      want.append(jnp.mean(jnp.square(s - t)[BATCH['mask']]))
    np.testing.assert_allclose(metrics['hint'], np.mean(want), rtol=1e-5)
    # alpha is 0: the loss is that of labels and half of the hint.
    total = metrics['hard'] + 0.5 * metrics['hint']
    np.testing.assert_allclose(metrics['loss'], total, rtol=1e-6)
    # They are trained, and no part of what the stage leaves.
    moved = jax.tree.map(
      lambda a, b: float(jnp.abs(a - b).max()) > 1e-3,
      before.connectors,
      after.connectors,
    )
    self.assertTrue(all(jax.tree.leaves(moved)))
    with tempfile.TemporaryDirectory() as work:
      checkpoint.save(f'{work}/state', after, {})
      again = checkpoint.restore(f'{work}/state', after, {})
    jax.tree.map(
      np.testing.assert_array_equal, again.connectors, after.connectors
    )
    names = [
      jax.tree_util.keystr(k) for k, _ in jax.tree.leaves_with_path(left)
    ]
    self.assertFalse([n for n in names if 'connector' in n])
    self.assertEqual(
      jax.tree.structure(left['params']), jax.tree.structure(student.params)
    )

  def test_the_number_of_devices_changes_nothing(self):
    # Some that see each example by itself, and those that see the batch.
    names = 'hint', 'similarity', 'distances', 'angles', 'contrastive'
    stage = stage_of(*((HIDDEN, HIDDEN, n, 1.0) for n in names), alpha=0.0)
    models = mlp(6, 6), mlp(9, 9)
    _, one, metrics, _ = run(stage, *models, BATCH)
    for mode in ('shard_map', 'pmap'):
      _, four, more, _ = run(stage, *models, BATCH, mode=mode, devices=4)
      self.assertContainsSubset(names, more)
      for name, value in metrics.items():
        np.testing.assert_allclose(more[name], value, rtol=1e-4)
      # Moments of Adam are the gradients.
      moments = [jax.tree.leaves(s.opt_state[0].mu) for s in (one, four)]
      for a, b in zip(*moments, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6)

  @parameterized.parameters(('uniform', [0, 3]), ('last', [2, 3]))
  def test_layers_of_scans_are_mapped(self, layer_map, chosen):
    rule = r'blocks/(\d/)?mlp/down/add'
    stage = stage_of((rule, rule, 'hint', 1.0), layer_map=layer_map)
    for scan in (True, False):
      asked = features.read(stage, decoder(2, scan=scan), [decoder(4)])
      [term] = asked.terms
      self.assertEqual([t[0][1] for _, t in term.pairs], chosen)
      self.assertEqual(asked.teacher, ('blocks/mlp/down/add',))
      self.assertEqual(len(asked.student), 1 if scan else 2)
      self.assertFalse(asked.connected)  # widths are equal

  def test_tokens_in_one_row_are_those_of_examples(self):
    rule = 'blocks/mlp/down/add'
    qkv = 'blocks/attn/[qkv]/kernel'
    entries = (
      (rule, rule, 'hint', 1.0),
      (rule, rule, 'similarity', 1.0),
      (qkv, qkv, 'minilm_v2, heads 2', 1.0),
    )
    stage = stage_of(*entries, alpha=1.0)
    batch = TOKENS | {'mask': jnp.array([True, False, True])}
    student, teacher = decoder(2), decoder(4, width=12)
    before, _, metrics, _ = run(stage, student, teacher, batch, TEXT)
    out = [
      m.apply(*m.init(seed), TOKENS['tokens'])[1]
      for seed, m in enumerate((student, teacher))
    ]
    hint, alike = [], []
    for s, t in ((0, 0), (1, 3)):
      a = out[0][f'block{s}'].reshape(3, 4, -1)
      b = out[1][f'block{t}'].reshape(3, 4, -1)
      c = before.connectors[f'0/{rule}/{s}']
      connected = a @ c['kernel'] + c['bias'][None, None]
      hint.append(np.mean(jnp.square(connected - b)[batch['mask']]))
      loss, n = losses.similarity(a, b, mask=batch['mask'])
      alike.append(loss / n)
    np.testing.assert_allclose(metrics['hint'], np.mean(hint), rtol=1e-4)
    np.testing.assert_allclose(metrics['similarity'], np.mean(alike), rtol=1e-3)
    self.assertTrue(0 < float(metrics['minilm_v2']) < np.inf)

  def test_labels_may_be_of_some_tokens_and_features_of_all(self):
    def encoder(width):
      asked = dict(name='encoder', vocab=7, width=width, depth=1, heads=2)
      return model_lib.build('e', asked, abstract(TOKENS['tokens']))

    qkv = r'blocks/0/attn/[qkv]/kernel'
    stage = stage_of((qkv, qkv, 'minilm_v2, heads 2', 1.0), alpha=0.0)
    some = {'mask': jnp.arange(12).reshape(3, 4) % 3 == 0}
    there = {'input_mask': jnp.ones((3, 4), bool)}
    whole, part = (
      run(stage, encoder(4), encoder(8), TOKENS | more, TEXT)[2]
      for more in ({}, some | there)
    )
    np.testing.assert_allclose(whole['minilm_v2'], part['minilm_v2'], rtol=1e-5)
    self.assertGreater(abs(whole['hard'] - part['hard']), 1e-4)

  def test_the_teacher_may_be_the_moving_average(self):
    stage = stage_of(
      (HIDDEN, HIDDEN, 'normalized', 1.0), teacher='ema', alpha=0.0
    )
    _, _, metrics, _ = run(stage, mlp(6, 6), None, BATCH)
    # At the first step it is the student.
    self.assertAlmostEqual(float(metrics['normalized']), 0, places=6)

  def test_a_weight_may_change_with_the_steps(self):
    rule = HIDDEN, HIDDEN, 'hint', 'linear 0 -> 1'
    stage = stage_of(rule, alpha=0.0)
    _, _, metrics, _ = run(stage, mlp(6, 6), mlp(6, 6), BATCH)
    np.testing.assert_allclose(metrics['loss'], metrics['hard'], rtol=1e-6)
    self.assertGreater(float(metrics['hint']), 0)

  @parameterized.parameters(
    (('layer/0', HIDDEN, 'hint', 1.0), {}, 'of the student.*Did you mean'),
    (
      (HIDDEN, 'stem', 'hint', 1.0),
      {},
      "'stem' matches no value of the teacher",
    ),
    ((HIDDEN, HIDDEN, 'hint', 1.0), dict(connector='none'), 'Set connector'),
    ((HIDDEN, HIDDEN, 'minilm, heads 2', 1.0), {}, 'queries, keys and values'),
  )
  def test_what_does_not_fit_these_models(self, entry, asked, error):
    with self.assertRaisesRegex(ValueError, error):
      features.read(stage_of(entry, **asked), mlp(6, 6), [mlp(9, 9)])

  @parameterized.parameters(
    ((HIDDEN, HIDDEN, 'hint'), {}, 'is expected'),
    ((HIDDEN, '(', 'hint', 1.0), {}, 'no regular expression'),
    ((HIDDEN, HIDDEN, 'hints', 1.0), {}, "Did you mean 'hint'"),
    ((HIDDEN, HIDDEN, 'hint, power 2', 1.0), {}, "takes no 'power'"),
    ((HIDDEN, HIDDEN, 'hint', 0.0), {}, 'weight'),
    ((HIDDEN, HIDDEN, 'hint', 'rising'), {}, 'weight'),
    ((HIDDEN, HIDDEN, 'hint', 1.0), dict(layer_map='all'), 'layer_map'),
    ((HIDDEN, HIDDEN, 'hint', 1.0), dict(connector='conv'), 'connector'),
    (
      (HIDDEN, HIDDEN, 'angles', 1.0),
      dict(connector='random'),
      'no effect without one of',
    ),
    (
      (HIDDEN, HIDDEN, 'hint', 1.0),
      dict(teacher=(('a', 0.5), ('b', 0.5))),
      'one teacher',
    ),
  )
  def test_words_that_mean_nothing(self, entry, asked, error):
    with self.assertRaisesRegex(ValueError, error):
      distil.check('config.stage.s', stage_of(entry, **asked))

  def test_a_cache_has_no_features(self):
    stage = stage_of((HIDDEN, HIDDEN, 'hint', 1.0))
    stage = dataclasses.replace(stage, cache=options.Cache(k=4))
    with self.assertRaisesRegex(ValueError, 'keeps logits alone'):
      distil.check('config.stage.s', stage)

  def test_an_adapter_and_a_rounded_student(self):
    rules = ((r'.*/kernel', 'W4A8'), (r'.*', None))
    stage = stage_of((HIDDEN, HIDDEN, 'hint', 1.0), connector='identity')
    stage = dataclasses.replace(stage, quantize=options.Quantize(rules=rules))
    before, _, metrics, _ = run(stage, mlp(6, 6), mlp(6, 6), BATCH)
    self.assertTrue(np.isfinite(metrics['hint']))
    for c in before.connectors.values():
      np.testing.assert_array_equal(c['kernel'], np.eye(6))
