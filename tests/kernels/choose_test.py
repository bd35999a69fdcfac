"""Measured choices: made once, kept in a file, used by the leaf."""

import json
from unittest import mock

from absl.testing import absltest
import in_out
import jax
import jax.numpy as jnp
import pytest

import jaxopt_compress as jc
from jaxopt_compress.kernels import choose
from jaxopt_compress.kernels.cpu import native

W = jax.random.normal(jax.random.key(0), (64, 40))


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


class TuneTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.file = tmp_path / 'a' / 'choices.json'

  def _tune(self, q, **options):
    options |= dict(uses=in_out.IN_OUT, rows=(2, 20), seconds=1e-3)
    return jc.kernels.tune(q, **options)

  def _entry(self):
    known = json.loads(self.file.read_text())
    (entry,) = known[choose.device_kind()].values()
    return known, entry

  def test_measures_and_keeps(self):
    q = jc.quantize(
      {'w': W, 'b': W}, [('w', 'W8A8'), ('b', None)], uses=in_out.IN_OUT
    )
    p = self._tune(q, file=self.file)
    _, entry = self._entry()
    self.assertEqual(set(entry), {'2', '20'})
    best = {}
    for m, times in entry.items():
      self.assertEqual(set(times), {'xla', *native.paths()})
      best[m] = min(native.paths(), key=times.get)
    if isinstance(p['w'], jc.PackedArray):
      self.assertEqual(p['w'].plan.path_for(1), best['2'])
      self.assertEqual(p['w'].plan.path_for(1000), best['20'])
      f = jax.jit(jc.lift(lambda p, x: x @ p['w']))
      x = jax.random.normal(jax.random.key(1), (3, 64))
      self.assertLess(float(jnp.abs(f(p, x) - f(q, x)).max()), 1e-4)
    jc.kernels.tune(
      q, rows=(3,), seconds=1e-3, file=self.file, uses=in_out.IN_OUT
    )
    self.assertEqual(self._entry()[1], entry | {'3': self._entry()[1]['3']})

  def test_a_file_is_believed(self):
    q = jc.quantize({'w': W}, [('w', 'W8A8')], uses=in_out.IN_OUT)
    self._tune(q, file=self.file)
    known, entry = self._entry()
    for times in entry.values():
      times |= dict.fromkeys(times, 5.0) | {'portable': 1.0}
    self.file.write_text(json.dumps(known))
    p = self._tune(q, file=self.file)
    self.assertEqual(p['w'].plan.path_for(7), 'portable')
    for times in entry.values():
      times['xla'] = 0.5
    self.file.write_text(json.dumps(known))
    self.assertIsInstance(
      self._tune(q, file=self.file)['w'], jc.quantization.QDotArray
    )
    # What lacks a time is measured again.
    del entry['2']['xla']
    self.file.write_text(json.dumps(known))
    self._tune(q, file=self.file)
    self.assertIn('xla', self._entry()[1]['2'])

  def test_ties_go_to_the_best_path(self):
    q = jc.quantize({'w': W}, [('w', 'W8A8')], uses=in_out.IN_OUT)
    tie = {'xla': 1.0} | dict.fromkeys(native.paths(), 0.02)
    with mock.patch.object(choose, '_measured', lambda *_: dict(tie)):
      p = self._tune(q)
    best = native.paths()[0]
    self.assertEqual(p['w'].plan.paths, ((2, best), (20, best)))

  def test_zeros_are_left_out_where_that_is_faster(self):
    w = jnp.where(jnp.arange(64)[:, None] % 4 == 0, W, 0.0)
    q = jc.quantize({'w': w}, [('w', 'W8A8')], uses=in_out.IN_OUT)
    self._tune(q, file=self.file)
    known = json.loads(self.file.read_text())
    (entries,) = known.values()
    thin, dense = sorted(entries, key=lambda name: 'without zeros' not in name)
    for faster in (thin, dense):
      for name, entry in entries.items():
        for times in entry.values():
          times |= dict.fromkeys(times, 1.0 if name == faster else 3.0)
          times['xla'] = 4.0
      self.file.write_text(json.dumps(known))
      p = self._tune(q, file=self.file)
      self.assertEqual(p['w'].plan.sparse is not None, faster == thin)

  def test_what_has_no_kernel_stays(self):
    q = jc.quantize({'w': W}, [('w', 'FP8_DYNAMIC')], uses=in_out.IN_OUT)
    for params, why in ((q, 'w: e4m3 has no kernel'), ({'w': W}, 'no leaf is')):
      with self.assertWarnsRegex(UserWarning, f'Nothing is tuned: {why}'):
        out = jc.kernels.tune(
          params, rows=(1,), file=self.file, uses=in_out.IN_OUT
        )
      self.assertIs(out['w'], params['w'])
    self.assertFalse(self.file.exists())

  def test_bad_input(self):
    q = jc.quantize({'w': W}, [('w', 'W8A8')], uses=in_out.IN_OUT)
    for rows in ((0,), (), 3):
      with self.assertRaisesRegex(ValueError, 'one or more positive'):
        jc.kernels.tune(q, rows=rows, uses=in_out.IN_OUT)
    self.file.parent.mkdir()
    self.file.write_text('{"cpu": {"w": {"a": {}}}}')
    with self.assertRaisesRegex(ValueError, 'no number of rows. Remove it'):
      jc.kernels.tune(q, file=self.file, uses=in_out.IN_OUT)


if __name__ == '__main__':
  absltest.main()
