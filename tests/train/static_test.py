"""Static and learned ranges of activations, from a config to a stored stage."""

import json
import pathlib

from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from jaxopt_compress import data as data_lib
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.calibration import ranges as calibration
from jaxopt_compress.quantization import ranges as ranges_lib
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import loop

STATIC = 'int8, int8 tensor static asym'
LEARNED = 'int4 lsq, int4 tensor static asym lsq'
FOLLOWING = 'int8, int8 tensor static asym ema'


def tiny(quantize, **change):
  """A float network, and one compressed from it, distilled where it is trained."""
  rules = ((r'.*/kernel', quantize), (r'.*', None))
  common = dict(model='mlp', batch_size=16)
  stages = {
    'float': dict(steps=4, learning_rate=0.01, **common),
    'small': dict(init='float', quantize=rules, **common, **change),
  }
  if change.get('steps'):
    stages['small'].update(teacher='float', learning_rate=0.01)
  return dict(
    seed=0,
    data=dict(name='digits', test='validation', eval_batch_size=64, limit=64),
    models=dict(mlp=dict(in_features=64, widths=(8,))),
    stages=tuple(stages),
    stage=stages,
    report=dict(batches=(1,), seconds=0.0, plots=False, export=()),
    run=dict(devices=1, log_every=2, save_every=2),
  )


def _crcs(workdir):
  manifest = checkpoint.read_manifest(
    pathlib.Path(workdir) / 'stages/small/tree'
  )
  return {name: crc for name, (_, _, crc) in manifest['leaves'].items()}


class Killed(BaseException):
  """Nothing in the library catches this."""


@pytest.mark.usefixtures('compiled')
class StaticTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path, monkeypatch):
    self.dir, self.monkeypatch = tmp_path, monkeypatch

  def _ranges(self, workdir):
    """The act scales that a stage has stored, by path."""
    names = _crcs(workdir)
    return [n for n in names if 'params' in n and 'act_scale' in n]

  def test_compressed_as_it_is(self):
    loop.run(tiny(STATIC, calibrate='minmax', calibrate_batches=3), self.dir)
    self.assertLen(self._ranges(self.dir), 2)
    page = (self.dir / 'report.md').read_text()
    self.assertIn('2, by minmax, from 48 training examples', page)
    report = json.loads((self.dir / 'report.json').read_text())
    agreement = report['stages'][1]['agreement']
    self.assertGreater(agreement, 0.9)

  def test_ranges_are_those_of_the_training_data(self):
    seen = []
    parameters = calibration.calibrate

    def spy(apply, params, rules, batches, uses, method):
      seen.append((np.concatenate(list(batches)), method))
      return parameters(apply, params, rules, batches, uses, method)

    self.monkeypatch.setattr(loop.stages_lib.ranges_lib, 'calibrate', spy)
    loop.run(tiny(STATIC, steps=1, augment=True), self.dir)
    ((x, method),) = seen
    self.assertEqual((x.shape[0], method), (8 * 16, 'mse'))
    train = data_lib.digits.load('train')['image'].reshape(-1, 64)
    known = {row.tobytes() for row in np.asarray(train, x.dtype)}
    self.assertTrue(all(r.tobytes() in known for r in x.reshape(-1, 64)))

  @parameterized.parameters(STATIC, LEARNED, FOLLOWING)
  def test_trained_and_killed(self, words):
    config = tiny(words, steps=4)
    loop.run(config, self.dir / 'whole')
    calls = []
    getitem = data_lib.Batches.__getitem__

    def killed(batches, step):
      calls.append(step)
      # 4 of the float stage, 8 to calibrate on, then the fourth of this one.
      if len(calls) == 4 + 8 + 4:
        raise Killed()
      return getitem(batches, step)

    with self.monkeypatch.context() as patch:
      patch.setattr(data_lib.Batches, '__getitem__', killed)
      with pytest.raises(Killed):
        loop.run(config, self.dir / 'broken')
    self.assertTrue((self.dir / 'broken/checkpoints/small/2').exists())
    loop.run(config, self.dir / 'broken')
    self.assertEqual(_crcs(self.dir / 'broken'), _crcs(self.dir / 'whole'))
    self.assertLen(self._ranges(self.dir / 'whole'), 2)

  def test_masks_come_first(self):
    """What is compressed as it is is calibrated with its zeros in place."""
    masks = ((r'.*/kernel', 0.9), (r'.*', None))
    seen = []
    calibrate = calibration.calibrate

    def spy(apply, params, *args):
      seen.append(np.mean(params['layers']['0']['kernel'] == 0))
      return calibrate(apply, params, *args)

    self.monkeypatch.setattr(loop.stages_lib.ranges_lib, 'calibrate', spy)
    loop.run(tiny(STATIC, prune=masks), self.dir)
    np.testing.assert_allclose(seen, [0.9], atol=0.01)

  def test_what_is_learned_has_a_rate_of_its_own(self):
    """Without one, only weights move."""
    stay = tiny(LEARNED, steps=4, learned_rate=0.0)
    loop.run(stay, self.dir / 'stay')
    loop.run(tiny(LEARNED, steps=4), self.dir / 'move')
    calibrated = dict(tiny(LEARNED), stages=('float', 'small'))
    loop.run(calibrated, self.dir / 'start')
    start, stay, move = (
      {n: crcs[n] for n in crcs if 'act_scale' in n}
      for crcs in map(_crcs, (self.dir / d for d in ('start', 'stay', 'move')))
    )
    self.assertEqual(start, stay)
    self.assertNotEqual(start, move)

  def test_placeholders_have_the_shapes_of_ranges(self):
    w = {'w': jax.numpy.ones((3, 4, 4)), 'v': jax.numpy.ones((4, 2))}

    def apply(p, x):
      x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, p['w'])
      return x @ p['v']

    x = jax.numpy.ones((2, 4))
    uses = uses_lib.uses(apply)(w, x)
    for words in ('int8, int8 tensor static asym', 'e4m3, e4m3 tensor static'):
      rules = [(r'.*', words)]
      found = calibration.calibrate(apply, w, rules, [x], uses)
      blank = ranges_lib.placeholders(w, rules, uses)
      chex.assert_trees_all_equal_shapes_and_dtypes(found, blank)
    self.assertEqual(ranges_lib.placeholders(w, [('.*', 'W8A8')], uses), {})

  def test_a_network_that_was_not_trained(self):
    config = tiny(STATIC, steps=2)
    config['stage']['small'].update(init='')
    with pytest.raises(ValueError, match="'small'.*Set init to the stage"):
      loop.run(config, self.dir, dry_run=True)
    for words in (LEARNED, FOLLOWING):  # which find their ranges from anywhere
      config = tiny(words, steps=2)
      config['stage']['small'].update(init='')
      loop.run(config, self.dir, dry_run=True)

  def test_ranges_follow(self):
    """Those of the hidden layer do; images always reach from 0 to 1."""
    common = dict(calibrate='minmax', augment=False)
    loop.run(tiny(FOLLOWING, **common), self.dir / 'start')
    loop.run(tiny(FOLLOWING, steps=4, **common), self.dir / 'end')
    start, end = (
      safetensors.load_file(self.dir / d / 'stages/small' / job_lib.WEIGHTS)
      for d in ('start', 'end')
    )
    scales = [n for n in start if 'act_scale' in n]
    self.assertLen(scales, 2)
    for name in scales:
      self.assertEqual(start[name] != end[name], 'head' in name)
      np.testing.assert_allclose(start[name], end[name], rtol=0.05)

  def test_a_frozen_base_learns_nothing(self):
    for words in (LEARNED, FOLLOWING):
      config = tiny(words, steps=2, lora=((r'.*/kernel', 2), (r'.*', None)))
      with pytest.raises(ValueError, match='frozen base of adapters'):
        loop.run(config, self.dir, dry_run=True)

  def test_a_range_that_overflows_stops_the_run(self):
    original = ranges_lib.follow

    def overflow(*args):
      return tuple(x + np.inf for x in original(*args))

    self.monkeypatch.setattr(ranges_lib, 'follow', overflow)
    with pytest.raises(loop.Diverged, match="at step 2 of stage 'small'"):
      loop.run(tiny(FOLLOWING, steps=4), self.dir)

  def test_unknown_method(self):
    with pytest.raises(
      ValueError, match=r"calibrate is 'median'; choose one of \('absmax'"
    ):
      loop.run(tiny(STATIC, calibrate='median'), self.dir, dry_run=True)

  def test_dry_run(self):
    loop.run(tiny(LEARNED, steps=2), self.dir, dry_run=True)
