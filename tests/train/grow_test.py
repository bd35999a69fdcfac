"""Stages that grow: words, sizes, and a run that is killed and goes on."""

import json
import pathlib

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_compress as jc
from jaxopt_compress import report
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train import grow
from jaxopt_compress.train import loop
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options

pytestmark = pytest.mark.usefixtures('compiled')


class WordsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('how', dict(how='net2nte', factor=2.0), "'net2net'"),
    ('layers', dict(layers='identiy', depth=2.0), "'identity'"),
    ('where', dict(where='top', depth=2.0), "'stacked'"),
    ('nothing', dict(exact=False), 'nothing comes'),
    ('sizes', dict(sizes=('a', 2)), 'the name of a group and a number'),
  )
  def test_refused(self, said, message):
    with self.assertRaisesRegex(ValueError, message):
      grow.check('here', options.Grow(**said))


def _kept(kwargs, x, said):
  """(large model, outputs before and after)."""
  model = model_lib.build('m', kwargs, jax.eval_shape(lambda: x))
  said = options.Grow(**said)
  plan = grow.planned(said, model)
  # As it is read from disk, without a program.
  plan = jc.Plan.from_json(plan.to_json())
  large = grow.resized(model, grow.planned(said, model))
  params, variables = model.init(0)
  params = jax.tree.map(
    lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size).reshape(a.shape)), params
  )
  new = grow.started(said, model, plan, large, params, variables, seed=0)
  return (
    large,
    model.forward(params, variables, x),
    large.forward(*new, x),
  )


class SizesTest(parameterized.TestCase):
  def test_convolutions(self):
    x = jnp.cos(jnp.arange(128.0)).reshape(2, 8, 8, 1)
    large, before, after = _kept(
      dict(name='resnet', widths=(4, 6)), x, dict(factor=2.0, depth=2.0)
    )
    # The second block halves the image, so that it cannot be there twice.
    self.assertEqual(large.keywords['widths'], (8, 12))
    self.assertEqual(large.keywords['depths'], (2, 1))
    np.testing.assert_allclose(before, after, atol=1e-5)

  def test_a_decoder(self):
    x = jnp.array([[3, 1, 4, 1, 5]])
    sizes = dict(width=16, heads=4, kv_heads=2, mlp_width=8)
    large, before, after = _kept(
      dict(name='decoder', vocab=11, depth=2, **sizes),
      x,
      dict(
        depth=1.5,
        sizes=(
          ('params/blocks/attn/k/kernel:-2', 32),
          ('params/blocks/attn/k/kernel:-1', 4),
          ('params/blocks/mlp/down/kernel:-2', 16),
        ),
      ),
    )
    got = {k: large.keywords[k] for k in (*sizes, 'depth')}
    self.assertEqual(
      got, dict(width=32, heads=8, kv_heads=4, mlp_width=16, depth=3)
    )
    np.testing.assert_allclose(before, after, atol=1e-5)

  def test_a_size_that_the_model_has_itself(self):
    model = model_lib.build(
      'm',
      dict(name='vit', width=8, heads=2, depth=1),
      jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32),
    )
    features = ('params/blocks/0/attn/k/kernel:-1.1', 8)
    plan = grow.planned(options.Grow(sizes=(features,)), model)
    with self.assertRaisesRegex(ValueError, "'width'|no numbers"):
      grow.resized(model, plan)


def tiny():
  common = dict(batch_size=16, learning_rate=0.01, steps=4, eval_every=2)
  return dict(
    seed=0,
    data=dict(
      name='digits',
      test='validation',
      validation='validation',
      eval_batch_size=64,
    ),
    models=dict(
      small=dict(name='mlp', widths=(8,)), large=dict(name='mlp', widths=(16,))
    ),
    stages=('small', 'grown', 'large'),
    stage=dict(
      small=dict(model='small', **common),
      grown=dict(
        model='small',
        init='small',
        grow=dict(factor=2.0),
        penalty=(('.*/kernel', 'l2_sp'), ('.*', None)),
        penalty_weight=0.1,
        **common,
      ),
      large=dict(model='large', **common),
    ),
    report=dict(batches=(1,), seconds=0.0, plots=False),
    run=dict(devices=1, log_every=2, save_every=2),
  )


def test_another_model_than_that_of_init(tmp_path):
  config = tiny()
  config['stage']['grown']['model'] = 'large'
  with pytest.raises(ValueError, match="'grown' grows model 'large'.*'small'"):
    loop.run(config, tmp_path, dry_run=True)


class Killed(BaseException):
  """Nothing in the library catches this, as nothing catches SIGKILL."""


def _bits(workdir):
  path = pathlib.Path(workdir, 'stages', 'grown', 'tree')
  leaves = checkpoint.read_manifest(path)['leaves']
  return {k: crc for k, (_, _, crc) in leaves.items()}


@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::ResourceWarning'
)
def test_killed(tmp_path, monkeypatch, capsys):
  loop.run(tiny(), tmp_path / 'whole')
  page = report.read(tmp_path / 'whole')
  sizes = [s.parameters for s in page.stages]
  assert sizes == [64 * 8 + 8 + 90, 64 * 16 + 16 + 170, 64 * 16 + 16 + 170]
  assert 'are 16: 610 -> 1,210 parameters' in str(page.stages[1])
  log = capsys.readouterr().out
  assert '[grown] grows: 610 -> 1,210 parameters' in log
  assert ' stays: ' not in log
  assert 'growth of grown beside large' in page.facts
  # The small one's operations come first; two evaluations of each stage.
  curves = page.curves
  assert [len(c) for c in curves.values()] == [2, 2, 2]
  first, each = curves['small'][1][0], curves['large'][1][0] / 4
  # The penalty is a part of each step.
  assert 0 <= curves['grown'][1][0] - first - 4 * each < 0.4 * each

  original, calls = checkpoint.Checkpoints.save, []

  def killed(self, step, *args):
    original(self, step, *args)
    calls.append(step)
    if len(calls) == 3:
      self.wait()
      raise Killed()

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'save', killed)
    with pytest.raises(Killed):
      loop.run(tiny(), tmp_path / 'broken')
  loop.run(tiny(), tmp_path / 'broken')
  assert _bits(tmp_path / 'broken') == _bits(tmp_path / 'whole')
  text = (tmp_path / 'broken/stages/grown/plan.json').read_text()
  plan = jc.Plan.from_json(json.dumps(json.loads(text)['plan']))
  assert plan.sizes == {'params/head/kernel:-2': 16}
  lines = (tmp_path / 'broken/metrics.jsonl').read_text().splitlines()
  tests = [json.loads(x) for x in lines if '"grown/validation"' in x]
  assert [x['step'] for x in tests] == [2, 4]
