"""The map: where. An ordered list of (regex, value) over the paths of a tree.

The first pattern that matches the whole path wins. Every leaf must be covered
and every pattern must be used; anything else is an error that lists the paths
and guesses the typo. An explicit `(r'.*', None)` covers the rest.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import re
from typing import Any

import jax

from jaxopt_compress.core import array
from jaxopt_compress.core import choices

Rules = Sequence[tuple[str, Any]]


class Found(str):
  """A pattern made for one tree: rules before it may take all that it matches."""


def _is_value_of_variable(keys) -> bool:
  """Flax NNX keeps the array of a Variable under an attribute `value`."""
  return (
    len(keys) > 1
    and isinstance(keys[-1], jax.tree_util.GetAttrKey)
    and keys[-1].name == 'value'
  )


def named_leaves(
  tree: Any, is_leaf: Callable[[Any], bool] = array.is_compressed
) -> list[tuple[str, Any]]:
  """The leaves of a tree with their path names, in the order of the tree.

  Works on dicts, FrozenDict, `nnx.State` (the trailing `.value` of a Variable is
  dropped), dataclasses, tuples and lists. Compressed leaves count as one.

  >>> named_leaves({'a': {'kernel': 1}, 'b': (2, 3)})
  [('a/kernel', 1), ('b/0', 2), ('b/1', 3)]
  """
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  siblings = collections.Counter(keys[:-1] for keys, _ in flat)
  named = []
  for keys, leaf in flat:
    # A field `value` with others beside it is no Variable's, and keeps its name.
    if _is_value_of_variable(keys) and siblings[keys[:-1]] == 1:
      keys = keys[:-1]
    path = jax.tree_util.keystr(keys, simple=True, separator='/')
    named.append((path, leaf))
  return named


def map_named(
  f: Callable[..., Any],
  tree: Any,
  *rest: Any,
  is_leaf: Callable[[Any], bool] = array.is_compressed,
) -> Any:
  """`jax.tree.map` of `f(path, leaf, ...)` over path names, onto the device."""
  treedef = jax.tree.structure(tree, is_leaf=is_leaf)
  named = named_leaves(tree, is_leaf)
  rows = zip(named, *map(treedef.flatten_up_to, rest), strict=True)
  leaves = [array.on_device(f(*named, *others)) for named, *others in rows]
  return jax.tree.unflatten(treedef, leaves)


def match(rules: Rules, tree: Any) -> dict[str, Any]:
  """The value of the first rule that matches each leaf's whole path.

  Args:
    rules: ordered `(regex, value)` pairs.
    tree: any pytree; compressed leaves count as one.

  Returns:
    `{path: value}` for every leaf of `tree`, in the order of the tree.

  Raises:
    ValueError: a leaf that no rule covers, a rule that matches nothing (or only
      what earlier rules took), a pattern that is no regular expression, or two
      leaves of one name.

  >>> match([(r'.*/bias', None), (r'.*', 8)], {'a': {'bias': 0, 'kernel': 1}})
  {'a/bias': None, 'a/kernel': 8}
  """
  compiled, owners = _owners(rules, tree)
  return {path: compiled[i][1] for path, i in owners.items()}


def split(rules: Rules, tree: Any) -> list[dict[str, Any]]:
  """The leaves that each rule takes, as `{path: leaf}`, in the order of the rules.

  A rule whose value is None takes leaves only to leave them alone: its share is
  empty.

  Raises:
    ValueError: as for `match`.

  >>> split([(r'.*/bias', None), (r'.*', 8)], {'a': {'bias': 0, 'kernel': 1}})
  [{}, {'a/kernel': 1}]
  """
  compiled, owners = _owners(rules, tree)
  shares = [{} for _ in compiled]
  for path, leaf in named_leaves(tree):
    if compiled[owners[path]][1] is not None:
      shares[owners[path]][path] = leaf
  return shares


def _owners(rules, tree) -> tuple[list[tuple[re.Pattern, Any]], dict[str, int]]:
  """The rules, and which of them takes each leaf."""
  compiled = compiled_rules(rules)
  paths = [path for path, _ in named_leaves(tree)]
  if len(set(paths)) < len(paths):
    twice = next(p for i, p in enumerate(paths) if p in paths[:i])
    raise ValueError(
      f'Two leaves are named {twice!r}: keys that hold "/" meet nested ones.'
      ' Rename one of them.'
    )
  owners = {}
  for i, (pattern, _) in reversed(list(enumerate(compiled))):
    owners |= {path: i for path in paths if pattern.fullmatch(path)}
  if uncovered := [path for path in paths if path not in owners]:
    patterns = [p.pattern for p, _ in compiled]
    raise ValueError(
      f'No rule covers {_listed(uncovered)}. Rules: {patterns}. Add'
      f' (r"{re.escape(uncovered[0])}", None) to leave that leaf as it is, or'
      ' a last (r".*", None) to leave all the rest.'
    )
  for i, (pattern, value) in enumerate(compiled):
    if i in owners.values() or (value is None and pattern.pattern == '.*'):
      continue
    taken = [p for p in paths if pattern.fullmatch(p)]
    if taken and not isinstance(pattern.pattern, Found):
      raise ValueError(
        f'The rule {pattern.pattern!r} is never used: earlier rules take all'
        f' that it matches ({_listed(taken)}). Put it before them, or drop it.'
      )
    if not taken:
      raise ValueError(
        f'The rule {pattern.pattern!r} matches no path.{_guess(pattern, paths)}'
        f' Paths: {_listed(paths, 20)}.'
      )
  return compiled, {path: owners[path] for path in paths}


def pairs(rules: Rules) -> list[tuple[str, Any]]:
  """`rules` as a list, or ValueError where they are no pairs (regex, value)."""
  if isinstance(rules, str) or not isinstance(rules, Iterable):
    rules = [rules]
  listed = list(rules.items() if isinstance(rules, dict) else rules)
  for rule in listed:
    if not isinstance(rule, (tuple, list)) or len(rule) != 2:
      raise ValueError(
        f'Rules are a list of pairs (regex, value), and {rule!r} is no pair. To give'
        ' a value to all kernels: [(r".*/kernel", value), (r".*", None)].'
      )
    try:
      re.compile(rule[0])
    except (re.error, TypeError) as e:
      raise ValueError(f'{rule[0]!r} is not a regular expression: {e}') from e
  return listed


def compiled_rules(rules: Rules) -> list[tuple[re.Pattern, Any]]:
  """The pairs with their patterns compiled; ValueError where one is none."""
  return [(re.compile(pattern), value) for pattern, value in pairs(rules)]


def _listed(paths, most=8) -> str:
  shown = ', '.join(paths[:most])
  more = len(paths) - most
  return f'{shown} and {more} more' if more > 0 else shown


def _guess(pattern, paths) -> str:
  # What the pattern would be as a path: its escapes without the backslash.
  literal = re.sub(r'\\(.)', r'\1', pattern.pattern)
  words = sorted({word for path in paths for word in path.split('/')})
  for part in re.findall(r'\w+', literal):
    found = choices.guess(part, words)
    if found and part not in words:
      return f'{found[:-1]} where it says {part!r}?'
  return choices.guess(literal, paths)
