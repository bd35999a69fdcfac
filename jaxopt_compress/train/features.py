"""Features of a student that are like those of its teacher, as a config says it.

    features=((student regex, teacher regex, loss, weight), ...)

    r'blocks/\\d+/norm2/max'     names of `jc.features`, the whole of each
    'hint'                      a loss of `distillation.features`, with numbers that it
                                takes: 'attention_transfer, power 4'
    0.5, 'linear 0 -> 0.5'      what the mean over layers counts, see `train.schedules`

Values that match are layers in the order of the program; one in a scan is as many as
the scan has, and queries, keys and values are one layer for 'minilm'. `layer_map`
(`distillation.layers`) says which of the teacher's layers each of the student's
imitates. Where a loss needs equal widths, a connector leads from the student's to the
teacher's: it is trained along, and nothing of it is left when the stage is done.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import jax

from jaxopt_compress.analysis import features as features_lib
from jaxopt_compress.analysis import values as values_lib
from jaxopt_compress.core import choices
from jaxopt_compress.distillation import features
from jaxopt_compress.distillation import layers as layers_lib
from jaxopt_compress.distillation.features import hints
from jaxopt_compress.train import fields
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import schedules
from jaxopt_compress.train import soft_loss
from jaxopt_compress.train.step import loss as loss_lib

# Losses of equal widths; of positions, whose count is one of positions; of queries,
# keys and values.
_EQUAL = ('hint', 'cosine', 'normalized', 'contrastive')
_THREE = ('minilm', 'minilm_v2')
_POSITIONS = ('hint', 'cosine', 'normalized', 'relation', *_THREE)
LOSSES = (
  *_EQUAL,
  *('attention_transfer', 'similarity', 'distances', 'angles'),
  *('relation', *_THREE),
)
CONNECTORS = ('', 'none', *features.connectors.STARTS)

_BY_NAME = 'values by name'  # among the intermediate values of a model

# (name, number in its scan or None) of each of the values of a layer.
Layer = tuple[tuple[str, int | None], ...]


@dataclasses.dataclass(frozen=True)
class Term:
  """One entry of `features`.

  Attributes:
    name: of the part of the loss.
    loss: and its numbers.
    weight: a number, or the words of a schedule.
    pairs: (layer of the student, layer of the teacher).
  """

  name: str
  loss: soft_loss.SoftLoss
  weight: float | str
  pairs: tuple[tuple[Layer, Layer], ...]


@dataclasses.dataclass(frozen=True)
class Asked:
  """The features of a stage.

  Attributes:
    terms: of the loss.
    student, teacher: names of the values that they need.
    connected: {name of a connector: (value of the student, of the teacher)}, abstract.
    start: of connectors.
  """

  terms: tuple[Term, ...] = ()
  student: tuple[str, ...] = ()
  teacher: tuple[str, ...] = ()
  connected: Mapping[str, tuple[Any, Any]] = dataclasses.field(
    default_factory=dict
  )
  start: str = 'random'

  def connectors(self, key: jax.Array) -> Any:
    """Connectors before the first step; () if there are none."""
    if not self.connected:
      return ()
    student = {name: s for name, (s, _) in self.connected.items()}
    teacher = {name: t for name, (_, t) in self.connected.items()}
    return features.connectors.init(key, student, teacher, start=self.start)


def read(
  stage: options.Stage,
  model: model_lib.Model,
  teachers: Sequence[model_lib.Model],
) -> Asked:
  """What a config asks for, of these models.

  Args:
    stage: its options.
    model: of the student.
    teachers: stages that teach; none where it is the student's own average.

  Raises:
    ValueError: a pattern that matches nothing, widths that differ without a connector,
      values that cannot be compared.
  """
  distil = stage.distil
  if not distil.features:
    return Asked()
  ours = _listed(model, train=True)
  theirs = _listed((*teachers, model)[0], train=False)
  terms, connected = [], {}
  for k, (mine, other, said, weight) in enumerate(distil.features):
    loss = soft_loss.read('features', said, features, LOSSES)
    size = 3 if loss.name in _THREE else 1
    student = _layers('student', mine, ours, size)
    teacher = _layers('teacher', other, theirs, size)
    chosen = layers_lib.layer_map(len(student), len(teacher), distil.layer_map)
    pairs = [
      (s, teacher[j])
      for s, j in zip(student, chosen, strict=True)
      if j is not None
    ]
    before = sum(t.loss.name == loss.name for t in terms)
    name = f'{loss.name}_{before + 1}' if before else loss.name
    terms.append(Term(name, loss, weight, tuple(pairs)))
    if loss.name in _EQUAL:
      connected |= _connected(distil.connector, k, pairs, ours, theirs)
  return Asked(
    tuple(terms),
    _names(s for t in terms for s, _ in t.pairs),
    _names(x for t in terms for _, x in t.pairs),
    connected,
    distil.connector if distil.connector == 'identity' else 'random',
  )


def _listed(model, train) -> dict[str, values_lib.Feature]:
  """The values of a model, as it is trained or as it teaches."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  mode = {'train': True, 'rngs': key} if train else {}
  names = features_lib.feature_names(model.apply)
  return names(model.params, model.variables, model.inputs, **mode)


def _layers(whose, pattern, listed, size) -> list[Layer]:
  """The layers that a pattern matches, `size` values in each."""
  found = [name for name in listed if re.fullmatch(pattern, name)]
  if not found:
    shown = [name for name in listed if name.split('/')[-1] in _TOLD]
    raise ValueError(
      f'features: {pattern!r} matches no value of the {whose}.'
      f'{choices.guess(pattern, listed)} There are {", ".join(shown[:24])}, and more:'
      ' jc.analysis.feature_names lists them.'
    )
  if len(found) % size:
    raise ValueError(
      f'features: {pattern!r} matches {len(found)} values of the {whose}, {found[:8]};'
      ' queries, keys and values, in this order, are expected of each layer.'
    )
  layers = []
  for i in range(0, len(found), size):
    group = found[i : i + size]
    depths = {listed[name].layers for name in group}
    if len(depths) > 1 or len(deep := depths.pop()) > 1:
      raise ValueError(
        f'features: {group} of the {whose} are in scans of {depths or deep} layers;'
        ' one scan, and the same for each, is expected.'
      )
    turns = range(deep[0]) if deep else [None]
    layers += [tuple((name, j) for name in group) for j in turns]
  return layers


# Where one is in a network is told by products, sums and nonlinearities.
_TOLD = ('kernel', 'embedding', 'dot_general', 'add', 'max')


def _names(layers: Iterator[Layer]) -> tuple[str, ...]:
  return tuple(dict.fromkeys(name for layer in layers for name, _ in layer))


def _key(k, layer) -> str:
  """The name of the connector of a layer of entry k."""
  ((name, i),) = layer
  return f'{k}/{name}' if i is None else f'{k}/{name}/{i}'


def _connected(start, k, pairs, ours, theirs):
  """The connectors of the pairs of entry k."""
  made = {}
  for s, t in pairs:
    a, b = ours[s[0][0]], theirs[t[0][0]]
    differ = a.shape[-1] != b.shape[-1]
    if differ and start == 'none':
      raise ValueError(
        f'features: {s[0][0]} of the student has {a.shape[-1]} features, {t[0][0]} of'
        f" the teacher {b.shape[-1]}. Set connector to 'random' or 'identity'."
      )
    if differ or start in features.connectors.STARTS:
      made[_key(k, s)] = a, b
  return made


# ------------------------------------------------------------------- in a step


def giving(
  apply: Callable[..., Any],
  training: Sequence[str] = (),
  teaching: Sequence[str] = (),
) -> Callable[..., Any]:
  """`apply`, which also gives values by name, among its intermediate ones.

  Args:
    apply: of a model.
    training: names with train=True.
    teaching: names without.
  """

  def applied(params, variables, x, **mode):
    names = training if mode.get('train') else teaching
    if not names:
      return apply(params, variables, x, **mode)
    rules = [(re.escape(name), ...) for name in names]
    run = features_lib.features(apply, rules)
    (y, out, variables), found = run(params, variables, x, **mode)
    return y, {**out, _BY_NAME: found}, variables

  return applied


def of_student(
  asked: Asked, stage: options.Stage, model: model_lib.Model
) -> Callable[..., Any]:
  """The student's `apply`, which is that of its moving average too."""
  teaching = asked.teacher if stage.distil.follows else ()
  return giving(model.apply, asked.student, teaching)


def terms(
  asked: Asked, seen: loss_lib.Seen, shape: tuple[int, ...], mask: Any, steps
) -> Iterator[tuple]:
  """(name, weight, f, *inputs) of each term: see `distil.part`.

  Args:
    asked: the features of the stage.
    seen: outputs of the student and the teacher.
    shape: of labels: [batch] or [batch, time].
    mask: of that shape, or None.
    steps: of the stage.
  """
  if not asked.terms:
    return
  ours = seen.outputs[1][_BY_NAME]
  theirs = seen.teachers[0][1][_BY_NAME]
  for k, term in enumerate(asked.terms):
    numbers = term.loss.at(seen.step, steps)
    if term.loss.takes('axis_name'):
      numbers['axis_name'] = seen.axis

    def f(ours, theirs, connectors, k=k, term=term, numbers=numbers):
      found = []
      for s, t in term.pairs:
        values = [_of(layer, v, shape) for layer, v in ((s, ours), (t, theirs))]
        if term.loss.name in _EQUAL:
          values = _alike(values, connectors, _key(k, s))
        found.append(_loss(term.loss, values, mask, numbers))
      # All have the same count: of examples, or of tokens.
      return sum(total for total, _ in found) / len(found), found[0][1]

    weight = schedules.at(term.weight, steps)(seen.step)
    yield term.name, weight, f, ours, theirs, seen.connectors


def _of(layer, values, shape):
  """The values of a layer, [batch, ...] each."""
  found = []
  for name, i in layer:
    x = values[name] if i is None else values[name][i]
    if len(shape) == 2 and x.shape[0] == math.prod(shape) != shape[0]:
      x = x.reshape(*shape, *x.shape[1:])  # tokens in one row
    if x.ndim < 2 or x.shape[0] != shape[0]:
      raise ValueError(
        f'features: {name} has shape {x.shape} for {shape[0]} examples; [batch, ...,'
        ' features] is expected. Choose a value of each example.'
      )
    found.append(x)
  return found


def _alike(values, connectors, key):
  """Values of student and teacher as wide as each other, of the same sides."""
  (s,), (t,) = values
  if connectors and key in connectors:
    s = features.connectors.apply({key: connectors[key]}, {key: s})[key]
  if s.ndim == t.ndim > 3:
    sides = tuple(map(min, s.shape[1:-1], t.shape[1:-1]))
    s, t = features.pooled(s, sides), features.pooled(t, sides)
  return [s], [t]


def _loss(loss, values, mask, numbers):
  """(sum, count) of a layer; the count is of examples, or of the mask's positions."""
  s, t = values
  x = s[0]
  if mask is not None and mask.ndim > 1 and x.shape[: mask.ndim] != mask.shape:
    mask = mask.astype(bool).any(-1)
  if loss.name in ('relation', *_THREE):
    mask = hints.mask_of(x, mask)
  pair = (s, t) if loss.name in _THREE else (x, t[0])
  total, count = loss.function(*pair, mask=mask, **numbers)
  if loss.name not in _POSITIONS:
    return total, count
  # Layers may have other numbers of places: each is the mean over its own.
  places = math.prod(x.shape[1:-1])
  return total / places, count / places


# ---------------------------------------------------------------------- checks


def check(where: str, stage: options.Stage) -> None:
  """Raises a ValueError for words that mean nothing or have no effect."""
  distil = stage.distil
  if not distil.features:
    return
  if len(distil.teachers) != 1:
    raise ValueError(
      f'{where}.features compares with one teacher, and there are'
      f' {[name for name, _ in distil.teachers]}. Leave one.'
    )
  if stage.cache.asked:
    raise ValueError(
      f'{where}.features are those of a teacher that answers at each step, and a cache'
      ' keeps logits alone. Leave out one of the two.'
    )
  choices.one_of(f'{where}.layer_map', distil.layer_map, layers_lib.LAYERS)
  choices.one_of(f'{where}.connector', distil.connector, CONNECTORS)
  equal = False
  for said in distil.features:
    if not (isinstance(said, tuple) and len(said) == 4):
      raise ValueError(
        f'{where}.features has {said!r}; (student regex, teacher regex, loss, weight),'
        r" such as (r'blocks/\d+/down/add', r'blocks/\d+/down/add', 'hint', 1.0), is"
        ' expected.'
      )
    *patterns, loss, weight = said
    for pattern in patterns:
      try:
        re.compile(pattern)
      except (re.error, TypeError) as e:
        raise ValueError(
          f'{where}.features: {pattern!r} is no regular expression: {e}'
        ) from e
    loss = soft_loss.read(f'{where}.features', loss, features, LOSSES)
    equal |= loss.name in _EQUAL
    if not isinstance(weight, str):
      fields.number(f'{where}.features, its weight,', weight, 1.0, '(0, inf)')
    schedules.check(f'{where}.features, its weight,', weight, '[0, inf)')
  if not equal:
    need = f'one of {_EQUAL} in features'
    fields.check_unread(where, stage, ['connector'], need)
