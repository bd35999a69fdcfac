"""Which numbers of a config make the network of a plan.

Models that are built of a config have their sizes from it, often several from one
number, or one from several:

    kernel [hidden, heads * head_dim]       heads 4 -> 2     {'heads': 2}

What each number sets is asked of the model: it is built, abstractly, with one number
changed, and the shapes of its parameters tell. The numbers that the plan needs follow,
and the shapes that they give are those of the plan, all of them, or it is an error.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import itertools
import math
from typing import Any

from jaxopt_compress.analysis import config_numbers
from jaxopt_compress.analysis import plan as plan_lib
from jaxopt_compress.analysis import raised
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
  solutions = [found for found in model.settings() if not model.apart(found)]
  if not solutions:
    raise ValueError(model.why_not())
  best = _best(solutions, model.numbers, model.groups)
  return best, config_numbers.replaced(config, best)


class _Model:
  """What the numbers of a config do to the shapes of a model.

  Attributes:
    numbers: {path: number} of the config.
    now, want: {leaf: shape}, as it is and as the plan makes it.
    slopes: {path of a number: {(leaf, axis): entries for each one more}}.
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
    self._check_is_of_plan()
    self.slopes, self.silent = {}, []
    for key in self.numbers:
      found = self._slopes_of(key)
      if found is None:
        self.silent.append(key)
      elif found:
        self.slopes[key] = found

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

  def _check_is_of_plan(self):
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

  def _slopes_of(self, key) -> dict[tuple[str, int], float] | None:
    """What one more of a number adds to each axis; None where it cannot change."""
    n = self.numbers[key]
    for other in dict.fromkeys((n + 1, 2 * n, n // 2, n - 1, 3 * n)):
      if other < 1 or other == n:
        continue
      shapes = self.with_numbers({key: other})
      if shapes is None:
        continue
      return {
        (path, i): (m - k) / (other - n)
        for path, shape in self.now.items()
        if len(shapes.get(path, ())) == len(shape)
        for i, (k, m) in enumerate(zip(shape, shapes[path], strict=True))
        if m != k
      }
    return None

  # ---------------------------------------------------------------- solving

  def candidates(self, key) -> list[int]:
    """Values of a number that an axis asks for, the present one among them."""
    alone, shared = [], []
    n = self.numbers[key]
    for (path, i), slope in self.slopes.get(key, {}).items():
      k, m = self.now[path][i], self.want[path][i]
      others = sum((path, i) in s for s in self.slopes.values()) > 1
      value = n + (m - k) / slope
      if value >= 1 and value == int(value):
        (shared if others else alone).append(int(value))
    if alone:
      # An axis that no other number sets says what it is.
      return list(dict.fromkeys(alone))
    of_axes = [
      m
      for path, shape in self.want.items()
      for k, m in zip(self.now[path], shape, strict=True)
      if k == n and key in self.silent
    ]
    of_groups = [m for k, m in self.groups if k == n]
    if key in self.silent or shared:
      shared = [n, *of_groups, *of_axes, *shared]
    return list(dict.fromkeys(shared)) or [n]

  def settings(self) -> Iterator[dict[str, int]]:
    """What numbers may become, few changes first."""
    choices = {key: self.candidates(key) for key in self.numbers}
    choices = {k: c for k, c in choices.items() if c != [self.numbers[k]]}
    count = math.prod(map(len, choices.values()))
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
    found.sort(key=len)
    if count > _MOST:
      # A good guess comes early: sizes of groups that the plan changes.
      found.sort(key=lambda s: (not self._of_groups(s), len(s)))
    yield from found[:_MOST]

  def _of_groups(self, setting) -> bool:
    return all((self.numbers[k], n) in self.groups for k, n in setting.items())

  def apart(self, setting) -> list[tuple[str, tuple[int, ...] | None]]:
    """The leaves that are not as the plan wants them, with what they are."""
    shapes = self.with_numbers(setting)
    if shapes is None:
      return [(path, None) for path in self.want]
    return [
      (path, shapes.get(path))
      for path, shape in self.want.items()
      if shapes.get(path) != shape
    ]

  def why_not(self) -> str:
    """The first number that two leaves want otherwise, or the first leaf apart."""
    for key, slopes in self.slopes.items():
      asked = {}
      for (path, i), slope in slopes.items():
        if sum((path, i) in s for s in self.slopes.values()) == 1:
          k, m = self.now[path][i], self.want[path][i]
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
    changed = {p for p in self.want if self.want[p] != self.now[p]}
    free = [
      k for k, s in self.slopes.items() if any(p in changed for p, _ in s)
    ]
    return (
      f'{path} is to be {self.want[path]}, from {self.now[path]}, and no numbers of'
      f' the config give that: with {best or "none changed"} it is {got}. Of the'
      f' numbers {free} depend leaves that change. A size that is written in the model'
      ' has to become a number of the config; or leave the group out of the plan.'
      + self._written()
    )

  def _written(self) -> str:
    """Where the program of the plan has sizes of its own."""
    lines = [
      f' {group.name} is {group.size} there, and {n} in the plan: {group.fixed}.'
      for group, n in self._changed
      if group.fixed
    ]
    return ''.join(lines[:3])


def _best(solutions, numbers, groups) -> dict[str, int]:
  """The one of few changes, of numbers that are the sizes of groups; or ValueError."""
  few = [s for s in solutions if len(s) == min(map(len, solutions))]
  named = [
    s for s in few if all((numbers[k], n) in groups for k, n in s.items())
  ]
  best = named or few
  if len(best) > 1:
    (key, *_), other = best[0], best[1]
    raise ValueError(
      f'Several settings give the shapes of the plan: {best[0]}, {other}. They are'
      ' other networks. Give a config of the numbers alone that may change, as in'
      f' jc.config_delta(lambda c: shapes({{**config, **c}}), {{{key!r}:'
      f' {numbers[key]}}}, plan).'
    )
  return best[0]
