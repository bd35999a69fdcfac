"""Measured choices: made once, kept in a file, used by the leaf."""

import json
import pathlib

from absl.testing import absltest
import jax
import jax.numpy as jnp
import pytest

import jaxopt_compress as jc
from jaxopt_compress.kernels import choose
from jaxopt_compress.kernels.cpu import native

W = jax.random.normal(jax.random.key(0), (64, 40))


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest(
      'The CPU kernels were not built here (no C++17 compiler).'
    )


class TuneTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.file = tmp_path / 'a' / 'choices.json'

  def _tune(self, q, **options):
    return jc.tune(q, rows=(2, 20), seconds=1e-3, **options)

  def test_measures_and_keeps(self):
    q = jc.quantize({'w': W, 'b': W}, [('w', 'W8A8'), ('b', None)])
    p = self._tune(q, file=self.file)
    entries = json.loads(self.file.read_text())[choose.device_kind()]
    (entry,) = entries.values()
    for m in ('2', '20'):
      self.assertEqual(set(entry['milliseconds'][m]), {'xla', *native.paths()})
      kernels = {
        k: t for k, t in entry['milliseconds'][m].items() if k != 'xla'
      }
      self.assertEqual(entry['paths'][m], min(kernels, key=kernels.get))
    if entry['form'] == 'kernel':
      self.assertEqual(p['w'].path_for(1), entry['paths']['2'])
      self.assertEqual(p['w'].path_for(1000), entry['paths']['20'])
      f = jax.jit(jc.lift(lambda p, x: x @ p['w']))
      x = jax.random.normal(jax.random.key(1), (3, 64))
      self.assertLess(float(jnp.abs(f(p, x) - f(q, x)).max()), 1e-4)

  def test_a_file_is_believed(self):
    q = jc.quantize({'w': W}, [('w', 'W8A8')])
    self._tune(q, file=self.file)
    known = json.loads(self.file.read_text())
    (entry,) = known[choose.device_kind()].values()
    entry |= {'form': 'kernel', 'paths': {'2': 'portable', '20': 'portable'}}
    self.file.write_text(json.dumps(known))
    p = self._tune(q, file=self.file)
    self.assertEqual(p['w'].path_for(7), 'portable')
    entry['form'] = 'xla'
    self.file.write_text(json.dumps(known))
    self.assertIsInstance(self._tune(q, file=self.file)['w'], jc.QDotArray)

  def test_bad_input(self):
    q = jc.quantize({'w': W}, [('w', 'W8A8')])
    with self.assertRaisesRegex(ValueError, 'one or more positive'):
      jc.tune(q, rows=(0,))
    for text in ('{', '[1]', '{"cpu": {"w": {}}}'):
      self.file.parent.mkdir(exist_ok=True)
      self.file.write_text(text)
      with self.assertRaisesRegex(ValueError, 'no file of choices'):
        jc.tune(q, file=self.file)
      self.assertEqual(pathlib.Path(self.file).read_text(), text)


if __name__ == '__main__':
  absltest.main()
