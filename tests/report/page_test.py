"""The page as a whole: written at once, read back, drawn."""

import dataclasses
import json
import math
import os
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.report import leaves as leaves_lib
from jaxopt_compress.report import page
from jaxopt_compress.report import plots
from jaxopt_compress.report import records


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Halved(array.CompressedArray):
  """Stands for 2 x, stored as bfloat16."""

  x: jax.Array

  shape = property(lambda self: self.x.shape)
  dtype = property(lambda self: jnp.dtype('float32'))

  def materialize(self):
    return 2 * self.x.astype(jnp.float32)

  def describe(self):
    return 'halved'


def temporary(test):
  folder = tempfile.TemporaryDirectory()
  test.addCleanup(folder.cleanup)
  return folder.name


def example():
  kernel = np.float32([[1.0, -2.0], [0.0, 4.0]])
  reference = {'a': {'bias': np.zeros(2, np.float32), 'kernel': kernel}}
  params = {'a': dict(reference['a'], kernel=Halved(jnp.bfloat16(kernel / 2)))}
  stages = [
    records.stage('float', reference, value=0.9, notes=('trained',)),
    records.stage('halved', params, value=math.nan),
  ]
  met = lift.explain(lambda p, x: x @ p['a']['kernel'])(params, np.ones((1, 2)))
  coverage = {'halved': leaves_lib.coverage(params, reference, met)}
  report = page.Report('A title', stages, coverage, facts={'gzip -9': 2.5})
  return report, {'a/kernel': (kernel, params['a']['kernel'].materialize())}


class LeavesTest(parameterized.TestCase):
  def test_records_of_a_tree(self):
    rows = example()[0].coverage['halved']
    bias, kernel = rows
    self.assertEqual(
      (bias.path, bias.format, bias.bytes, bias.sparsity, bias.native),
      ('a/bias', 'float32', 8, 1.0, None),
    )
    self.assertEqual(
      (kernel.path, kernel.shape, kernel.format, kernel.bits_per_weight),
      ('a/kernel', (2, 2), 'halved', 16.0),
    )
    self.assertEqual((kernel.error_db, kernel.sparsity), (math.inf, 0.25))
    self.assertEqual(kernel.operations, ('dot_general',))
    self.assertFalse(kernel.native)
    self.assertStartsWith(kernel.reason, 'dot_general: ')

  @parameterized.parameters(
    ([3.0, 4.0], [3.0, 4.5], 20.0),
    ([1.0, 0.0], [1.0, 0.0], math.inf),
    ([0.0, 0.0], [0.0, 1.0], -math.inf),
    ([0.0, 0.0], [0.0, 0.0], math.inf),
    ([1.0, 1.0], [math.nan, 1.0], math.nan),
  )
  def test_error_db(self, w, w_hat, expected):
    found = leaves_lib.error_db(np.float32(w), np.float32(w_hat))
    np.testing.assert_equal(found, expected)

  def test_without_a_reference_nothing_is_claimed(self):
    (row,) = leaves_lib.coverage({'w': np.ones(3)}, {'w': np.ones(4)})
    self.assertIsNone(row.error_db)

  def test_a_leaf_that_no_operation_meets(self):
    (row,) = leaves_lib.coverage({'w': Halved(jnp.ones(3))}, met=[])
    self.assertEqual((row.native, row.reason), (None, 'meets no operation'))


class PageTest(parameterized.TestCase):
  def test_write_and_read(self):
    report, histograms = example()
    folder = temporary(self)
    path = page.write(folder, report, histograms=histograms)
    with open(path, encoding='utf-8') as f:
      text = f.read()
    for expected in (
      '# A title',
      '| halved |',
      '- float: trained',
      '- halved: accuracy is nan.',
      '| gzip -9 |',
      '| jax ',
    ):
      self.assertIn(expected, text)
    for name in ('metric', 'layers', 'weights'):
      self.assertIn(f'(plots/{name}.png)', text)
      self.assertTrue(os.path.exists(f'{folder}/plots/{name}.png'))
    # Nothing but the report is left behind.
    self.assertCountEqual(
      os.listdir(folder), ['plots', 'report.json', 'report.md']
    )
    self.assertLen(os.listdir(f'{folder}/plots'), 3)
    back = page.read(folder)
    self.assertEqual(
      records.to_json(back.stages), records.to_json(report.stages)
    )
    self.assertEqual(back.coverage, dict(report.coverage))

  def test_json_is_strict(self):
    folder = temporary(self)
    page.write(folder, example()[0], plots=False)

    def refuse(word):
      raise AssertionError(f'{word} is not JSON')

    with open(f'{folder}/report.json', encoding='utf-8') as f:
      content = json.load(f, parse_constant=refuse)
    self.assertEqual(content['stages'][1]['value'], 'nan')

  def test_a_failure_keeps_the_old_report(self):
    folder = temporary(self)
    page.write(folder, page.Report('old'), plots=False)
    bad = page.Report('new', facts={'array': np.zeros(2)})
    with self.assertRaisesRegex(ValueError, 'does not go into a report'):
      page.write(folder, bad, plots=False)
    self.assertEqual(page.read(folder).title, 'old')
    with open(f'{folder}/report.md', encoding='utf-8') as f:
      self.assertStartsWith(f.read(), '# old')

  def test_empty_report(self):
    folder = temporary(self)
    page.write(folder, page.Report('empty'))
    self.assertFalse(os.path.exists(f'{folder}/plots'))
    self.assertEqual(page.read(folder).stages, [])

  def test_no_report(self):
    with self.assertRaisesRegex(ValueError, 'Run the experiment'):
      page.read(temporary(self))

  def test_missing_matplotlib_names_the_extra(self):
    folder = temporary(self)
    with mock.patch.dict(sys.modules, {'matplotlib': None}):
      with self.assertRaisesRegex(ImportError, r'jaxopt_compress\[examples\]'):
        page.write(folder, example()[0])


class PlotsTest(absltest.TestCase):
  def test_nothing_to_draw(self):
    path = temporary(self) + '/x.png'
    nan = records.StageRecord('a', math.nan, bytes_memory=3)
    self.assertFalse(plots.metric_against_bytes([nan], path))
    self.assertFalse(plots.layers({'a': []}, path))
    self.assertFalse(plots.histograms({}, path))
    self.assertFalse(os.path.exists(path))

  def test_odd_values(self):
    folder = temporary(self)
    zeros = np.zeros(3)
    wild = np.array([math.nan, math.inf, 0.0])
    self.assertTrue(
      plots.histograms(
        {'z': (zeros, zeros), 'w': (wild, np.zeros(0))}, f'{folder}/h.png'
      )
    )
    rows = [
      records.LeafRecord('a', (2,), 'int8', compressed=True, error_db=math.nan),
      records.LeafRecord('b', (), 'int8', compressed=True),
    ]
    self.assertTrue(plots.layers({'s': rows, 't': []}, f'{folder}/l.png'))
    same = records.StageRecord('a', 0.0, bytes_memory=1)
    other = dataclasses.replace(same, metric='bits per byte', spec='.3f')
    self.assertTrue(
      plots.metric_against_bytes([same, same, other], f'{folder}/m.png')
    )


if __name__ == '__main__':
  absltest.main()
