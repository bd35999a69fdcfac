"""The values of a program by name: what `features` takes.

A value has the name of where it is made, and that of a weight if one leads to it:

  'blocks/0/mlp/dot_general'    the scopes of `jax.named_scope` and the primitive, as in
                                `scopes`. Flax Linen opens a scope for each module.
  'blocks/0/mlp/down/kernel'    the path of a parameter: what its use gives, after the
                                bias that is added to it, or the scale of a norm
                                multiplied in.

Where weights are not used in a scope of their module, as in Flax NNX, which opens none,
the module of the weight that the data met last comes first: the residual sum behind
'blocks/0/mlp/down/kernel' is 'blocks/0/mlp/down/add'. A value that
`jax.ad_checkpoint.checkpoint_name` has named ends in that name in place of a primitive.
A number that is added, such as the epsilon of a norm, makes no value of its own. Several
values of one name are numbered in the order of the program: 'block/add/0', 'block/add/1'.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import NamedTuple

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import moved
from jaxopt_compress.analysis import walk
from jaxopt_compress.core import jaxprs


class Made(NamedTuple):
  """A value: the equation that makes it, and which of its results it is."""

  at: walk.At
  result: int

  @property
  def aval(self):
    return self.at.eqn.outvars[self.result].aval

  @property
  def key(self) -> tuple[int, ...]:
    return (*self.at.place, self.result)


def named(closed: Any, paths: Sequence[str]) -> dict[str, Made]:
  """Every value that depends on data, by its names, in program order.

  Args:
    closed: a program whose first inputs are parameters.
    paths: of these parameters.
  """
  asked = _Names()
  inputs = [_Value(weights=(path,)) for path in paths]
  inputs += [_Value()] * (len(closed.jaxpr.invars) - len(inputs))
  algebra.evaluate(asked, closed, inputs)
  of_weights = {made.key for _, made in asked.uses}
  entries = [(path, made) for path, made in asked.uses]
  for name, scoped, made in asked.places:
    if scoped or made.key not in of_weights:
      entries.append((name, made))
  order = {made.key: i for i, (_, _, made) in enumerate(asked.places)}
  entries.sort(key=lambda entry: order[entry[1].key])
  by_name = {}
  for name, made in entries:
    by_name.setdefault(name, {})[made.key] = made
  numbered = {}
  for name, made in entries:
    alike = list(by_name[name])
    k = alike.index(made.key)
    numbered[name if len(alike) == 1 else f'{name}/{k}'] = made
  return numbered


# -------------------------------------------------------------------- the walk


@dataclasses.dataclass(frozen=True)
class _Value:
  """What is known of a value.

  Attributes:
    weights: the parameters that it is computed from, if from nothing else; None for
      data.
    owner: (when, module) of the weight that the data met last, or None; the module is
      '' where scopes say it.
    bare: uses of weights (positions in `_Names.uses`) whose result this is, to which
      no bias was added.
    factor: such uses, by a product of number and number; where it then multiplies data
      along whole axes it is the factor of a norm, 1 / std * scale.
    spread: whether one number stands for a whole axis.
  """

  weights: tuple[str, ...] | None = None
  owner: tuple[int, str] | None = None
  bare: tuple[int, ...] = ()
  factor: tuple[int, ...] = ()
  spread: bool = False


class _Names(algebra.Algebra):
  """Collects names: of places, and of uses of weights."""

  def __init__(self):
    self.places: list[tuple[str, bool, Made]] = []
    self.uses: list[tuple[str, Made]] = []

  def plain(self, aval):
    return _Value()

  def constant(self, x):
    return _Value(weights=())

  def join(self, cases, aval):
    return _joined(cases)

  def layer(self, x, turn, aval):
    return dataclasses.replace(x, bare=(), factor=())

  def stack(self, ys, aval):
    return _joined(ys)

  def cut(self, at, x, spec, aval):
    return dataclasses.replace(x, bare=(), factor=())

  def assemble(self, at, y, spec, aval):
    return dataclasses.replace(y, bare=(), factor=())

  def apply(self, at, inputs):
    out = _joined(inputs)
    if out.weights is not None:
      return [out] * len(at.eqn.outvars)
    met = [w for x in inputs for w in x.weights or ()]
    data = [x for x in inputs if x.weights is None]
    if met:
      owner = len(self.places), _outside_scopes(_module(met[-1]), at.scope)
      out = dataclasses.replace(out, owner=owner)
    name, scoped = _place(at, out.owner)
    if not _adds_number(at, inputs):
      for i in range(len(at.eqn.outvars)):
        self.places.append((name, scoped, Made(at, i)))
    if met:
      out = self._used(at, met, data, out)
    elif len(data) == 1 and _moves(at.eqn):
      out = dataclasses.replace(
        data[0], spread=data[0].spread or _spreads(at.eqn)
      )
    elif at.eqn.primitive.name == 'mul':
      size = at.eqn.outvars[0].aval.size
      factor = [
        use
        for x, v in zip(inputs, at.eqn.invars, strict=True)
        if x.spread or v.aval.size < size
        for use in x.factor
      ]
      self._move(factor, at)
      out = dataclasses.replace(out, bare=tuple(factor))
    return [out] * len(at.eqn.outvars)

  def _used(self, at, met, data, out):
    """The result of an operation that weights take part in."""
    primitive = at.eqn.primitive.name
    bare = sum((x.bare for x in data), ())
    if primitive in ('add', 'sub') and bare:
      # A bias lies beside its weight; another sum is another value.
      module = {_module(w) for w in met}
      behind = [k for k in bare if _module(self.uses[k][0]) in module]
      self._move(behind, at)
      bare = ()
    first = len(self.uses)
    for path in dict.fromkeys(met):
      self.uses.append((path, Made(at, 0)))
    new = tuple(range(first, len(self.uses)))
    if primitive in ('add', 'sub'):
      return out
    if primitive == 'mul':
      spread = all(x.spread or _spreads(at.eqn) for x in data)
      out = dataclasses.replace(out, factor=new, spread=spread)
    return dataclasses.replace(out, bare=new)

  def _move(self, uses, at):
    """What weights lead to is the result of another equation that follows."""
    for k in uses:
      self.uses[k] = self.uses[k][0], Made(at, 0)


def _joined(values) -> _Value:
  """What comes of several values, of which nothing else is known."""
  if all(x.weights is not None for x in values):
    return _Value(
      weights=tuple(dict.fromkeys(w for x in values for w in x.weights))
    )
  owners = [x.owner for x in values if x.owner is not None]
  return _Value(owner=max(owners, default=None))


def _moves(eqn) -> bool:
  return eqn.primitive.name in moved.UNCHANGED or moved.of(eqn, 0) is not None


def _module(path: str) -> str:
  return path.rpartition('/')[0]


def _outside_scopes(module: str, scope) -> str:
  """The module of a weight, or '' where the scopes around its use name it."""
  words = '/'.join(scope).split('/')
  return '' if module.rpartition('/')[2] in words else module


def _adds_number(at, inputs) -> bool:
  scalars = [
    x.weights == () and not v.aval.shape
    for x, v in zip(inputs, at.eqn.invars, strict=True)
  ]
  return at.eqn.primitive.name == 'add' and any(scalars)


def _spreads(eqn) -> bool:
  """Whether one number of the data stands for many of the result."""
  sizes = [v.aval.size for v in eqn.invars]
  if eqn.primitive.name == 'broadcast_in_dim':
    return sizes[0] < eqn.outvars[0].aval.size
  # An elementwise operation may spread an axis of size one itself.
  return len(sizes) == 2 and max(sizes) < eqn.outvars[0].aval.size


def _place(at: walk.At, owner) -> tuple[str, bool]:
  """The name of where a value is made, and whether scopes say it."""
  eqn = at.eqn
  # `checkpoint_name` is an operation that does nothing but name its operand.
  called = eqn.primitive.name == 'name'
  last = eqn.params['name'] if called else eqn.primitive.name
  module = owner[1] if owner else ''
  path = '/'.join(filter(None, (module, *at.scope, last)))
  return path, called or not module and bool(at.scope)


# ------------------------------------------------------------- what can be taken


def outermost(made: Made, through_scans: bool = True) -> Made:
  """The same value where it leaves the programs inside of which it is made.

  A result of a call is a result of its body; what a turn of a scan gives, stacked, is
  one of the scan.
  """
  leaves = (walk.Call, walk.Scan) if through_scans else walk.Call
  at, i = made
  while at.outer is not None:
    inside = walk.enter(at.outer.eqn)
    if not isinstance(inside, leaves):
      break
    outs = jaxprs.opened(inside.body)[0].outvars
    begin = inside.num_carry if isinstance(inside, walk.Scan) else 0
    v = at.eqn.outvars[i]
    places = [j for j, out in enumerate(outs) if out is v and j >= begin]
    # What nothing reads is no variable of the program around.
    places = [j for j in places if not is_dropped(at.outer.eqn.outvars[j])]
    if not places:
      break
    at, i = at.outer, places[0]
  return Made(at, i)


def is_dropped(v) -> bool:
  """Whether JAX has dropped a result, as nothing reads it."""
  return type(v).__name__ == 'DropVar'


def refused(made: Made) -> str:
  """Why a value cannot be taken, or ''."""
  at, i = outermost(made)
  if is_dropped(at.eqn.outvars[i]):
    return 'nothing in the program reads it'
  for outer, _ in at.around:
    inside, name = walk.enter(outer.eqn), outer.eqn.primitive.name
    if isinstance(inside, walk.Cond):
      return 'it is in a branch of a cond, which may not run'
    if isinstance(inside, walk.While):
      return 'it is in a while loop, whose number of turns is not known'
    if name.startswith('custom_'):
      return 'it is in a function with a derivative of its own'
  return ''


@dataclasses.dataclass(frozen=True)
class Feature:
  """What `features` returns of a name, abstract.

  Attributes:
    shape, dtype: of the value; layers of scans and devices of shard_maps come first.
    layers: the sizes of the first axes that are layers of scans.
  """

  shape: tuple[int, ...]
  dtype: Any
  layers: tuple[int, ...]


def described(made: Made) -> Feature:
  """Shape and dtype of a value as `features` returns it."""
  shape, layers = made.aval.shape, ()
  for outer, _ in made.at.around[::-1]:
    inside = walk.enter(outer.eqn)
    if isinstance(inside, walk.Scan):
      shape, layers = (inside.times, *shape), (inside.times, *layers)
    elif isinstance(inside, walk.ShardMap):
      axes = inside.differing(made.aval)
      shape = (math.prod(inside.mesh.shape[a] for a in axes), *shape)
      layers = ()  # they are behind the devices
  return Feature(shape, made.aval.dtype, layers)
