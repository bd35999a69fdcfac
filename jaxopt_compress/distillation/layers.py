"""Which layer of one network stands for which layer of another.

Layers are children of one path that are numbered without a gap: a list, from 0 on
('blocks/0/kernel', 'h.0.kernel'), or names that end in a number ('layer_0/kernel',
'block1/kernel') if all have leaves of the same paths and shapes. So Dense_0 and
Dense_1 of an MLP, which differ, are no layers.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib

LAYERS = ('uniform', 'first', 'last')

# A word, or the source layer of each target layer, None for none.
Which = str | Sequence[int | None]


def layer_map(
  num_target: int, num_source: int, layers: Which = 'uniform'
) -> list[int | None]:
  """For each target layer, the source layer that it starts from.

      uniform   fewer: evenly spaced, with the first and the last (a single one: the
                first); more: each layer repeated in place
      first     layer i from layer i, while there are any
      last      counted from the end in the same way

  None is a layer that keeps its own initial values. Sun et al. 2019,
  https://arxiv.org/abs/1908.09355, section 3, skip layers evenly or take the last
  ones when they choose which layers a student imitates.

  Args:
    num_target, num_source: numbers of layers.
    layers: 'uniform', 'first' or 'last'; or the layers themselves, which are checked.

  >>> layer_map(3, 6), layer_map(5, 3)
  ([0, 2, 5], [0, 0, 1, 1, 2])
  >>> layer_map(2, 4, 'last'), layer_map(3, 2, 'last')
  ([2, 3], [None, 0, 1])
  """
  n, m = num_target, num_source
  if not isinstance(layers, str):
    return _checked(n, m, layers)
  choices.one_of('layers', layers, LAYERS, '=')
  if layers == 'uniform':
    # Growing floors i m / n, so that copies of a layer are neighbours. Shrinking
    # spreads n points over m - 1 steps, so that both ends are hit.
    if n > m:
      return [i * m // n for i in range(n)]
    return [round(i * (m - 1) / max(n - 1, 1)) for i in range(n)]
  # 'last' aligns the ends of the two stacks, 'first' their beginnings.
  offset = m - n if layers == 'last' else 0
  return [i + offset if 0 <= i + offset < m else None for i in range(n)]


def _checked(n, m, layers) -> list[int | None]:
  found = [None if i is None else int(i) for i in layers]
  if len(found) != n or not all(i is None or 0 <= i < m for i in found):
    raise ValueError(
      f'layers is {list(layers)}; for each of {n} layers one of 0 to {m - 1}, or None,'
      ' is expected.'
    )
  return found


class Chosen:
  """Which layers start from which, by the path of what they are layers of.

  A list has the path that its numbers follow ('blocks', 'layer_'), a leaf of scanned
  layers its own. Rules that nothing matches are refused by `check`.
  """

  def __init__(self, layers: str | Sequence[tuple[str, Which]]):
    every = [('.*', layers)]
    self._rules = every if isinstance(layers, str) else rules_lib.pairs(layers)
    self._used = set() if self._rules is not every else {0}
    for _, which in self._rules:
      if isinstance(which, str):
        choices.one_of('layers', which, LAYERS, '=')

  def __call__(self, path: str, n: int, m: int) -> list[int | None]:
    """`layer_map` as the first rule says that matches the path."""
    for i, (pattern, which) in enumerate(self._rules):
      if re.fullmatch(pattern, path):
        self._used.add(i)
        try:
          return layer_map(n, m, which)
        except ValueError as e:
          raise ValueError(f'{path}: {e}') from e
    patterns = [pattern for pattern, _ in self._rules]
    raise ValueError(
      f"No rule of layers covers {path}. Add (r'{re.escape(path)}', 'uniform')."
      f' Rules: {patterns}'
    )

  def check(self) -> None:
    """Raises a ValueError for a rule that was of no use."""
    left = [p for i, (p, _) in enumerate(self._rules) if i not in self._used]
    if left:
      raise ValueError(
        f'No layers have a path that the rules {left} match. It is that of a list,'
        " without its numbers ('blocks'), or of a leaf of scanned layers."
      )


def starts(
  target: Mapping[str, Any],
  source: Mapping[str, Any],
  layers: str | Chosen = 'uniform',
) -> tuple[dict[str, str | None], set[str]]:
  """For each target path, the source path that it starts from.

  Paths are equal except where there are more layers on one side: `layer_map` matches
  those, at every level of nesting.

  Args:
    target, source: `{path: leaf}`, words of a path joined by '/' or '.'.
    layers: 'uniform', 'first' or 'last', or what `Chosen` makes of rules.

  Returns:
    `{target path: source path}`, None for leaves of a layer that starts from
    nothing; the source may lack such a path. And the source paths in layers that no
    target layer starts from.

  >>> starts({'b/0': 1, 'b/1': 1}, {'b/0': 1, 'b/1': 1, 'b/2': 1}, 'last')
  ({'b/0': 'b/1', 'b/1': 'b/2'}, {'b/0'})
  """
  if isinstance(layers, str):
    layers = Chosen(layers)
  found, skipped = {}, set()

  def walk(t, s, t_path, s_path):
    if not isinstance(t, dict):
      found[t_path] = s_path
      return
    s = s if isinstance(s, dict) else {}
    chosen, unused = _children(t, s, t_path, layers)
    for word, start in chosen.items():
      begins = s_path is not None and start is not None
      walk(
        t[word],
        s.get(start, {}),
        t_path + word,
        s_path + start if begins else None,
      )
    for word in unused if s_path is not None else ():
      skipped.update(s_path + end for end in _leaves(s[word], word))

  walk(_nested(target), _nested(source), '', '')
  return found, skipped - set(found.values())


def _children(t, s, path, layers) -> tuple[dict[str, str | None], set[str]]:
  """For each child of t one of s, and the layers of s that are left."""
  chosen, unused = {word: word for word in t}, set()
  ours, theirs = _stacks(t), _stacks(s)
  for name in ours.keys() & theirs.keys():
    mine, others = ours[name], theirs[name]
    called = f'{path}{name[0]}'.rstrip('/.')
    sources = layers(called, len(mine), len(others))
    starts = [None if j is None else others[j] for j in sources]
    chosen.update(zip(mine, starts, strict=True))
    unused |= set(others) - set(starts)
  return chosen, unused


def _stacks(node) -> dict[tuple[str, str], list[str]]:
  """Words of the layers of a node, in order, by what is around their numbers."""
  numbered = {}
  for word in node:
    if found := re.fullmatch(r'(.*?)([0-9]+)([/.]?)', word):
      before, number, after = found.groups()
      numbered.setdefault((before, after), {})[int(number)] = word
  stacks = {}
  for name, words in numbered.items():
    order = sorted(words)
    is_list = not name[0] and order[0] == 0 and len(words) == len(node)
    if order[-1] - order[0] + 1 == len(order) and (
      is_list or (name[0] and _alike([node[w] for w in words.values()]))
    ):
      stacks[name] = [words[i] for i in order]
  return stacks


def _alike(nodes) -> bool:
  """Whether all have leaves of the same paths and shapes."""
  shapes = [{p: np.shape(x) for p, x in _leaves(n).items()} for n in nodes]
  return all(s == shapes[0] for s in shapes)


def _nested(leaves) -> dict:
  """Paths as dicts in dicts, by words that keep the '/' or '.' behind them."""
  root = {}
  for path, leaf in leaves.items():
    *words, last = re.findall(r'[^/.]*[/.]|[^/.]+$', path) or ['']
    node = root
    for word in words:
      node = node.setdefault(word, {})
    node[last] = leaf
  return root


def _leaves(node, path='') -> dict[str, Any]:
  if not isinstance(node, dict):
    return {path: node}
  return {
    p: leaf
    for word, child in node.items()
    for p, leaf in _leaves(child, path + word).items()
  }
