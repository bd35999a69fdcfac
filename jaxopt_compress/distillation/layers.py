"""Which layer of one network stands for which layer of another.

Layers in a list are children named 0, 1, 2, ... of one path: 'blocks/0/kernel'.
"""

from collections.abc import Iterable

from jaxopt_compress.core import choices

LAYERS = ('uniform', 'first', 'last')


def layer_map(
  num_target: int, num_source: int, layers: str = 'uniform'
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
    layers: 'uniform', 'first' or 'last'.

  >>> layer_map(3, 6), layer_map(5, 3)
  ([0, 2, 5], [0, 0, 1, 1, 2])
  >>> layer_map(2, 4, 'last'), layer_map(3, 2, 'last')
  ([2, 3], [None, 0, 1])
  """
  choices.one_of('layers', layers, LAYERS, '=')
  n, m = num_target, num_source
  if layers == 'uniform':
    # Growing floors i m / n, so that copies of a layer are neighbours. Shrinking
    # spreads n points over m - 1 steps, so that both ends are hit.
    if n > m:
      return [i * m // n for i in range(n)]
    return [round(i * (m - 1) / max(n - 1, 1)) for i in range(n)]
  # 'last' aligns the ends of the two stacks, 'first' their beginnings.
  offset = m - n if layers == 'last' else 0
  return [i + offset if 0 <= i + offset < m else None for i in range(n)]


def starts(
  target: Iterable[str], source: Iterable[str], layers: str = 'uniform'
) -> tuple[dict[str, str | None], set[str]]:
  """For each target path, the source path that it starts from.

  Paths are equal except in lists that are longer on one side: `layer_map` matches
  those, at every level of nesting.

  Args:
    target, source: paths of leaves, words joined by '/'.
    layers: 'uniform', 'first' or 'last'.

  Returns:
    `{target path: source path}`, None for leaves of a layer that starts from
    nothing; the source may lack such a path. And the source paths in layers that no
    target layer starts from.

  >>> starts(['b/0/w', 'b/1/w'], ['b/0/w', 'b/1/w', 'b/2/w'], 'last')
  ({'b/0/w': 'b/1/w', 'b/1/w': 'b/2/w'}, {'b/0/w'})
  """
  choices.one_of('layers', layers, LAYERS, '=')
  found, skipped = {}, set()

  def walk(t, s, t_path, s_path):
    if not t:  # An empty dict is a leaf.
      found['/'.join(t_path)] = None if s_path is None else '/'.join(s_path)
      return
    chosen = _children(t, s, layers)
    for name, start in chosen.items():
      begins = s_path is not None and start is not None
      walk(
        t[name],
        s.get(start, {}),
        (*t_path, name),
        (*s_path, start) if begins else None,
      )
    if s_path is not None and _is_list(t) and _is_list(s):
      for name in s.keys() - chosen.values():
        skipped.update(_leaves(s[name], (*s_path, name)))

  walk(_nested(target), _nested(source), (), ())
  return found, skipped - set(found.values())


def _children(t, s, layers) -> dict[str, str | None]:
  if not (_is_list(t) and _is_list(s)):
    return {name: name for name in t}
  sources = layer_map(len(t), len(s), layers)
  return {str(i): None if j is None else str(j) for i, j in enumerate(sources)}


def _is_list(node) -> bool:
  return bool(node) and node.keys() == {str(i) for i in range(len(node))}


def _nested(paths) -> dict:
  """Paths as dicts in dicts; a leaf is an empty one."""
  root = {}
  for path in paths:
    node = root
    for word in path.split('/'):
      node = node.setdefault(word, {})
  return root


def _leaves(node, path):
  if not node:
    yield '/'.join(path)
  for name, child in node.items():
    yield from _leaves(child, (*path, name))
