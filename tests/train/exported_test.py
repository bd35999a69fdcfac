"""Exports that say the same in a fresh process, and one that does not."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress.export import stablehlo
from jaxopt_compress.train import exported


def _linear(params, x):
  return x @ params['w']


class ExportedTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path

  def test_checked(self):
    w = jnp.asarray([[1.0, 2.0], [4.0, 3.0]])
    x = np.eye(2, dtype=np.float32)
    batch = {'x': x, 'mask': np.array([True, True])}
    programs = {'linear': (_linear, {'w': w})}
    found = exported.export_and_check(
      self.dir, programs, batch, 'x', {'linear': x @ w}, facts={'input': [0, 1]}
    )
    written = stablehlo.load(self.dir / 'linear').manifest
    self.assertEqual(written['facts'], {'input': [0, 1]})
    said = 'reloaded in a fresh process: 2 of 2 answers are the same, outputs'
    self.assertEqual(found, {'linear': f'{said} differ by at most 0'})
    # A row that is padding is not compared.
    batch['mask'] = np.array([True, False])
    spoiled = np.array([[1.0, 2.0], [np.nan, np.nan]])
    exported.export_and_check(
      self.dir, programs, batch, 'x', {'linear': spoiled}
    )
    spoiled[0, 1] = 2.5
    with pytest.raises(RuntimeError, match="'linear' says something else.*0.5"):
      exported.export_and_check(
        self.dir, programs, batch, 'x', {'linear': spoiled}
      )

  def test_nothing_is_exported(self):
    batch = {'x': np.ones((1, 1)), 'mask': np.ones(1, bool)}
    found = exported.export_and_check(self.dir, {}, batch, 'x', {})
    self.assertEqual(found, {})


if __name__ == '__main__':
  absltest.main()
