"""The map: which rule takes which leaf, and what is refused."""

import dataclasses
from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
from flax import core as flax_core
from flax import nnx
import jax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import rules


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Half(array.CompressedArray):
  """A leaf with fields that must not appear in any path."""

  value: jax.Array
  scale: jax.Array
  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)

  def materialize(self):
    return self.value * self.scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Running:
  value: int
  count: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
  kernel: int
  bias: int


class Pair(NamedTuple):
  left: int
  right: int


TREE = {
  'encoder': {'kernel': 1, 'bias': 2},
  'head': {'kernel': 3, 'bias': 4},
}
PATHS = ['encoder/bias', 'encoder/kernel', 'head/bias', 'head/kernel']


def _half():
  return Half(jnp.ones(2), jnp.ones(1))


class NamesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    dict(testcase_name='dict', tree=TREE, expected=PATHS),
    dict(
      testcase_name='frozen dict',
      tree=flax_core.freeze(TREE),
      expected=PATHS,
    ),
    dict(
      testcase_name='sequences',
      tree=({'a': 1}, [2, 3], Pair(4, 5)),
      expected=['0/a', '1/0', '1/1', '2/left', '2/right'],
    ),
    dict(
      testcase_name='dataclass',
      tree={'a': Layer(1, 2)},
      expected=['a/kernel', 'a/bias'],
    ),
    dict(
      testcase_name='a field named value beside others',
      tree={'norm': Running(1, 2)},
      expected=['norm/value', 'norm/count'],
    ),
    dict(testcase_name='none is no leaf', tree={'a': None}, expected=[]),
    dict(testcase_name='empty', tree={}, expected=[]),
    dict(testcase_name='an array alone', tree=1, expected=['']),
    dict(testcase_name='a leaf is one', tree={'w': _half()}, expected=['w']),
  )
  def test_paths(self, tree, expected):
    self.assertEqual([p for p, _ in rules.named_leaves(tree)], expected)

  def test_nnx_state_drops_the_value_of_variables(self):
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    paths = [p for p, _ in rules.named_leaves(state)]
    self.assertEqual(paths, ['layers/0/bias', 'layers/0/kernel'])

  def test_map_named_keeps_structure_and_leaves(self):
    leaf = _half()
    tree = {'a': (1, leaf), 'b': None}
    seen = {}
    out = rules.map_named(
      lambda path, x, y: seen.setdefault(path, (x, y))[0],
      tree,
      {'a': (10, 20), 'b': None},
    )
    self.assertEqual(seen, {'a/0': (1, 10), 'a/1': (leaf, 20)})
    self.assertIs(out['a'][1], leaf)
    self.assertEqual(jax.tree.structure(out), jax.tree.structure(tree))


class MatchTest(parameterized.TestCase):
  @parameterized.named_parameters(
    dict(
      testcase_name='first match wins',
      given=[(r'head/.*', 'h'), (r'.*/kernel', 'k'), (r'.*', None)],
      expected=[None, 'k', 'h', 'h'],
    ),
    dict(
      testcase_name='the whole path must match',
      given=[(r'.*kernel', 'k'), (r'(encoder|head)/bias', 'b')],
      expected=['b', 'k', 'b', 'k'],
    ),
    dict(
      testcase_name='a dict of rules keeps its order',
      given={r'.*/bias': 0, r'.*': 1},
      expected=[0, 1, 0, 1],
    ),
    dict(
      testcase_name='a catch-all None may stay unused',
      given=[(r'.*/.*', 8), (r'.*', None)],
      expected=[8, 8, 8, 8],
    ),
  )
  def test_values(self, given, expected):
    self.assertEqual(
      rules.match(given, TREE), dict(zip(PATHS, expected, strict=True))
    )

  def test_compressed_leaves_are_matched_as_one(self):
    self.assertEqual(rules.match([('w', 1)], {'w': _half()}), {'w': 1})

  def test_empty_tree(self):
    self.assertEqual(rules.match([(r'.*', None)], {}), {})
    self.assertEqual(rules.match([], {}), {})

  @parameterized.named_parameters(
    dict(
      testcase_name='uncovered leaf',
      given=[(r'.*/kernel', 8)],
      says=r'No rule covers encoder/bias, head/bias\..*\(r"encoder/bias"',
    ),
    dict(
      testcase_name='typo in a word',
      given=[(r'encodr/.*', 8), (r'.*', None)],
      says=r"matches no path\. Did you mean 'encoder' where it says 'encodr'",
    ),
    dict(
      testcase_name='typo in a long pattern',
      given=[(r'(a|b)/.*/.*/encodr/.*', 8), (r'.*', None)],
      says=r"Did you mean 'encoder' where it says 'encodr'",
    ),
    dict(
      testcase_name='words in another order',
      given=[(r'kernel/head', 8), (r'.*', None)],
      says=r'matches no path\. Paths: encoder/bias',
    ),
    dict(
      testcase_name='a part of the path is not the path',
      given=[(r'kernel', 8), (r'.*', None)],
      says=r"'kernel' matches no path.*Paths: encoder/bias",
    ),
    dict(
      testcase_name='shadowed',
      given=[(r'.*/kernel', 8), (r'head/kernel', 4), (r'.*', None)],
      says=r"'head/kernel' is never used: earlier.*\(head/kernel\)\. Put it",
    ),
    dict(
      testcase_name='an unused catch-all that is not None',
      given=[(r'.*/.*', 8), (r'.*', 4)],
      says='never used',
    ),
    dict(
      testcase_name='bad regex',
      given=[(r'*/kernel', 8)],
      says=r"'\*/kernel' is not a regular expression: nothing to repeat",
    ),
    dict(
      testcase_name='pattern that is no string',
      given=[(3, 8)],
      says='3 is not a regular expression',
    ),
    dict(
      testcase_name='no pair',
      given=[r'.*'],
      says=r"list of pairs \(regex, value\), and '\.\*' is no pair",
    ),
    dict(
      testcase_name='three values',
      given=[(r'.*', 8, 4)],
      says=r"\('\.\*', 8, 4\) is no pair",
    ),
    dict(
      testcase_name='one pair alone',
      given=('.*/kernel', 8),
      says=r"'\.\*/kernel' is no pair",
    ),
    dict(testcase_name='words alone', given='W8A8', says="'W8A8' is no pair"),
    dict(testcase_name='a value alone', given=8, says=' 8 is no pair.*"[.]'),
    dict(testcase_name='nothing', given=None, says='None is no pair'),
  )
  def test_errors(self, given, says):
    with self.assertRaisesRegex(ValueError, says):
      rules.match(given, TREE)

  def test_errors_list_few_paths(self):
    tree = {f'layer{i}': 0 for i in range(100)}
    with self.assertRaisesRegex(ValueError, 'and 92 more') as caught:
      rules.match([], tree)
    self.assertLess(len(str(caught.exception)), 400)

  def test_two_leaves_of_one_name(self):
    with self.assertRaisesRegex(ValueError, "Two leaves are named 'a/b'"):
      rules.match([(r'.*', 1)], {'a': {'b': 1}, 'a/b': 2})


class PairsTest(parameterized.TestCase):
  def test_what_rules_may_be(self):
    given = {'w': 8, '.*': None}
    want = [('w', 8), ('.*', None)]
    for form in (given, given.items(), want, tuple(want), iter(want)):
      self.assertEqual(rules.pairs(form), want)


class SplitTest(parameterized.TestCase):
  def test_each_rule_has_its_leaves(self):
    got = rules.split([('.*/bias', None), ('head/.*', 8), ('.*', 4)], TREE)
    self.assertEqual(got, [{}, {'head/kernel': 3}, {'encoder/kernel': 1}])

  def test_what_it_refuses(self):
    with self.assertRaisesRegex(ValueError, 'No rule covers'):
      rules.split([('head/.*', 8)], TREE)
    self.assertEqual(
      rules.split({'.*/.*': 8, '.*': None}, TREE)[1], {}
    )  # a last rule that covers the rest may find nothing left


if __name__ == '__main__':
  absltest.main()
