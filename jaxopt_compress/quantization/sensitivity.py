"""Which weight, and which of its two operands, costs how much of the results.

    error of (w, weight)        w alone is rounded, what it meets stays as it is
    error of (w, activations)   what w meets is rounded, everything else stays
    error of (w, both)          both

against the float network, on data. All are one program: each weight is a `Switched`
leaf, and an array of numbers says what is rounded.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import batches as batches_lib
from jaxopt_compress.analysis import storage
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.quantization import agreement
from jaxopt_compress.quantization import costs
from jaxopt_compress.quantization import quantize as quantize_lib
from jaxopt_compress.quantization import schemes as schemes_lib
from jaxopt_compress.quantization import spec as spec_lib
from jaxopt_compress.quantization import switches

# Alternatives are tried on the costliest weights, until the others cost so little of
# the squared error; of a part that costs less of its weight's, none.
_SMALL = 0.1
_GROUP = 32


def sensitivity(
  apply: Callable,
  params: Any,
  rules: Sequence[tuple[str, Any]],
  batches: Iterable[Any],
  *,
  uses: dict | None = None,
  ranges: dict | None = None,
  others: Sequence[Any] = (),
  examine: int = 8,
) -> costs.Costs:
  """What rounding each weight, and what it meets, costs of a network's results.

  One program is compiled for all weights, and another one for what might be better
  for the costliest. The first runs three times a weight on all batches, the second
  once an alternative, so time goes with the batches: give few. Layers of a stack count
  one by one.

  Args:
    apply: a function of parameters and the arguments that a batch is; all floating
      entries that it returns count.
    params: as they were trained.
    rules: as for `jc.quantize`.
    batches: as in `jc.calibrate`; a few that say what the network will meet.
    uses: what `jc.uses(apply)(params, x)` returned.
    ranges: of static activations, from `jc.calibrate`.
    others: schemes to try on the costliest weights beside zero points, groups,
      searched clips and more bits: words or `jc.Scheme`s.
    examine: on how many weights, at most, alternatives are tried.

  Returns:
    A `Costs`: its `rows` say path, part, format, error, cosine, argmax and bytes;
    it prints as one table, the costliest weight first; and `rules(cosine=...)` makes
    rules of it that reach a cosine.

  Raises:
    ValueError: rules that leave everything as it is, no batches, results of the float
      network that are not finite, or what `jc.quantize` refuses.

  >>> f = lambda p, x: jnp.tanh(x @ p['a']) @ p['b']
  >>> p = {'a': jnp.eye(8) + 0.3, 'b': jnp.eye(8) - 0.1}
  >>> x = jnp.sin(jnp.arange(32.0)).reshape(4, 8)
  >>> found = sensitivity(
  ...   f, p, [('.*', 'int8, int4 token')], [x], uses=uses_lib.uses(f)(p, x)
  ... )
  >>> sorted({(row.path, row.part) for row in found.rows})[:2]
  [('a', 'activations'), ('a', 'both')]
  """
  schemes = _rounded(rules, params)
  if not schemes:
    raise ValueError(
      'Every rule leaves its weights as they are, so that nothing is rounded. Give'
      " some a scheme: [(r'.*/kernel', 'W8A8'), (r'.*', None)]."
    )
  quantize_lib.known_paths('ranges', ranges, schemes)
  how = dict(uses=uses, ranges=ranges)
  reference = agreement.Reference(apply, params, batches)

  def program_of(schemes):
    forms = {path: [('both', scheme)] for path, scheme in schemes.items()}
    return _Program(reference, params, forms, **how)

  program = program_of(schemes)
  found = costs.Costs(
    rows=costs.sorted_rows(list(_rows(program))),
    together=program.together(),
    parts={part: program.together(part) for part in costs.PARTS[1:]},
    weights={path: _weight(program, path, s) for path, s in schemes.items()},
    given=tuple(rules_lib.pairs(rules)),
    measure=lambda rules: program_of(_rounded(rules, params)).together(),
  )
  tried = _to_try(found, others, examine)
  if not tried:
    return found
  program = _Program(reference, params, tried, **how)
  return dataclasses.replace(found, better=tuple(_better(program)))


def _rounded(rules, params) -> dict[str, schemes_lib.Scheme]:
  """The scheme of each weight that rules round, by its path."""
  chosen = schemes_lib.by_leaf(rules, params)
  return {path: s for path, s in chosen.items() if s is not None}


# ---------------------------------------------------------------------- one program


class _Slot(NamedTuple):
  """A weight, or one layer of a stack of them: what is chosen for itself."""

  path: str
  layer: tuple[int, ...] = ()

  @property
  def name(self) -> str:
    return self.path + ''.join(f'[{i}]' for i in self.layer)


class _Program:
  """A network whose weights are switched.

  Attributes:
    forms: {path: [(part, scheme)]}; a choice of i is the i-th, from 1.
    leaves: {path: the `Switched` leaf}.
    slots: {slot: its number}, in the order of the choices.
  """

  def __init__(self, reference, params, forms, *, uses, ranges):
    self.reference, self.forms = reference, forms
    self.leaves, self.slots = {}, {}

    def switched(path, x):
      if path not in forms:
        return x
      leaf = _switched(path, x, forms[path], uses, (ranges or {}).get(path))
      self.leaves[path] = leaf
      for layer in np.ndindex(*_layers(leaf)):
        self.slots[_Slot(path, layer)] = len(self.slots)
      return leaf

    tree = rules_lib.map_named(switched, params)
    self._run = batches_lib.jitted(self._floats, tree)

  def measured(self, choices: dict[_Slot, tuple[int, int]]):
    """The `Agreement` where slots have (form of the weight, of what it meets)."""
    numbers = np.zeros((len(self.slots), 2), np.float32)
    for slot, pair in choices.items():
      numbers[self.slots[slot]] = pair
    numbers = jnp.asarray(numbers)
    got = (self._run(numbers, batch) for batch in self.reference.batches)
    return agreement.total(got, self.reference.wanted)

  def together(self, part: str = 'both'):
    """The `Agreement` where every slot has its first form, or one part of it."""
    return self.measured(dict.fromkeys(self.slots, _CHOICES[part]))

  def bytes(self, path: str, form: int) -> int:
    """Of a weight in a form, from 1; 0 is float."""
    leaf = self.leaves[path]
    return storage.nbytes(leaf.forms[form - 1] if form else leaf.value)

  def _floats(self, tree, numbers, batch):
    ctx = lift.context(rule_for=switches.rule_for)
    starts = {
      path: self.slots[_Slot(path, layer)] for path, layer in self._first()
    }

    def chosen(path, x):
      if path not in starts:
        return x
      size = math.prod(_layers(x))
      mine = numbers[starts[path] : starts[path] + size]
      return x.chosen(mine[:, 0], mine[:, 1])

    def run(*args, **kwargs):
      return lift.run(ctx, self.reference.apply, args, kwargs)

    tree = rules_lib.map_named(chosen, tree)
    out = batches_lib.call(run, (tree,), batch)
    return agreement.floats_of(array.materialize(out))

  def _first(self):
    """The first slot of each weight."""
    found = {}
    for path, layer in self.slots:
      found.setdefault(path, layer)
    return found.items()


def _layers(leaf) -> tuple[int, ...]:
  return tuple(n for n in leaf.choice.act_scale.shape if n > 1)


def _switched(path, x, schemes, uses, act_range):
  x = jnp.asarray(array.materialize(x))
  forms = [
    quantize_lib.quantize_leaf(path, x, s, uses, act_range=act_range)
    for _, s in schemes
  ]
  stacked = ()
  if uses is not None:
    # Experts are multiplied side by side, and choose together.
    experts = {a for use in uses_lib.of(path, uses) or () for a in use.experts}
    stacked = set(uses_lib.axes(path, x, uses).stacked) - experts
  return switches.switched(x, forms, tuple(stacked))


def _weight(program, path, scheme) -> costs.Weight:
  return costs.Weight(scheme, program.bytes(path, 1), program.bytes(path, 0))


# ---------------------------------------------------------------------------- rows

_CHOICES = {'weight': (1, 0), 'activations': (0, 1), 'both': (1, 1)}


def _rows(program):
  """The rows of the first form of every slot."""
  for slot in program.slots:
    ((_, scheme),) = program.forms[slot.path]
    layers = math.prod(_layers(program.leaves[slot.path]))
    for part in _parts(scheme):
      weight, _ = _CHOICES[part]
      yield costs.Row.of(
        program.measured({slot: _CHOICES[part]}),
        path=slot.name,
        part=part,
        format=_words(scheme, part),
        bytes=program.bytes(slot.path, weight) // layers,
        weight=slot.path,
      )


def _parts(scheme) -> tuple[str, ...]:
  return costs.PARTS if scheme.act else ('weight',)


def _words(scheme, part) -> str:
  if part == 'activations':
    return scheme.act.describe()
  return (
    scheme.weight.describe() if part == 'weight' else schemes_lib.words(scheme)
  )


# -------------------------------------------------------------------- alternatives


def _to_try(found, others, examine) -> dict[str, list[tuple[str, Any]]]:
  """(part, scheme) to try on the costliest weights, by path."""
  others = [schemes_lib.scheme(words) for words in others]
  squares = {path: found.square(path) for path in found.weights}
  costliest = sorted(squares, key=squares.get, reverse=True)
  # Those whose results are lost are tried first, and are no measure of the others.
  known = sum(filter(math.isfinite, squares.values()))
  tried = {}
  for i, path in enumerate(costliest[:examine]):
    if sum(squares[p] for p in costliest[i:]) <= _SMALL * known:
      break
    scheme = found.weights[path].scheme
    mine = [('both', s) for s in others if s not in (None, scheme)]
    for part, specs, make in (
      ('weight', _weights(scheme.weight), schemes_lib.Scheme),
      (
        'activations',
        _acts(scheme.act),
        functools.partial(schemes_lib.Scheme, scheme.weight),
      ),
    ):
      if found.square(path, part) >= _SMALL * squares[path]:
        mine += [(part, make(spec)) for spec in specs]
    if mine:
      tried[path] = mine
  return tried


def _weights(spec: spec_lib.Spec) -> list[spec_lib.Spec]:
  """Zero points, smaller groups, a searched clip, more bits: one at a time."""
  replace = functools.partial(dataclasses.replace, spec, learn='')
  integer, made = spec.numbers.integer, []
  if integer and spec.symmetric:
    made.append(replace(symmetric=False))
  if spec.granularity in ('tensor', 'channel') and spec.format != 'e4m3':
    made.append(replace(granularity='group', group=_GROUP))
  if (
    spec.granularity == 'group' and spec.group > _GROUP and spec.scale != 'int8'
  ):
    made.append(replace(group=_GROUP))
  if integer and spec.range == 'absmax':
    made.append(replace(range='mse'))
  if spec.numbers.bits < 8:
    made.append(spec_lib.Spec('int8'))
  return made


def _acts(spec: spec_lib.Spec | None) -> list[spec_lib.Spec]:
  """With a zero point or without, a range for each token, more bits."""
  if spec is None:
    return []
  best, made = spec_lib.Spec('int8', 'token', symmetric=False), []
  if spec.numbers.integer:
    if not spec.static:
      made.append(dataclasses.replace(spec, symmetric=not spec.symmetric))
    if spec.granularity == 'tensor':
      other = dataclasses.replace(
        spec, granularity='token', static=False, learn=''
      )
      made.append(other)
  return list(dict.fromkeys(s for s in (*made, best) if s != spec))


def _better(program):
  """The rows of alternatives, all layers of a stack at once."""
  for path, forms in program.forms.items():
    slots = [slot for slot in program.slots if slot.path == path]
    for i, (part, scheme) in enumerate(forms, 1):
      weight, act = _CHOICES[part]
      yield costs.Row.of(
        program.measured(dict.fromkeys(slots, (i * weight, i * act))),
        path=path,
        part=part,
        format=_words(scheme, part),
        bytes=program.bytes(path, i * weight),
        weight=path,
      )
