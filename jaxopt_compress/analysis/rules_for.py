r"""Rules by what a weight is used for, so that nobody writes the names of layers.

    uses = jc.uses(apply)(params, x)
    rules = jc.rules_for(uses, dot='W4A16', conv='W8A8', gather='int8', last=None)
    print(rules)                                   what each takes, and what stays
    qparams = jc.quantize(params, rules, uses)

The list is an ordinary one: `[*mine, *rules]` puts rules of one's own before it. A
path is literal but for numbers: layers that are treated alike share a rule with `\d+`
in their place, which matches them and nothing else of the tree.
"""

from collections.abc import Sequence
import math
import re
from typing import Any
from typing import NamedTuple

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib

# The keywords, in the order in which they speak of a weight, and what they are for.
_ORDER = ('last', 'first', 'gather', 'experts', 'conv', 'dot')
_KIND_OF = {
  'conv_general_dilated': 'conv',
  'dot_general': 'dot',
  'gather': 'gather',
  'ragged_dot_general': 'experts',
}
_LEFT_OUT: Any = ...
# A product reads what is computed from it.
_BEFORE_HOIST = 'in no product before jc.hoist'


class Rules(list):
  """A list of rules that prints with what each of them takes.

  Attributes:
    report: a line for each rule, and for what is left as it is.
  """

  def __init__(self, rules: Sequence[tuple[str, Any]], report: str):
    super().__init__(rules)
    self.report = report

  def __str__(self):
    return self.report


def rules_for(
  uses: dict[str, tuple[uses_lib.Use, ...]],
  *,
  dot: Any = _LEFT_OUT,
  conv: Any = _LEFT_OUT,
  gather: Any = _LEFT_OUT,
  experts: Any = _LEFT_OUT,
  first: Any = _LEFT_OUT,
  last: Any = _LEFT_OUT,
  at_least: int = 4096,
  **unknown: Any,
) -> Rules:
  r"""Rules that give each weight the value of the operation that it is used in.

  Values are those of any rule list: 'W4A16' or a `jc.Scheme` for `jc.quantize`, 0.8 or
  '2:4' for `jc.prune`, a rank for `jc.adapters.add_lora`; None leaves weights as they
  are, and so does a keyword that is left out. A weight that is used in several ways
  takes what is given for the first of: `last`, `first`, `gather`, `experts`, `conv`,
  `dot`. So a tied embedding, which is gathered and in a dot, goes by `gather` where
  that is given, and by `dot` else.

  Args:
    uses: what `jc.uses(apply)(params, x)` returned.
    dot: for weights in a `dot_general`: dense layers, attention projections; and for
      those of `experts` where that is left out.
    conv: for kernels of convolutions.
    gather: for tables of which rows are looked up: embeddings.
    experts: for weights in a ragged dot, and in a dot with one of them for each entry
      of a batch axis.
    first, last: an exception for the weights whose product reads what the network is
      given, or after whose product no other comes. A network with several inputs or
      heads has several, and so has attention that comes first. Size does not matter.
    at_least: weights with fewer elements stay as they are. Layers that lie stacked in
      one array count one by one.

  Returns:
    The rules, a list whose last is `(r'.*', None)`. `print` shows what each takes, and
    which weights are left as they are.

  Raises:
    ValueError: nothing was asked for, a keyword matches no weight, or the first or last
      product is a stack of layers, which have one rule.

  >>> import jax.numpy as jnp
  >>> f = lambda p, x: jnp.tanh(x @ p['l1'] + p['b']) @ p['l2']
  >>> p = {'b': jnp.ones((1, 64)), 'l1': jnp.ones((64, 64)), 'l2': jnp.ones((64, 64))}
  >>> uses = uses_lib.uses(f)(p, jnp.ones((1, 64)))
  >>> list(rules_for(uses, dot='W8A8'))
  [('l\\d+', 'W8A8'), ('.*', None)]
  >>> print(rules_for(uses, dot='W8A8', last=None))
  'l1'  'W8A8'  1 weight, 4,096 elements: dot
  '.*'  None    the rest: l2 (last), 1 leaf in no product
  """
  for word in unknown:
    choices.one_of('A keyword of rules_for', word, (*_ORDER, 'at_least'))
  values = zip(_ORDER, (last, first, gather, experts, conv, dot), strict=True)
  given = {k: v for k, v in values if v is not _LEFT_OUT}
  weights = {path: _weight(met) for path, met in uses_lib.checked(uses).items()}
  takes = {path: _taken_by(w, given, at_least) for path, w in weights.items()}
  _check(given, weights, takes, at_least)
  rules = [*_listed(takes, given), (r'.*', None)]
  return Rules(rules, _report(rules, weights, takes, at_least))


class _Weight(NamedTuple):
  """What a leaf is used for, and how large it is.

  Attributes:
    kinds: the keywords that may speak of it, the first of which does.
    elements: of the array.
    layers: how many layers lie stacked in it.
    size: elements of each, and of each expert.
    outside: what is said of it where no product reads it.
  """

  kinds: tuple[str, ...]
  elements: int
  layers: int
  size: int
  outside: str = 'in no product'


def _weight(uses: tuple[uses_lib.Use, ...]) -> _Weight:
  met = [use for use in uses if use.contracted]
  kinds = {_KIND_OF[use.primitive] for use in met}
  shape = met[0].shape if met else ()
  experts = set().union(*(use.experts for use in met))
  layers = set().union(*(use.stacked for use in met)) - experts
  if experts:
    kinds |= {'dot', 'experts'}  # and what experts do not say, dot does
  if kinds - {'gather'}:
    kinds |= {kind for kind in ('first', 'last') if getattr(met[0], kind)}
  sizes = [
    math.prod(shape[a] for a in axes)
    for axes in (range(-len(shape), 0), layers, layers | experts)
  ]
  total, stacked, parts = sizes
  kinds = tuple(kind for kind in _ORDER if kind in kinds)
  made = any(use.in_product for use in uses)
  outside = _BEFORE_HOIST if made else 'in no product'
  return _Weight(kinds, total, stacked, total // max(1, parts), outside)


def _taken_by(weight: _Weight, given, at_least) -> str | None:
  """The keyword that it goes by, 'small', or None."""
  kind = next((k for k in weight.kinds if k in given), None)
  small = kind not in (None, 'first', 'last') and weight.size < at_least
  return 'small' if small else kind


def _check(given, weights, takes, at_least):
  """Every keyword has a weight, and none takes a stack for its first layer."""
  if not given:
    raise ValueError(
      "rules_for(uses) gives no weight a value. Say for which: dot='W4A16',"
      " conv='W8A8', gather='int8'."
    )
  for kind, value in given.items():
    mine = [path for path, w in weights.items() if kind in w.kinds]
    if kind in takes.values():
      stacked = [p for p in mine if weights[p].layers > 1 and takes[p] == kind]
      if stacked and kind in ('first', 'last'):
        raise ValueError(
          f'{kind}={value!r}: {_few(stacked)} hold {weights[stacked[0]].layers} layers'
          f' in one array, which have one rule. Leave {kind} out, or unroll them.'
        )
      continue
    small = [path for path in mine if takes[path] == 'small']
    if small:
      why = f'{_few(small)} have fewer than at_least={at_least} elements'
      why += ' (at_least=0 takes them)'
    elif mine:
      why = (
        f'{_few(mine)} go by {" and ".join(sorted({takes[p] for p in mine}))}'
      )
    else:
      found = {k: sum(k in w.kinds for w in weights.values()) for k in _ORDER}
      found = ', '.join(f'{k} for {n}' for k, n in found.items() if n)
      why = f'there would be {found}' if found else 'no leaf is in a product'
      made = [p for p, w in weights.items() if w.outside == _BEFORE_HOIST]
      if made and not found:
        why += f', but jc.hoist makes leaves of what {_few(made)} give'
    raise ValueError(f'{kind}={value!r} is for no weight: {why}. Leave it out.')


def _listed(takes, given) -> list[tuple[str, Any]]:
  """Rules for what has a value, in the order of the tree."""
  alike = {}
  for path in takes:
    alike.setdefault(tuple(re.split(r'\d+', path)), []).append(path)
  rules = []
  for paths in alike.values():
    kinds = [
      takes[p] if given.get(takes[p]) is not None else None for p in paths
    ]
    most = max(dict.fromkeys(kinds), key=kinds.count)
    pattern = _pattern([p for p, k in zip(paths, kinds) if k == most])
    for path, kind in zip(paths, kinds, strict=True):
      # What the pattern would take, and what nothing else gives its value.
      if kind != most and (kind or re.fullmatch(pattern, path)):
        path = rules_lib.Found(re.escape(path))
        rules.append((path, given[kind] if kind else None))
    if most:
      rules.append((rules_lib.Found(pattern), given[most]))
  return rules


def _pattern(paths) -> str:
  """What matches these paths, which differ in their numbers alone."""
  between = [re.escape(part) for part in re.split(r'\d+', paths[0])]
  numbers = zip(*(re.findall(r'\d+', path) for path in paths), strict=True)
  numbers = [n[0] if len(set(n)) == 1 else r'\d+' for n in numbers]
  return ''.join(a + b for a, b in zip(between, [*numbers, ''], strict=True))


def _report(rules, weights, takes, at_least) -> str:
  taken = {pattern: [] for pattern, _ in rules}
  for path in weights:
    taken[next(p for p, _ in rules if re.fullmatch(p, path))].append(path)
  rows = []
  for pattern, value in rules[:-1]:
    paths = taken[pattern]
    elements = sum(weights[path].elements for path in paths)
    kinds = ', '.join(dict.fromkeys(takes[path] for path in paths))
    says = f'{_count(len(paths), "weight")}, {elements:,} elements: {kinds}'
    rows.append((repr(pattern), _said(value), says))
  rest = {}
  for path in taken['.*']:
    reason = (
      takes[path] or (weights[path].kinds or (weights[path].outside,))[-1]
    )
    rest.setdefault(reason, []).append(path)
  unused = rest.pop('in no product', [])
  named = {'small': f'fewer than {at_least} elements'}
  says = [f'{_few(p)} ({named.get(why, why)})' for why, p in rest.items()]
  says += [f'{_count(len(unused), "leaf")} in no product'] * bool(unused)
  rows.append((repr('.*'), 'None', f'the rest: {", ".join(says) or "nothing"}'))
  widths = [max(len(row[i]) for row in rows) for i in range(2)]
  return '\n'.join(f'{a:{widths[0]}}  {b:{widths[1]}}  {c}' for a, b, c in rows)


def _said(value) -> str:
  describe = getattr(value, 'describe', None)
  return repr(value) if describe is None else describe()


def _count(n, noun) -> str:
  return f'{n} {noun if n == 1 else {"leaf": "leaves"}.get(noun, noun + "s")}'


def _few(paths, most=8) -> str:
  more = [f'{len(paths) - most} more'] if len(paths) > most else []
  return ', '.join([*paths[:most], *more])
