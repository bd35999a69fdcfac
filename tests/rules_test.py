"""Tests of `jc.rules`: what rules say, told by path."""

from absl.testing import absltest

import jaxopt_compress as jc
from jaxopt_compress.core import compression
from jaxopt_compress.core import rules


class RulesTest(absltest.TestCase):
  def test_is_what_core_has(self):
    for name in ('map_named', 'match', 'named_leaves'):
      self.assertIs(getattr(jc.rules, name), getattr(rules, name))
    self.assertIs(jc.rules.by_path, compression.by_path)
    self.assertLen(jc.rules.__all__, 4)


if __name__ == '__main__':
  absltest.main()
