"""The page as a whole: written at once, read back."""

import dataclasses
import json
import os
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import report_example

from jaxopt_compress.report import page
from jaxopt_compress.report import records


def temporary(test):
  folder = tempfile.TemporaryDirectory()
  test.addCleanup(folder.cleanup)
  return folder.name


class PageTest(parameterized.TestCase):
  def test_write_and_read(self):
    report, histograms = report_example.example()
    folder = temporary(self)
    path = page.write(folder, report, histograms=histograms)
    self.assertEqual(path, f'{folder}/report.html')
    with open(f'{folder}/report.md', encoding='utf-8') as f:
      text = f.read()
    for expected in (
      '# A title',
      '| halved |',
      '- float: trained',
      '- halved: accuracy is nan.',
      '- halved: its accuracy is nan; 1 of its 1 compressed leaves are made',
      '| gzip -9 |',
      '| █··█ |',
      '| jax ',
    ):
      self.assertIn(expected, text)
    for name in ('metric', 'layers', 'channels', 'calibration', 'weights'):
      self.assertIn(f'(plots/{name}.svg)', text)
      self.assertTrue(os.path.exists(f'{folder}/plots/{name}.svg'))
    # Nothing but the report is left behind.
    self.assertCountEqual(
      os.listdir(folder), ['plots', 'report.html', 'report.json', 'report.md']
    )
    self.assertLen(os.listdir(f'{folder}/plots'), 5)
    back = page.read(folder)
    self.assertEqual(
      records.to_json(back.stages), records.to_json(report.stages)
    )
    self.assertEqual(back.coverage, dict(report.coverage))
    self.assertEqual(back.channels, dict(report.channels))
    self.assertEqual(
      records.to_json(back.answers), records.to_json(report.answers)
    )
    self.assertIn('## Answers', text)
    for told in (text, page.text(back)):
      self.assertIn('of one without, the reference of this report', told)
    self.assertNotIn('reference', page.text(page.Report('none to compare')))
    few = dataclasses.replace(report.answers[1], agreement={1: 0.9, 3: 1.0})
    told = page.text(page.Report('three classes', answers=[few]))
    self.assertIn('agreement@3: how often', told)
    self.assertNotIn('agreement@5', told)

  def test_json_is_strict(self):
    folder = temporary(self)
    page.write(folder, report_example.example()[0], plots=False)

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
    with open(f'{folder}/report.html', encoding='utf-8') as f:
      self.assertIn('<title>old</title>', f.read())

  def test_empty_report(self):
    folder = temporary(self)
    page.write(folder, page.Report('empty'))
    self.assertFalse(os.path.exists(f'{folder}/plots'))
    self.assertEqual(page.read(folder).stages, [])

  def test_a_report_of_before_has_nothing_of_what_came_later(self):
    folder = temporary(self)
    page.write(folder, report_example.example()[0], plots=False)
    with open(f'{folder}/report.json', encoding='utf-8') as f:
      content = json.load(f)
    for key in ('validation', 'curves', 'reference'):
      del content[key]
    for row in content['answers']:
      del row['numbers'], row['specs']
    with open(f'{folder}/report.json', 'w', encoding='utf-8') as f:
      json.dump(content, f)
    back = page.read(folder)
    self.assertEqual((back.validation, back.reference), ({}, ''))
    self.assertEqual(back.answers[0].numbers, {})

  def test_no_report(self):
    with self.assertRaisesRegex(ValueError, 'Run the experiment'):
      page.read(temporary(self))

  def test_the_verdict_is_everywhere(self):
    stages = [
      records.StageRecord('big', 0.9, bytes_memory=4000),
      records.StageRecord('little', 0.899, bytes_memory=1000),
    ]
    report = page.Report('a title', stages)
    said = 'little is the smallest stage within 1% of big: 4x smaller'
    for told in (page.text(report), page.markdown(report)):
      self.assertIn(said, told)
    report = dataclasses.replace(report, reference='little')
    folder = temporary(self)
    page.write(folder, report, plots=False)
    self.assertEqual(page.read(folder).reference, 'little')
    self.assertIn('No stage is smaller than little', page.text(report))

  def test_an_empty_report_is_a_report(self):
    self.assertIn('Nothing', page.text(page.Report('Nothing')))


if __name__ == '__main__':
  absltest.main()
