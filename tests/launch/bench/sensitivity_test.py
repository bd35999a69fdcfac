"""The benchmark on a small network in place of the encoder."""

import contextlib
import io
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
import jax
import jax.numpy as jnp
import numpy as np

from launch.bench import bert
from launch.bench import sensitivity


def _apply(params, tokens, mask):
  x = params['table'][tokens]
  for layer in params['layers'].values():
    x = jnp.tanh(x @ layer['up']['kernel']) + 1
  x = (x * mask[..., None]).sum(1)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True), {}


def _params():
  keys = jax.random.split(jax.random.key(0), 3)
  table, *kernels = (jax.random.normal(key, (16, 16)) / 4 for key in keys)
  layers = {str(i): {'up': {'kernel': w}} for i, w in enumerate(kernels)}
  return {'table': table, 'layers': layers}


class SensitivityTest(absltest.TestCase):
  def test_prints_both_tables(self):
    flags.FLAGS.mark_as_parsed()
    tokens = np.arange(24, dtype=np.int32).reshape(4, 6) % 11
    cut = lambda folder, length: lambda text: (tokens, tokens < 9)
    said = io.StringIO()
    with (
      flagsaver.flagsaver(model='.', sentences=4, length=6, cosine=0.99),
      mock.patch.object(bert, 'load', lambda folder: (_apply, _params())),
      mock.patch.object(bert, 'tokenizer', cut),
      mock.patch.object(sensitivity, 'SCHEMES', ('W8A8', 'int4')),
      contextlib.redirect_stdout(said),
    ):
      sensitivity.main([])
    lines = said.getvalue().splitlines()
    self.assertEqual(lines[0], '4 sentences of up to 6 tokens')
    self.assertRegex(lines[3], r'^W8A8 +[01]\.\d{5}')
    weights = [line for line in lines if line.startswith('layers/')]
    self.assertLen(weights, 2)
    self.assertRegex(lines[-1], r'^error .*cosine (1|0\.99)')


if __name__ == '__main__':
  absltest.main()
