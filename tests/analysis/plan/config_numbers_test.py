"""Whole numbers of configs of many kinds, and configs with others."""

import argparse
import collections
import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import ml_collections

from jaxopt_compress.analysis.plan import config_numbers


@dataclasses.dataclass(frozen=True)
class Block:
  width: int = 8
  depth: int = 2
  bias: bool = True
  rate: float = 0.5


Sizes = collections.namedtuple('Sizes', 'inner outer')

# {name: (config, {path: number})}
CONFIGS = {
  'dict': ({'a': 8, 'b': {'c': (2, 4.0, 'x')}}, {'a': 8, 'b/c/0': 2}),
  'dataclass': (Block(), {'width': 8, 'depth': 2}),
  'nested': ({'block': Block()}, {'block/width': 8, 'block/depth': 2}),
  'list': ([8, [2, 0, None]], {'0': 8, '1/0': 2}),
  'named tuple': (Sizes(8, 2), {'inner': 8, 'outer': 2}),
  'namespace': (argparse.Namespace(a=8, b=(2,)), {'a': 8, 'b/0': 2}),
  'ConfigDict': (
    ml_collections.ConfigDict({'a': 8, 'b': {'c': 2}}),
    {'a': 8, 'b/c': 2},
  ),
  'FrozenConfigDict': (
    ml_collections.FrozenConfigDict({'a': 8, 'b': {'c': (2, 4)}}),
    {'a': 8, 'b/c/0': 2, 'b/c/1': 4},
  ),
  'module': (nn.Dense(8), {'features': 8}),
  'number': (8, {}),
}


class ConfigNumbersTest(parameterized.TestCase):
  @parameterized.parameters(*CONFIGS)
  def test_found_and_replaced(self, name):
    config, want = CONFIGS[name]
    found = config_numbers.numbers(config)
    self.assertEqual(found, want)
    for key in found:
      other = config_numbers.replaced(config, {key: 77})
      self.assertIs(type(other), type(config))
      self.assertEqual(config_numbers.numbers(other), {**want, key: 77})
    self.assertEqual(config_numbers.numbers(config), want)

  def test_what_points_back(self):
    config = argparse.Namespace(a=8)
    config.parent = config
    self.assertEqual(config_numbers.numbers(config), {'a': 8})


if __name__ == '__main__':
  absltest.main()
