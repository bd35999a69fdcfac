"""Scores of data in a job: of stages that train nothing, and while one trains."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

import jaxopt_compress as jc
from jaxopt_compress.data import digits
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train import loop

pytestmark = pytest.mark.usefixtures('compiled')

HALF = ((r'.*/0/kernel', 0.5), (r'.*', None))
# One layer alone would be all that shares the zeros of OWL.
BOTH = ((r'.*/kernel', 0.5), (r'.*', None))
STATIC = ((r'.*/0/kernel', 'int8, int8 tensor static asym'), (r'.*', None))
ONE_SHOT = {
  'wanda': dict(prune_score='wanda', quantize=STATIC, calibrate_batches=2),
  'taylor': dict(prune_score='taylor'),
  'fisher': dict(prune_score='fisher'),
  'movement': dict(prune_score='movement'),
  'owl': dict(prune_score='wanda', prune_allocation='owl', prune=BOTH),
}


def config(seed=0):
  data = dict(batch_size=32, prune_batches=2)
  stages = {'t': dict(model='mlp', steps=2, batch_size=32, learning_rate=0.01)}
  for name, said in ONE_SHOT.items():
    stages[name] = dict(model='mlp', init='t', prune=HALF) | data | said
  stages['random'] = dict(
    model='mlp', init='t', prune=HALF, prune_score='random'
  )
  stages['steps'] = dict(
    model='mlp', steps=4, batch_size=32, prune=HALF, prune_every=1
  ) | dict(prune_score='wanda', init='t', learning_rate=0.0)
  return dict(
    seed=seed,
    data=dict(name='digits', test='validation'),
    models=dict(mlp=dict(in_features=64, widths=(8,))),
    stages=tuple(stages),
    stage=stages,
    report=dict(batches=(1,), seconds=0.0, plots=False),
  )


class OneShotTest(parameterized.TestCase):
  found = {}  # of all tests: {stage: what it left behind}

  @pytest.fixture(autouse=True)
  def _ran(self, tmp_path):
    save = checkpoint.save

    def kept(path, final, config):
      self.found[path.parent.name.removesuffix('.partial')] = final
      save(path, final, config)

    if not self.found:
      with mock.patch.object(checkpoint, 'save', kept):
        loop.run(config(), tmp_path)

  def kernel(self, stage):
    leaf = self.found[stage]['params']['layers']['0']['kernel']
    return np.asarray(jc.materialize(leaf))

  def test_each_score_has_what_it_asks_for(self):
    masks = {name: self.kernel(name) != 0 for name in [*ONE_SHOT, 'random']}
    for name in ('taylor', 'fisher', 'movement', 'random', 'steps'):
      self.assertEqual((self.kernel(name) == 0).mean(), 0.5, name)
    alike = [
      (a, b)
      for a in masks
      for b in masks
      if a < b and (masks[a] == masks[b]).all()
    ]
    self.assertEqual(alike, [])

  def test_wanda_meets_training_data(self):
    w = self.kernel('t')
    # A pixel that is always black is worth nothing, whatever its weight.
    dark = digits.load('train')['image'].reshape(-1, 64).max(0) == 0
    self.assertTrue(dark.any())
    for name in ('wanda', 'owl', 'steps'):
      found = self.kernel(name)
      np.testing.assert_array_equal(found[dark], 0, name)
    # Within each output, as Wanda ranks.
    np.testing.assert_array_equal((self.kernel('steps') != 0).sum(0), 32)
    self.assertGreater(np.abs(w[dark]).max(), 0)


if __name__ == '__main__':
  absltest.main()
