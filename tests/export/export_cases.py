"""A small model, and a folder to export it to, that several tests share."""

import os
import pathlib
import tempfile

from absl.testing import parameterized
import jax
import jax.numpy as jnp

import jaxopt_compress as jc


def params():
  key = jax.random.key(0)
  return {
    'a': {'kernel': jax.random.normal(key, (256, 32)), 'bias': jnp.ones(32)},
    'b': {'kernel': jax.random.normal(key, (32, 5))},
  }


def apply(p, x):
  y = jax.nn.relu(x @ p['a']['kernel'] + p['a']['bias'][None])
  return y @ p['b']['kernel']


def inputs(n):
  return jax.random.normal(jax.random.key(1), (n, 256))


def quantized(scheme):
  rules = [(r'.*/kernel', scheme), (r'.*', None)]
  return jc.quantize(params(), rules, uses=jc.uses(apply)(params(), inputs(2)))


def pruned(fraction):
  rules = [(r'.*/kernel', jc.Sparsity(fraction)), (r'.*', None)]
  return jc.prune(params(), rules)


def environment():
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}


class ExportTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.root = pathlib.Path(folder.name)
    self.folder = self.root / 'model'
