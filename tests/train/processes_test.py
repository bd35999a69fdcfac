"""Two processes train what one does, and refuse together what one refuses."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from jaxopt_compress.parallel import cluster
from jaxopt_compress.train import evaluate
from jaxopt_compress.train import examples
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import loop
from jaxopt_compress.train import processes
from jaxopt_compress.train import workdir as workdir_lib

CONFIG = dict(
  data=dict(
    name='digits',
    test='validation',
    validation='test',
    eval_batch_size=64,
    limit=64,
  ),
  models=dict(mlp=dict(in_features=64, widths=(8,))),
  stages=('model',),
  stage=dict(
    model=dict(
      model='mlp',
      steps=6,
      batch_size=16,
      accumulate=2,
      optimizer='sgd',
      learning_rate=0.1,
      eval_every=2,
      keep='best',
      metric='loss',
      patience=1,
    )
  ),
  report=dict(batches=(1,), seconds=0.0, plots=False),
  run=dict(log_every=2, save_every=3),
)


class ProcessesTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path

  def _weights(self, name):
    path = self.dir / name / 'stages' / 'model' / job_lib.WEIGHTS
    return safetensors.load_file(path)

  def test_two_equal_one(self):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      address = f'localhost:{free.getsockname()[1]}'
    environ = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
    running = [
      subprocess.Popen(
        [sys.executable, __file__, address, str(i), str(self.dir)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for i in range(2)
    ]
    try:
      held = self.dir / 'held'
      with workdir_lib.opened(held):
        outputs = [p.communicate(timeout=240)[0] for p in running]
    finally:
      for process in running:
        process.kill()
    for process, output in zip(running, outputs, strict=True):
      self.assertEqual(process.returncode, 0, output)
      for refusal in (
        "Refused: the data is '0 examples' in process 0 and '1 examples' in",
        'Refused: config.seed is 1 in process 0 and 2 in process 1. Start all',
        f'Refused: The workdir {held} is in use by process {os.getpid()} on',
      ):
        self.assertIn(refusal, output)
    self.assertIn('Devices: 2', outputs[0])
    self.assertNotIn('[model]', outputs[1])  # process 0 speaks for both

    one = {**CONFIG, 'run': {**CONFIG['run'], 'devices': 1}}
    loop.run(one, self.dir / 'one')
    expected, found = self._weights('one'), self._weights('two')
    self.assertEqual(expected.keys(), found.keys())
    for name in expected:
      np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


class ProcessTest(absltest.TestCase):
  def test_alone(self):
    self.assertEqual(processes.gather('é'), ['é'])
    processes.wait('here')
    processes.agree({'a': 1, 'f': print})
    processes.fail_together('')
    with pytest.raises(ValueError, match='wrong'):
      processes.fail_together('wrong')


def _read_by(index):
  load = examples.load

  def other(*args):
    data = load(*args)
    return dataclasses.replace(data, description=f'{index} examples')

  return other


def _worse_and_worse(index):
  """What process 1 finds, which would have it stop at step 4 and keep step 2."""
  original, calls = evaluate.evaluate, []

  def found(*args, **kwargs):
    calls.append(1)
    found = original(*args, **kwargs)
    worse = found.metrics['loss'] + 9 * index * len(calls)
    return dataclasses.replace(found, metrics=found.metrics | {'loss': worse})

  return found


def main(address, process_id, folder):
  folder = pathlib.Path(folder)
  assert cluster.initialize(address, 2, int(process_id)) == 'arguments'
  assert cluster.initialize() == 'already running'
  index = jax.process_index()
  assert processes.gather('é' * index) == ['', 'é']
  try:
    loop.run({**CONFIG, 'seed': 1 + index}, folder / 'two')
  except ValueError as e:
    print('Refused:', e)
  try:
    with mock.patch.object(examples, 'load', _read_by(index)):
      loop.run(CONFIG, folder / 'two')
  except ValueError as e:
    print('Refused:', e)
  assert not (folder / 'two').exists()
  try:
    with workdir_lib.opened(folder / 'held'):
      pass
  except ValueError as e:
    print('Refused:', e)
  with mock.patch.object(evaluate, 'evaluate', _worse_and_worse(index)):
    loop.run(CONFIG, folder / 'two')


if __name__ == '__main__':
  main(*sys.argv[1:])
