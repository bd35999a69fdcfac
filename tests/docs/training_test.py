"""The page on training has every option of a config, with its default."""

import dataclasses
import pathlib
import re

from absl.testing import parameterized

from jaxopt_compress.train import fields
from jaxopt_compress.train import options

_PAGE = pathlib.Path(__file__).parents[2] / 'docs/guides/training.md'


def _tables():
  """{where: {option: default as it is written}} of the tables of options."""
  found, where = {}, None
  for line in _PAGE.read_text().splitlines():
    if told := re.match(r'Of .*`(config\.\w+)', line):
      where = found.setdefault(told[1], {})
    elif row := re.match(r'\| `(\w+)` \|\s*(.*?)\s*\|', line):
      assert row[1] not in where, row[1]
      where[row[1]] = row[2].strip('`')
  return found


class OptionsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('config.data', options.Data),
    ('config.task', options.Task),
    ('config.stage', options.Stage),
    ('config.report', options.Report),
    ('config.run', options.Run),
  )
  def test_table(self, where, cls):
    def written(default):
      known = default is not dataclasses.MISSING
      plain = known and not dataclasses.is_dataclass(default)
      return repr(default) if plain else ''

    expected = {
      key: written(said.default) for key, said in fields.keys_of(cls).items()
    }
    self.assertEqual(_tables()[where], expected)
