"""The page: it parses, all of the records are in it, and it loads nothing."""

import dataclasses
import html.parser
import math
import os
import re
import tempfile

from absl.testing import parameterized
import numpy as np
import report_example
import report_records

from jaxopt_compress.report import page
from jaxopt_compress.report import records

VOID = {'meta', 'path', 'rect', 'circle', 'br'}
HOSTILE = (
  '</script><script>alert(1)</script><img src="x" onerror=\'y\'> & 2 < 3'
)


class Parsed(html.parser.HTMLParser):
  """The elements of a page in order, and what is wrong with how they nest."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.texts = [], [], []
    self.feed(text)
    self.close()
    if self.open:
      raise AssertionError(f'{self.open} are never closed')

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    if tag not in VOID and self.open.pop() != tag:
      raise AssertionError(f'{tag} is closed where another is open')

  def handle_data(self, data):
    if not self.open or self.open[-1] not in ('script', 'style'):
      self.texts.append(data)

  def all(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


def written(report, **kwargs):
  with tempfile.TemporaryDirectory() as folder:
    page.write(folder, report, **kwargs)
    with open(os.path.join(folder, 'report.html'), encoding='utf-8') as f:
      return f.read()


class HtmlTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    report, histograms = report_example.example()
    report = dataclasses.replace(
      report,
      stages=[*report_records.STAGES, *report.stages],
      coverage={'int8': report_records.LEAVES, **report.coverage},
      curves={'int8': [(1.0, 2.0), (2.0, 1.0)]},
      validation={'int8': {'accuracy': [(5, 0.5), (10, 0.75)]}},
    )
    cls.report = report
    cls.text = written(report, histograms=histograms)
    cls.parsed = Parsed(cls.text)

  def test_all_of_the_records_are_there(self):
    said = set(self.parsed.texts)
    for r in (*self.report.stages, *self.report.answers):
      self.assertIn(r.name, said)
    for rows in self.report.coverage.values():
      for leaf in rows:
        self.assertIn(leaf.path, said)
    for rows in self.report.channels.values():
      for group in rows:
        self.assertIn(group.name, said)
    self.assertIn('gzip -9', said)
    self.assertIn('What did not pay', said)
    figures = {
      a['id'].removeprefix('figure-') for a in self.parsed.all('figure')
    }
    self.assertEqual(
      figures,
      {
        *('metric', 'losses', 'validation', 'calibration'),
        *('layers', 'channels', 'weights'),
      },
    )

  def test_it_loads_nothing(self):
    for tag, attributes in self.parsed.tags:
      self.assertNotIn(tag, ('link', 'img', 'iframe', 'object', 'base'))
      self.assertNotIn('src', attributes)
      self.assertStartsWith(attributes.get('href', '#'), '#')
    self.assertNotRegex(self.text, r'https?:|@import|url\(')
    policy = [a for a in self.parsed.all('meta') if 'http-equiv' in a]
    self.assertStartsWith(policy[0]['content'], "default-src 'none'")

  def test_links_lead_somewhere(self):
    ids = [a['id'] for _, a in self.parsed.tags if 'id' in a]
    self.assertLen(set(ids), len(ids))
    for link in self.parsed.all('a'):
      self.assertIn(link['href'].removeprefix('#'), ids)

  def test_colours_are_light_and_dark(self):
    colours = dict(
      re.findall(r'--([\w-]+): light-dark\((#\w{6}, #\w{6})\)', self.text)
    )
    used = set(re.findall(r'var\(--([\w-]+)\)', self.text))
    self.assertEqual(used - set(colours), set())
    # Words are read at 4.5 to 1, marks at 3 to 1: WCAG 2.2, 1.4.3 and 1.4.11.
    for i in (0, 1):
      pair = {name: said.split(', ')[i] for name, said in colours.items()}
      for ground in ('paper', 'raised'):
        for name in ('ink', 'soft', 'accent', 'warn'):
          self.assertGreater(_contrast(pair[name], pair[ground]), 4.5, name)
      for name in (n for n in pair if n.startswith('series')):
        self.assertGreater(_contrast(pair[name], pair['paper']), 3, name)

  def test_tables_are_sorted_by_numbers(self):
    for attributes in self.parsed.all('th'):
      self.assertIn(attributes['scope'], ('col', 'row'))
    captions = self.parsed.all('caption')
    self.assertLen(captions, len(self.parsed.all('table')))
    cells = [a['data-value'] for a in self.parsed.all('td')]
    for value in ('466472', '0.06', 'Infinity', '0.135', '16384'):
      self.assertIn(value, cells)
    # nan and what was not measured are alike: last.
    self.assertNotIn('nan', cells)
    self.assertNotIn('-', cells)

  def test_what_is_marked(self):
    """Leaves that are made dense and slower stages, whatever a metric is called."""
    slow = records.Timing(0.1, against='float', speed=0.6)
    stages = [
      records.StageRecord('float', 0.9, 'runs'),
      records.StageRecord('int8', 0.9, 'runs', latency={1: slow}),
    ]
    text = written(page.Report('x', stages, {'int8': report_records.LEAVES}))
    marked = re.findall(r'<td class="[^"]*bad"[^>]*>([^<]*)<', text)
    self.assertEqual(marked, ['0.1 (0.60x)', 'densified (conv: no rule)'])

  def test_hostile_names(self):
    stage = records.stage(
      HOSTILE, {'w': np.ones(2)}, value=0.5, notes=(HOSTILE,)
    )
    leaf = dataclasses.replace(
      report_records.LEAVES[0], path=HOSTILE, format=HOSTILE, reason=HOSTILE
    )
    group = dataclasses.replace(
      report_records.GROUPS[0], name=HOSTILE, inexact=(HOSTILE,)
    )
    bad = page.Report(
      HOSTILE,
      [stage, dataclasses.replace(stage, name='b', value=math.nan)],
      {HOSTILE: [leaf]},
      {HOSTILE: [group]},
      curves={HOSTILE: [(1.0, 2.0), (2.0, 1.0)]},
      validation={HOSTILE: {HOSTILE: [(1, 2.0), (2, 1.0)]}},
      facts={HOSTILE: HOSTILE},
      notes=[HOSTILE],
      answers=[dataclasses.replace(report_records.ANSWERS[1], name=HOSTILE)],
      environment={'command': HOSTILE, HOSTILE: HOSTILE},
    )
    weights = {HOSTILE: (np.ones(3), np.ones(3))}
    text = written(bad, histograms=weights)
    parsed = Parsed(text)
    self.assertLen(parsed.all('script'), 1)
    self.assertEqual(parsed.all('img'), [])
    self.assertIn(HOSTILE, parsed.texts)

  def test_small_reports(self):
    for report in (
      page.Report('nothing'),
      page.Report('one', [records.StageRecord('a')]),
      page.Report('ü €', report_records.STAGES, environment={}),
    ):
      self.assertIn(report.title, Parsed(written(report)).texts)

  def test_without_plots(self):
    text = written(self.report, plots=False)
    self.assertNotIn('<svg', text)
    Parsed(text)


def _contrast(a, b):
  """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
  high, low = sorted(map(_luminance, (a, b)), reverse=True)
  return (high + 0.05) / (low + 0.05)


def _luminance(colour):
  parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [
    x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts
  ]
  return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
