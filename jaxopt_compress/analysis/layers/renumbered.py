"""Trees of parameters in which some layers are gone, or are there twice.

    blocks/0, blocks/1, blocks/2     of which layers 0 and 2 stay
    blocks/0, blocks/1               are what was 0 and 2

A number changes by as many as went before it. So numbers that a list does not use for
parameters, such as those of activations, move as they do when layers leave the list.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis.layers import siblings
from jaxopt_compress.core import rules as rules_lib


class Numbers(NamedTuple):
  """The siblings of a family: (new number, old number), and how far others move."""

  pairs: list[tuple[int, int]]
  shifts: dict[int, int]  # by number, of all that come after it

  def after(self, n: int) -> int:
    """The new number of a sibling that has no parameters."""
    before = [m for m in self.shifts if m < n]
    return n + (self.shifts[max(before)] if before else 0)


# Of families in which something changes.
Order = dict[siblings.Family, Numbers]


def order(shapes, layers, sources) -> Order:
  """How layers are numbered after a plan.

  Args:
    shapes, layers: of a structure.
    sources: of a plan.
  """
  families = siblings.families(list(shapes))
  found, slots = {}, {}
  for name in layers.keys() & sources.keys():
    source = sources[name].tolist()
    # Where several kinds take turns, a layer stays beside its neighbours.
    for prefixes in zip(*layers[name], strict=True):
      taken = iter(source)
      family = siblings.family_of(prefixes[0])
      for i, path in enumerate(prefixes):
        n = siblings.member(path, family)
        here = [next(taken) for _ in range(source.count(i))]
        slots[family, n] = [siblings.member(prefixes[j], family) for j in here]
      found[family] = families[family]
  made = {}
  for family, numbers in found.items():
    shift, made[family] = 0, Numbers([], {})
    for n in numbers:
      here = slots.get((family, n), [n])
      made[family].pairs.extend(
        (n + shift + i, old) for i, old in enumerate(here)
      )
      shift += len(here) - 1
      made[family].shifts[n] = shift
  return made


def gone(layers, sources) -> tuple[str, ...]:
  """The paths that the parameters of the layers begin with that go."""
  return tuple(
    path
    for name in layers.keys() & sources.keys()
    for i, prefixes in enumerate(layers[name])
    if i not in sources[name]
    for path in prefixes
  )


def paths(shapes, order: Order) -> dict[str, str]:
  """{new path: old path} of all leaves."""
  return {new: old for old in shapes for new in _renamed(old, order)}


def _renamed(path, order) -> list[str]:
  words, found = path.split('/'), [[]]
  for i, word in enumerate(words):
    heads = [[word]]
    for family, numbers in order.items():
      n = (
        siblings.member(path, family)
        if family[0] == '/'.join(words[:i])
        else None
      )
      if n is not None:
        heads = [
          [f'{family[1]}{new}'] for new, old in numbers.pairs if old == n
        ]
        break
    found = [before + head for before in found for head in heads]
  return ['/'.join(words) for words in found]


def tree(value: Any, order: Order, named: Callable) -> Any:
  """A tree of which the layers are those of an order.

  Args:
    value: a tree, such as parameters or the state of an optimizer.
    order: what `order` returned.
    named: path of a leaf -> (path of the parameter that it is of, what follows), or
      (None, ''): parameters may be anywhere in the tree.
  """
  roots = {
    _root(path, *named(path)) for path, _ in rules_lib.named_leaves(value)
  }
  places = {}
  for root, collection in sorted(filter(None, roots)):
    for (container, stem), numbers in order.items():
      if collection:
        first, _, rest = container.partition('/')
        if first != collection:
          continue
        container = rest
      path = '/'.join(filter(None, (root, container)))
      places.setdefault(path, {})[stem] = numbers
  return _rebuilt(value, '', places)


def _root(path, mine, rest) -> tuple[str, str] | None:
  """(path of the tree of parameters, the collection that its paths leave out)."""
  if mine is None:
    return None
  inside = path.removesuffix(f'/{rest}') if rest else path
  for name, collection in (
    (mine, ''),
    (mine.partition('/')[2], mine.partition('/')[0]),
  ):
    if inside == name or inside.endswith(f'/{name}'):
      return inside.removesuffix(name).removesuffix('/'), collection
  return None


def _rebuilt(node, path, places):
  """A node with its children renumbered, and what is inside them."""
  if not any(_leads_to(place, path) for place in places):
    return node
  keys, children, rebuild = _opened(node, path)
  words = list(map(str, keys))
  inside = [
    _rebuilt(child, f'{path}/{word}' if path else word, places)
    for word, child in zip(words, children, strict=True)
  ]
  kept = list(zip(keys, words, inside, strict=True))
  for stem, numbers in places.get(path, {}).items():
    kept = _renumbered(kept, stem, numbers)
  return rebuild([(key, child) for key, _, child in kept])


def _renumbered(children, stem, numbers):
  """Children (key, word, value) of which those with a stem have new numbers."""
  old = {word: (key, child) for key, word, child in children}
  mine = {
    word: int(word[len(stem) :])
    for word in old
    if word.startswith(stem) and word[len(stem) :].isdecimal()
  }
  others = [n for n in mine.values() if n not in numbers.shifts]
  pairs = [*numbers.pairs, *((numbers.after(n), n) for n in others)]
  kept = [c for c in children if c[1] not in mine]
  met = set()
  for new, n in sorted(pairs):
    if f'{stem}{n}' in old:
      key, child = old[f'{stem}{n}']
      if n in met:  # twice the same array could not be donated
        child = jax.tree.map(_copied, child)
      met.add(n)
      word = f'{stem}{new}'
      kept.append((new if isinstance(key, int) else word, word, child))
  return kept


def _copied(x):
  return jnp.copy(x) if isinstance(x, jax.Array) else x


def _leads_to(place, path) -> bool:
  return not path or place == path or place.startswith(f'{path}/')


def _opened(node, path):
  """(keys, children, function that makes such a node of pairs of them)."""
  made = type(node)
  if isinstance(node, Sequence) and not hasattr(node, '_fields'):
    keys = list(range(len(node)))
    return keys, list(node), lambda pairs: made([c for _, c in pairs])
  flat, treedef = jax.tree_util.tree_flatten_with_path(
    node, is_leaf=lambda x: x is not node
  )
  children = [child for _, child in flat]
  if isinstance(node, Mapping):
    # As JAX sees them: a State of Flax wraps what it gives by a key.
    keys = [getattr(k[0], 'key', str(k[0])) for k, _ in flat]
    return keys, children, lambda pairs: made(dict(pairs))
  keys = [jax.tree_util.keystr(k, simple=True, separator='/') for k, _ in flat]

  def rebuild(pairs):
    new = dict(pairs)
    if list(new) == keys:
      return jax.tree.unflatten(treedef, list(new.values()))
    if dataclasses.is_dataclass(node) or not hasattr(node, '__dict__'):
      raise ValueError(
        f'{path or "The tree"} is a {made.__name__}, whose attributes are given, its'
        ' layers among them: none can go. Keep layers in a list or a dict.'
      )
    # A module that may have any attributes.
    out = jax.tree.unflatten(treedef, children)
    for key in keys:
      if key not in new:
        delattr(out, key)
    for key, child in pairs:
      setattr(out, key, child)
    return out

  return keys, children, rebuild
