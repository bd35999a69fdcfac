"""Every config loads, is checked, and takes a tiny step."""

import importlib.util
import pathlib

from absl.testing import parameterized
import jax
import pytest

from jaxopt_compress import report
from jaxopt_compress.train import loop
from jaxopt_compress.train import plan

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
NAMES = sorted(p.stem for p in CONFIGS.glob('*.py'))


def _load(name):
  path = CONFIGS / f'{name}.py'
  spec = importlib.util.spec_from_file_location(f'configs_{name}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class ConfigsTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path
    # What is compiled here runs for two steps: compiling is all that takes time.
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)

  @parameterized.parameters(*NAMES)
  def test_header(self, name):
    doc = _load(name).__doc__
    for word in ('Claim:', 'Cost:', f'--config=configs/{name}.py'):
      self.assertIn(word, doc)

  @parameterized.parameters(*NAMES)
  def test_full_size_is_checked(self, name):
    plan.parse(_load(name).get_config())

  @parameterized.parameters(*NAMES)
  def test_argument_is_checked(self, name):
    with pytest.raises(ValueError, match="Did you mean 'runlocal'"):
      _load(name).get_config('runlcal')

  @parameterized.parameters(*NAMES)
  def test_tiny(self, name):
    config = _load(name).get_config('runlocal')
    for stage in config.stages:
      steps = config.stage[stage].get('steps', 0)
      config.stage[stage].steps = min(steps, 2)
    config.run = {**config.get('run', {}), 'devices': 1}
    small = dict(seconds=0.0, batches=(1,), plots=False)
    config.report = {**config.get('report', {}), **small}
    loop.run(config, self.dir)
    stages = [s.name for s in report.read(self.dir).stages]
    self.assertEqual(stages, list(config.stages))
