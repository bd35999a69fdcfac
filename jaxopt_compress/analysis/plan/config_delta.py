"""Which numbers of a config make the network of a plan.

Models that are built of a config have their sizes from it, often several from one
number, or one from several:

    kernel [hidden, heads * head_dim]       heads 4 -> 2     {'heads': 2}

What each number sets is asked of the model: it is built, abstractly, with one number
changed, and the shapes of its parameters tell. The numbers that the plan needs follow,
and the shapes that they give are those of the plan, all of them, or it is an error.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import itertools
from typing import Any

from jaxopt_compress.analysis import raised
from jaxopt_compress.analysis.layers import renumbered
from jaxopt_compress.analysis.layers import siblings
from jaxopt_compress.analysis.plan import config_numbers
from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.analysis.structure import structure as structure_lib
from jaxopt_compress.core import rules as rules_lib

Shapes = dict[str, tuple[int, ...]]

# How many settings are tried where the numbers do not follow one by one.
_MOST = 256


def config_delta(
  shapes: Callable[[Any], Any], config: Any, plan: plan_lib.Plan
) -> tuple[dict[str, int], Any]:
  """The numbers of a config that have to change, and the config with them.

  Args:
    shapes: config -> the parameters that its model has, abstract or not, under the
      names of those that the plan is for, as in
      `lambda c: jax.eval_shape(Model(**c).init, key, x)`.
    config: of the network that is there: nested dicts, dataclasses (a Linen module is
      one), tuples, lists, or any object whose attributes are its numbers.
    plan: what `jc.select` returned.

  Returns:
    ({path of a number: its new value}, config), as in {'layers/1': 64}.

  Raises:
    ValueError: the config does not give the parameters of the plan's network; no
      numbers give those that it makes, with the first leaf that differs; or several
      settings do.

  >>> import jax, jax.numpy as jnp
  >>> import jaxopt_compress as jc
  >>> shapes = lambda c: {'a': jnp.ones((3, c['hidden'])), 'b': jnp.ones((c['hidden'], 2))}
  >>> config = {'hidden': 8, 'depth': 1}
  >>> structure = jc.structure(lambda p, x: jax.nn.relu(x @ p['a']) @ p['b'])
  >>> plan = jc.Plan(structure(shapes(config), jnp.ones((1, 3))), {'a:-1': [0, 5]})
  >>> config_delta(shapes, config, plan)
  ({'hidden': 2}, {'hidden': 2, 'depth': 1})
  """
  model = _Model(shapes, config, plan)
  best = _first(model)
  return best, config_numbers.replaced(config, best)


def settable(
  shapes: Callable[[Any], Any],
  config: Any,
  structure: structure_lib.Structure,
  names: Collection[str],
) -> set[str]:
  """Those of some groups that numbers of a config set, and no other group with them.

  Args:
    shapes, config: as of `config_delta`.
    structure: of the network that is there.
    names: of the groups that may have other sizes.

  >>> import jax, jax.numpy as jnp
  >>> import jaxopt_compress as jc
  >>> shapes = lambda n: {'a': jnp.ones((3, n[0])), 'b': jnp.ones((n[0], 2))}
  >>> f = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  >>> found = jc.structure(f)(shapes([8]), jnp.ones((1, 3)))
  >>> settable(shapes, [8], found, ['a:-1'])
  {'a:-1'}
  """
  slopes = _Model(shapes, config, plan_lib.Plan(structure, {})).slopes.values()
  reached = [[{*structure.axes[path][i]} for path, i in s] for s in slopes]
  may, before = set(names), None
  while may != before:
    before, free, bound = may, set(), set()
    for axes in reached:
      if all(axis & may for axis in axes):
        free.update(*axes)
      else:
        # Of several groups on one axis, another one may be what it sets.
        bound.update(*(axis for axis in axes if len(axis) == 1))
    may = may & free - bound
  return may


class _Model:
  """What the numbers of a config do to the shapes of a model.

  Attributes:
    numbers: {path: number} of the config.
    now, want: {leaf: shape}, as it is and as the plan makes it.
    asked: {(leaf, axis): (entries now, entries in the plan)}, of leaves that stay.
    groups: {(size, new size)} of groups that change.
    products: the same of what lies side by side on an axis, as heads of all keys.
    others: leaves that the plan does not know.
    slopes: {path of a number: {(leaf, axis): entries for each one more}}.
    deep: {path of a number: leaves for each one more}, of numbers of layers.
    silent: numbers that cannot be changed alone, as others must fit.
  """

  def __init__(self, shapes, config, plan):
    self._shapes, self._config, self._raised = shapes, config, {}
    self.numbers = config_numbers.numbers(config)
    names = plan_lib.names_of(plan.structure.shapes)
    self._names = names
    self.now, self.want = dict(plan.structure.shapes), plan.shapes
    self._changed = [
      (plan.structure.groups[name], n)
      for name, n in plan.sizes.items()
      if plan.structure.groups[name].size != n
    ]
    self.groups = {(group.size, n) for group, n in self._changed}
    self.products = set(_products(plan))
    gone = renumbered.gone(plan.structure.layers, plan.sources)
    self.asked = {
      (path, i): pair
      for path, shape in plan.resized.items()
      if not siblings.within(path, gone)
      for i, pair in enumerate(zip(self.now[path], shape, strict=True))
    }
    self._everything = self._check_is_of_plan()
    self.others = self._everything - self.now.keys()
    self.slopes, self.deep, self.silent = {}, {}, []
    for key in self.numbers:
      self._ask(key)

  def with_numbers(self, numbers: Mapping[str, int]) -> Shapes | None:
    """The shapes with other numbers; None where the model refuses them."""
    try:
      tree = self._shapes(config_numbers.replaced(self._config, numbers))
    except Exception as e:  # whatever a model raises
      self._raised[tuple(numbers.items())] = raised.said(e)
      return None
    found = {}
    for path, x in rules_lib.named_leaves(tree):
      found[self._names.get(path, path)] = tuple(getattr(x, 'shape', ()))
    return found

  def _check_is_of_plan(self) -> set[str]:
    """All leaves of the model."""
    tree = self._shapes(self._config)
    got = {
      self._names.get(path, path): tuple(getattr(x, 'shape', ()))
      for path, x in rules_lib.named_leaves(tree)
    }
    for path, shape in self.now.items():
      if got.get(path) != shape:
        has = f'has shape {got[path]}' if path in got else 'is not there'
        raise ValueError(
          f'The plan is for other parameters: {path} of shape {shape} {has} in the'
          f' model of this config, whose leaves are {list(got)[:5]}. Give the config'
          ' that the network was built of, and the names that the plan has.'
        )
    return set(got)

  def _ask(self, key) -> None:
    """What one more of a number adds to each axis, or to the leaves."""
    n = self.numbers[key]
    for other in dict.fromkeys((n + 1, 2 * n, n // 2, n - 1, 3 * n)):
      if other < 1 or other == n:
        continue
      shapes = self.with_numbers({key: other})
      if shapes is None:
        continue
      more = len(shapes) - len(self._everything)
      if more:
        self.deep[key] = more / (other - n)
        return
      self.slopes[key] = {
        (path, i): (m - k) / (other - n)
        for path, shape in self.now.items()
        if len(shapes.get(path, ())) == len(shape)
        for i, (k, m) in enumerate(zip(shape, shapes[path], strict=True))
        if m != k
      }
      return
    self.silent.append(key)

  # ---------------------------------------------------------------- solving

  def candidates(self, key) -> list[int]:
    """Values of a number that an axis asks for, the present one among them."""
    alone, shared, beside = [], [], False
    n = self.numbers[key]
    if key in self.deep:
      ends = _whole(n + self._more() / self.deep[key])
      if len(self.deep) > 1:
        # Several stacks: each may have any part of what comes or goes.
        ends = [m for end in ends for m in range(min(n, end), max(n, end) + 1)]
      return list(dict.fromkeys([n, *ends, *self._of_size(n)]))
    for place, slope in self.slopes.get(key, {}).items():
      if place not in self.asked:
        continue
      k, m = self.asked[place]
      others = sum(place in s for s in self.slopes.values()) > 1
      beside |= others
      for value in _whole(n + (m - k) / slope):
        (shared if others else alone).append(value)
    if alone:
      # An axis that no other number sets says what it is.
      return list(dict.fromkeys(alone))
    of_axes = [m for k, m in self.asked.values() if k == n]
    if key in self.silent:
      shared = [*of_axes, *self._of_size(n)]
    if shared or beside:
      # Of numbers that are divided by each other none may follow from an axis.
      shared = [n, *self._of_size(n), *shared]
    return list(dict.fromkeys(shared)) or [n]

  def _more(self) -> int:
    """How many leaves come."""
    return len(self.want) - len(self.now)

  def _deep_enough(self, setting) -> bool:
    """Whether its numbers of layers, of several stacks, make as many leaves."""
    found = (
      self.deep[k] * (n - self.numbers[k])
      for k, n in setting.items()
      if k in self.deep
    )
    return len(self.deep) < 2 or sum(found) == self._more()

  def _of_size(self, n) -> list[int]:
    """What groups of a size become."""
    return sorted(m for k, m in self.products if k == n)

  def settings(self) -> Iterator[dict[str, int]]:
    """What numbers may become, in the order of `rank`."""
    choices = {key: self.candidates(key) for key in self.numbers}
    choices = {k: c for k, c in choices.items() if c != [self.numbers[k]]}
    found = [
      {
        k: n
        for k, n in zip(choices, values, strict=True)
        if n != self.numbers[k]
      }
      for values in itertools.islice(
        itertools.product(*choices.values()), 64 * _MOST
      )
    ]
    found = filter(self._deep_enough, found)
    yield from sorted(found, key=self.rank)[:_MOST]

  def rank(self, setting) -> tuple[int, int, int]:
    """How unlikely it is: shapes alone may fit several networks.

    A width of half as many features makes the same arrays, whether there are half as
    many heads or heads of half the size. So numbers that are the size of a group that
    changes are to change with it; then few change, and to sizes of something.
    """
    pairs = {(self.numbers[k], n) for k, n in setting.items()}
    return -len(pairs & self.groups), len(setting), len(pairs - self.products)

  def apart(self, setting) -> list[tuple[str, tuple[int, ...] | None]]:
    """The leaves that are not as the plan wants them, with what they are."""
    shapes = self.with_numbers(setting)
    if shapes is None:
      return [(path, None) for path in self.want]
    known = {p: s for p, s in shapes.items() if p not in self.others}
    return [
      (path, known.get(path))
      for path in dict.fromkeys((*self.want, *known))
      if known.get(path) != self.want.get(path)
    ]

  def why_not(self) -> str:
    """The first number that two leaves want otherwise, or the first leaf apart."""
    for key, slopes in self.slopes.items():
      asked = {}
      for (path, i), slope in slopes.items():
        alone = sum((path, i) in s for s in self.slopes.values()) == 1
        if alone and (path, i) in self.asked:
          k, m = self.asked[path, i]
          value = self.numbers[key] + (m - k) / slope
          asked.setdefault(value, f'{path}:{i - len(self.now[path])}')
      if len(asked) > 1:
        wants = ', '.join(f'{p} wants {v:g}' for v, p in asked.items())
        return (
          f'The config has one number {key!r} for all of them: {wants}. Select with'
          " equal widths, as by one rule with a number of channels: by=[('...', 64)],"
          ' or let the config have a number for each.'
        )
    tried = sorted(self.settings(), key=lambda s: len(self.apart(s)))
    best = tried[0]
    if not best and len(tried) > 1:
      best = tried[1]  # nothing that was changed makes a model
    path, got = self.apart(best)[0]
    if said := self._raised.get(tuple(best.items())):
      return (
        f'With {best} the config would make what the plan does, and the model raises:'
        f' {said}. A size is written there that has to become a number of the config;'
        ' or leave the group out of the plan.' + self._written()
      )
    changed = {place for place, (k, m) in self.asked.items() if k != m}
    free = [k for k, s in self.slopes.items() if changed & s.keys()]
    return (
      f'{path} is to be {self.want.get(path, "gone")}, from {self.now.get(path)}, and'
      f' no numbers of the config give that: with {best or "none changed"} it is {got}.'
      f' Axes that change depend on {free or "no number"}. A size that is written in'
      ' the model has to become a number of the config; or leave the group out of the'
      ' plan.' + self._written()
    )

  def _written(self) -> str:
    """Where the program of the plan has sizes of its own."""
    lines = [
      f' {group.name} is {group.size} there, and {n} in the plan: {group.fixed}.'
      for group, n in self._changed
      if group.fixed
    ]
    return ''.join(lines[:3])


def _whole(x: float) -> list[int]:
  return [int(x)] if x >= 1 and x == int(x) else []


def _products(plan) -> Iterator[tuple[int, int]]:
  """(size, new size) of what lies side by side on an axis, where it changes."""
  size = plan.structure.size
  for layout in {
    x for layouts in plan.structure.axes.values() for x in layouts
  }:
    for i, j in itertools.combinations(range(len(layout) + 1), 2):
      pair = size(layout[i:j]), size(layout[i:j], plan.sizes)
      if pair[0] != pair[1]:
        yield pair


def _first(model) -> dict[str, int]:
  """The most likely setting that makes the plan's shapes; ValueError if none does."""
  found = []
  for setting in model.settings():
    if found and model.rank(setting) != model.rank(found[0]):
      break
    if not model.apart(setting):
      found.append(setting)
  if not found:
    raise ValueError(model.why_not())
  if len(found) > 1:
    key = next(iter(found[0]))
    raise ValueError(
      f'Several settings give the shapes of the plan: {found[0]}, {found[1]}. They are'
      ' other networks. Give a config of the numbers alone that may change, as in'
      f' jc.analysis.config_delta(lambda c: shapes({{**config, **c}}), {{{key!r}:'
      f' {model.numbers[key]}}}, plan).'
    )
  return found[0]
