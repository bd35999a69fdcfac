"""Factors that a network can move from one weight to another.

    relu((x W1 + b) / s) (s W2) = relu(x W1 + b) W2        for any s > 0

`rescalings(apply)(params, x)` finds every such freedom of a program. It walks the
jaxpr with, in place of each value, the *factor* that its entries carry: one
unknown for each output channel of each weight, which goes along through whatever
commutes with a positive factor (relu, max, sums, pooling, reshapes, attention's
average of values) and is taken out again where a weight contracts that channel.
What is added must carry the same factor, what enters a softmax must carry none;
the unknowns that are left free are the freedoms.

No layer is known by its name. An operation that is not in the table below allows no
factor: a freedom may be missed, never invented.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.core import structural

# Entry 0 of the unknowns is the factor one.
_ONE = 0


@dataclasses.dataclass(frozen=True)
class Taken:
  """One place where a parameter takes factors up.

  Entry `index[i]` of the flat parameter is multiplied by
  `prod(factor[unknown[i]] ** sign for sign, unknown in terms)`.

  Attributes:
    path: of the parameter.
    index: int32, of the shape of the operand at that place.
    terms: ((sign, unknowns), ...), int32, broadcastable to `index`.
    product: whether it is a weight of a product: a dot, convolution or gather.
    gain: None; or, where it multiplies a value, computes what that is multiplied
      by, or says why it cannot.
  """

  path: str
  index: np.ndarray
  terms: tuple[tuple[int, np.ndarray], ...]
  product: bool = False
  gain: Callable[[], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Rescalings:
  """The freedoms of a network; freedom i has the factor `exp(logs[i])`.

  Attributes:
    num: how many there are.
    freedom: int32 [unknowns], the freedom that an unknown is; -1 for none.
    sign: int8 [unknowns], whether it has that factor or one over it.
    taken: every place where parameters take factors up.
  """

  num: int
  freedom: np.ndarray
  sign: np.ndarray
  taken: tuple[Taken, ...]

  def terms(self, taken: Taken) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(signs, freedoms)], both broadcastable to `taken.index`."""
    return [
      (sign * self.sign[unknowns], self.freedom[unknowns])
      for sign, unknowns in taken.terms
    ]

  def logs_of(self, taken: Taken, logs: np.ndarray) -> np.ndarray:
    """Logarithms of the factors at one place, broadcastable to its index."""
    padded = np.append(logs, 0.0)  # no freedom, -1: the factor one
    total = np.zeros((1,) * taken.index.ndim)
    for signs, freedoms in self.terms(taken):
      total = total + signs * padded[freedoms]
    return total

  def without_gains(self) -> 'Rescalings':
    """The freedoms that leave alone what multiplies values: gains of norms."""
    # Freedom f is node f + 1; no freedom, -1, is the factor one.
    pairs = {1: [], -1: []}
    for taken in self.taken:
      if taken.gain is None or not taken.terms:
        continue
      after, before = (
        np.broadcast_to(u, taken.index.shape) for _, u in taken.terms
      )
      agree = self.sign[after] * self.sign[before]
      for s in pairs:
        ends = (self.freedom[u[agree == s]] + 1 for u in (after, before))
        pairs[s].append(tuple(ends))
    part, sign = _solve(self.num + 1, pairs[1], pairs[-1])
    at = self.freedom + 1
    part = np.where(self.freedom < 0, -1, part[at])
    sign = (self.sign * sign[at]).astype(np.int8)
    return _numbered(part, sign, self.freedom >= 0, self.taken)

  def apply(self, params: Any, logs: np.ndarray) -> Any:
    """The parameters of the same function, with factors moved.

    Args:
      params: the tree that the freedoms were found for.
      logs: float [num], logarithms of the factors.
    """
    factors = {}
    shapes = {p: x.shape for p, x in rules_lib.named_leaves(params)}
    for taken in self.taken:
      factor = np.exp(self.logs_of(taken, logs))
      if not (factor == 1.0).all():
        flat = factors.setdefault(
          taken.path, np.ones(math.prod(shapes[taken.path]), np.float32)
        )
        flat[taken.index] = factor

    def one(path, x):
      if path not in factors:
        return x
      factor = factors[path].reshape(x.shape)
      return (np.asarray(x, np.float32) * factor).astype(x.dtype)

    moved = rules_lib.map_named(one, params)
    return jax.tree.map(jax.numpy.asarray, moved)


def rescalings(fun: Callable) -> Callable[..., Rescalings]:
  """The freedoms of `fun(params, *args)`, in all leaves of its first argument.

  Statistics that a norm subtracts belong to the first argument, too: what is in
  the others carries no factor.

  Args:
    fun: a function of parameters and further arguments. Loops are unrolled, for
      each layer of a scan has freedoms of its own.

  Returns:
    A function of the same arguments that returns `Rescalings`. The program is not
    run; arguments may be abstract.

  >>> import jax.numpy as jnp
  >>> f = lambda p, x: jax.nn.relu(x @ p['a'] + p['b']) @ p['c']
  >>> p = {'a': jnp.ones((3, 4)), 'b': jnp.ones((1, 4)), 'c': jnp.ones((4, 2))}
  >>> rescalings(f)(p, jnp.ones((5, 3))).num
  4
  """

  def found(params, *args, **kwargs):
    params = array.materialize(params)
    walk = _Walk()
    leaves, treedef = jax.tree.flatten(((params, *args), kwargs))
    arrays = [i for i, x in enumerate(leaves) if hasattr(x, 'shape')]

    def flat(*values):
      filled = list(leaves)
      for i, value in zip(arrays, values, strict=True):
        filled[i] = value
      args, kwargs = jax.tree.unflatten(treedef, filled)
      return fun(*args, **kwargs)

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    closed, _ = jaxprs.trace(flat, *(shapes[i] for i in arrays))
    named = rules_lib.named_leaves(params)
    inputs = [_parameter(path, x) for path, x in named]
    inputs += [_plain(leaves[i].shape) for i in arrays[len(named) :]]
    for out in walk.closed(closed, inputs):
      walk.fix(out)
    return walk.solve({path: x.shape for path, x in named})

  return found


# --------------------------------------------------------------------- values


@dataclasses.dataclass(frozen=True)
class _Value:
  """What is known of a value of the program.

  Attributes:
    unknown: int32 of its rank; size 1 on axes along which all carry one factor.
    shape: of the value.
    zero: whether it is zero, and so carries any factor.
    path, index: of the parameter that it is homogeneous in, entry by entry; size 1
      on axes along which it was repeated.
    read: computes it, where it follows from parameters and constants alone.
  """

  unknown: np.ndarray
  shape: tuple[int, ...]
  zero: bool = False
  path: str = ''
  index: np.ndarray | None = None
  read: Callable[[], Any] | None = None

  @property
  def is_leaf(self):
    return self.index is not None

  @property
  def fixed(self):
    return not self.is_leaf and not self.zero and not self.unknown.any()


def _plain(shape, **known) -> _Value:
  return _Value(np.zeros((1,) * len(shape), np.int32), tuple(shape), **known)


def _parameter(path, x) -> _Value:
  size = math.prod(x.shape)
  index = np.arange(size, dtype=np.int32).reshape(x.shape)
  abstract = isinstance(x, jax.ShapeDtypeStruct)
  read = functools.partial(_cannot_read, path) if abstract else lambda: x
  return _Value(_plain(x.shape).unknown, x.shape, False, path, index, read)


def _constant(x) -> _Value:
  shape = np.shape(x)
  try:
    zero = math.prod(shape) < 2**20 and not np.any(np.asarray(x))
  except Exception:  # keys and other opaque types
    zero = False
  return _plain(shape, zero=bool(zero), read=lambda: x)


def _narrow(unknown: np.ndarray) -> np.ndarray:
  """Size 1 on the axes along which nothing changes."""
  for axis, n in enumerate(unknown.shape):
    if n > 1:
      first = unknown.take([0], axis)
      if unknown.strides[axis] == 0 or (unknown == first).all():
        unknown = first
  return unknown


# ----------------------------------------------------------------------- walk


class _Walk:
  """Collects equations between unknowns, and where parameters take them up."""

  def __init__(self):
    self.num = 1
    self.same = []  # pairs of unknowns with equal factors
    self.inverse = []  # pairs whose factors multiply to one
    self.taken = []
    self.ones = set()  # unknowns that are known to be one already

  def fresh(self, shape) -> np.ndarray:
    size = math.prod(shape)
    made = np.arange(self.num, self.num + size, dtype=np.int32)
    self.num += size
    return made.reshape(shape)

  def equal(self, a, b):
    a, b = np.broadcast_arrays(a, b)
    differ = a != b
    self.same.append((a[differ], b[differ]))

  def opposite(self, a, b):
    a, b = np.broadcast_arrays(a, b)
    self.inverse.append((a.ravel(), b.ravel()))

  def one_along(self, unknown, axes) -> np.ndarray:
    """Lets all along some axes carry one factor."""
    for axis in axes:
      if unknown.shape[axis] > 1:
        first = unknown.take([0], axis)
        self.equal(unknown, first)
        unknown = first
    return unknown

  def unknown(self, v: _Value) -> np.ndarray:
    """The unknowns of a value; a parameter takes up fresh ones."""
    if not v.is_leaf:
      return v.unknown
    made = self.fresh(v.index.shape)
    self.taken.append(Taken(v.path, v.index, ((1, made),)))
    return made

  def fix(self, v: _Value):
    """Allows a value no factor."""
    if v.is_leaf:
      self.taken.append(Taken(v.path, v.index, ()))
    elif not v.zero:
      self.equal(v.unknown, _ONE)
      self.ones.update(v.unknown.ravel().tolist())

  def is_one(self, v: _Value) -> bool:
    known = v.fixed or self.ones.issuperset(v.unknown.ravel().tolist())
    return known and not v.is_leaf

  # ------------------------------------------------------------------ programs

  def closed(self, closed, inputs: Sequence[_Value]) -> list[_Value]:
    jaxpr = getattr(closed, 'jaxpr', closed)
    env = dict(zip(jaxpr.invars, inputs, strict=True))
    for v, c in zip(
      jaxpr.constvars, getattr(closed, 'consts', ()), strict=True
    ):
      env[v] = _constant(c)
    read = lambda v: env[v] if jaxprs.is_var(v) else _constant(v.val)
    for eqn in jaxpr.eqns:
      outs = self.equation(eqn, [read(v) for v in eqn.invars])
      env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def equation(self, eqn, inputs) -> list[_Value]:
    rule = _RULES.get(eqn.primitive.name)
    outs = None
    if rule is not None:
      outs = rule(self, inputs, eqn)
    if outs is None:
      for x in inputs:
        self.fix(x)
      outs = [_plain(v.aval.shape) for v in eqn.outvars]
    if eqn.primitive.name in _CALLS:
      return outs
    return [
      dataclasses.replace(out, read=_reader(eqn, inputs, i))
      for i, out in enumerate(outs)
    ]

  # -------------------------------------------------------------------- answer

  def solve(self, shapes) -> Rescalings:
    self._one_use_each(shapes)
    part, sign = _solve(self.num, self.same, self.inverse)
    used = np.zeros(self.num, bool)
    for taken in self.taken:
      for _, unknowns in taken.terms:
        used[unknowns.ravel()] = True
    return _numbered(part, sign, used, tuple(self.taken))

  def _one_use_each(self, shapes):
    """An entry that is used in two places takes up nothing in either."""
    counts = {p: np.zeros(math.prod(s), np.int32) for p, s in shapes.items()}
    for taken in self.taken:
      counts[taken.path][taken.index] += 1
    for taken in self.taken:
      shared = counts[taken.path][taken.index] > 1
      if shared.any():
        for _, unknowns in taken.terms:
          self.equal(np.where(shared, unknowns, _ONE), _ONE)


def _solve(num, same, inverse):
  """Which unknowns are one: (part, sign) of each, part -1 where it is one.

  Args:
    num: of unknowns; the first is the factor one.
    same, inverse: [(a, b)], arrays of pairs that are equal, or inverse.
  """
  # Unknown u is node 2u, and one over it is node 2u + 1.
  rows, columns = [np.array([0])], [np.array([1])]
  for pairs, flip in ((same, 0), (inverse, 1)):
    for a, b in pairs:
      a, b = np.broadcast_arrays(a, b)
      a, b = (2 * p.ravel().astype(np.int64) for p in (a, b))
      rows += [a, a + 1]
      columns += [b + flip, b + 1 - flip]
  rows, columns = np.concatenate(rows), np.concatenate(columns)
  graph = scipy.sparse.coo_matrix(
    (np.ones(rows.size, np.int8), (rows, columns)), (2 * num,) * 2
  )
  _, part = scipy.sparse.csgraph.connected_components(graph, directed=False)
  plus, minus = part[0::2], part[1::2]
  sign = np.where(plus <= minus, 1, -1).astype(np.int8)
  return np.where(plus != minus, np.minimum(plus, minus), -1), sign


def _numbered(part, sign, used, taken) -> Rescalings:
  """Numbers the parts that are used."""
  kept = np.unique(part[used & (part >= 0)])
  held = (part >= 0) & np.isin(part, kept)
  freedom = np.where(held, np.searchsorted(kept, part), -1).astype(np.int32)
  return Rescalings(len(kept), freedom, sign, taken)


def _reader(eqn, inputs, i):
  """Computes a result from parameters and constants, when asked to."""
  if any(x.read is None for x in inputs):
    return None
  return lambda: jaxprs.run_dense(eqn, [x.read() for x in inputs])[i]


# ---------------------------------------------------------------------- rules
# (walk, inputs, equation) -> values, or None: no factor may pass.

_RULES: dict[str, Callable] = {}


def _rule(names):
  def register(f):
    for name in names.split():
      _RULES[name] = f
    return f

  return register


def _shape(eqn, i=0):
  return tuple(eqn.outvars[i].aval.shape)


def _floating(eqn):
  return jax.numpy.issubdtype(eqn.outvars[0].aval.dtype, np.floating)


def _joined(walk, values, ndim):
  """What values carry that must all carry the same."""
  joined = None
  for v in values:
    if v.zero:
      continue
    unknown = walk.unknown(v)
    unknown = unknown.reshape((1,) * (ndim - unknown.ndim) + unknown.shape)
    if joined is not None:
      walk.equal(joined, unknown)
    # Of two that are equal, the narrower one says it all.
    if joined is None or unknown.size < joined.size:
      joined = unknown
  return joined


@_rule('add sub max min add_any clamp')
def _(walk, inputs, eqn):
  shape = _shape(eqn)
  joined = _joined(walk, inputs, len(shape))
  if joined is None:
    return [_plain(shape, zero=True)]
  return [_Value(joined, shape)]


@_rule('select_n')
def _(walk, inputs, eqn):
  which, *cases = inputs
  walk.fix(which)
  joined = _joined(walk, cases, len(_shape(eqn)))
  if joined is None:
    return [_plain(_shape(eqn), zero=True)]
  return [_Value(joined, _shape(eqn))]


@_rule('eq ne lt le gt ge')
def _(walk, inputs, eqn):
  # a < b says the same of both in one factor.
  _joined(walk, inputs, len(_shape(eqn)))
  return [_plain(_shape(eqn))]


@_rule('sign is_finite')
def _(walk, inputs, eqn):
  return [_plain(_shape(eqn))]


@_rule('neg abs copy copy_p reduce_precision pvary stop_gradient')
def _(walk, inputs, eqn):
  return [inputs[0]]


@_rule('optimization_barrier')
def _(walk, inputs, eqn):
  return list(inputs)


@_rule('convert_element_type')
def _(walk, inputs, eqn):
  return [inputs[0]] if _floating(eqn) or inputs[0].fixed else None


@_rule('mul')
def _(walk, inputs, eqn):
  shape = _shape(eqn)
  if any(x.zero for x in inputs):
    return [_plain(shape, zero=True)]
  a, b = (_wide(x, shape) for x in inputs)
  if a.is_leaf != b.is_leaf:
    leaf, x = (a, b) if a.is_leaf else (b, a)
    if x.fixed and x.read is not None:
      return [leaf]  # still a parameter
    return [_gain(walk, leaf, x, shape)]
  if walk.is_one(b):
    return [a]
  if walk.is_one(a):
    return [b]
  walk.fix(b)
  return [a]


def _wide(x, shape):
  """An operand of fewer axes, or of size 1 on some, in the shape of the result."""
  if x.shape == shape:
    return x
  f = lambda p: p.reshape((1,) * (len(shape) - p.ndim) + p.shape)
  return dataclasses.replace(_mapped(x, shape, f), read=x.read)


def _gain(walk, leaf, x, shape):
  """y = x * leaf: the leaf takes up what y carries over what x carries."""
  repeated = [i for i, n in enumerate(leaf.index.shape) if n == 1]
  before = walk.one_along(x.unknown, repeated)
  after = walk.fresh(leaf.index.shape)
  terms = ((1, after), (-1, before))
  read = leaf.read or functools.partial(_cannot_read, leaf.path)
  walk.taken.append(Taken(leaf.path, leaf.index, terms, gain=read))
  return _Value(after, shape)


def _cannot_read(path):
  raise ValueError(
    f'What {path} multiplies by is not known: it depends on more than parameters,'
    ' or these were abstract. Call jc.rescalings(apply)(params, x) with arrays,'
    ' and with the statistics of norms in params.'
  )


@_rule('div')
def _(walk, inputs, eqn):
  a, b = (_wide(x, _shape(eqn)) for x in inputs)
  walk.fix(b)
  return [a]


@_rule('reshape')
def _(walk, inputs, eqn):
  if eqn.params.get('dimensions') is not None:
    return None
  return [_moved(inputs[0], _shape(eqn), lambda p: p.reshape(_shape(eqn)))]


@_rule('transpose')
def _(walk, inputs, eqn):
  how = eqn.params['permutation']
  return [_mapped(inputs[0], _shape(eqn), lambda p: p.transpose(how))]


@_rule('squeeze')
def _(walk, inputs, eqn):
  axes = tuple(eqn.params['dimensions'])
  return [_moved(inputs[0], _shape(eqn), lambda p: p.squeeze(axes))]


@_rule('expand_dims')
def _(walk, inputs, eqn):
  return [_moved(inputs[0], _shape(eqn), lambda p: p.reshape(_shape(eqn)))]


@_rule('slice')
def _(walk, inputs, eqn):
  p = eqn.params
  strides = p['strides'] or (1,) * len(p['start_indices'])
  cut = tuple(
    slice(*s)
    for s in zip(p['start_indices'], p['limit_indices'], strides, strict=True)
  )
  return [_moved(inputs[0], _shape(eqn), lambda x: x[cut])]


@_rule('rev')
def _(walk, inputs, eqn):
  axes = eqn.params['dimensions']
  return [_moved(inputs[0], _shape(eqn), lambda x: np.flip(x, axes))]


@_rule('broadcast_in_dim')
def _(walk, inputs, eqn):
  shape, places = _shape(eqn), eqn.params['broadcast_dimensions']

  def spread(p):
    inner = [1] * len(shape)
    for i, place in enumerate(places):
      inner[place] = p.shape[i]
    return p.reshape(inner)

  return [_mapped(inputs[0], shape, spread)]


def _mapped(x, shape, f):
  index = None if x.index is None else f(x.index)
  return _Value(f(x.unknown), shape, x.zero, x.path, index)


def _moved(x, shape, move):
  """A value under a rearrangement of its entries."""

  def f(p):
    if p.size == 1:
      return p.reshape((1,) * len(shape))
    return _narrow(move(np.broadcast_to(p, x.shape)))

  return _mapped(x, shape, f)


@_rule('concatenate')
def _(walk, inputs, eqn):
  axis, shape = eqn.params['dimension'], _shape(eqn)
  parts = [np.broadcast_to(walk.unknown(x), x.shape) for x in inputs]
  return [_Value(_narrow(np.concatenate(parts, axis)), shape)]


@_rule('split')
def _(walk, inputs, eqn):
  ends = np.cumsum(eqn.params['sizes'])[:-1]
  cut = lambda i: lambda p: np.split(p, ends, eqn.params['axis'])[i]
  return [
    _moved(inputs[0], _shape(eqn, i), cut(i)) for i in range(len(eqn.outvars))
  ]


@_rule('pad')
def _(walk, inputs, eqn):
  x, filling = inputs
  padded = [i for i, p in enumerate(eqn.params['padding_config']) if any(p)]
  unknown = walk.one_along(walk.unknown(x), padded)
  if not filling.zero:
    walk.equal(unknown, _ONE)
  return [_Value(unknown, _shape(eqn))]


@_rule('dynamic_slice')
def _(walk, inputs, eqn):
  x, *starts = inputs
  for start in starts:
    walk.fix(start)
  if x.is_leaf:
    return None
  cut = [i for i, n in enumerate(eqn.params['slice_sizes']) if n != x.shape[i]]
  return [_Value(walk.one_along(x.unknown, cut), _shape(eqn), x.zero)]


@_rule('reduce_sum reduce_max reduce_min')
def _(walk, inputs, eqn):
  axes = tuple(eqn.params['axes'])
  unknown = walk.one_along(walk.unknown(inputs[0]), axes)
  return [_Value(unknown.squeeze(axes), _shape(eqn))]


@_rule('argmax argmin')
def _(walk, inputs, eqn):
  walk.one_along(walk.unknown(inputs[0]), eqn.params['axes'])
  return [_plain(_shape(eqn))]


@_rule('cumsum cummax cummin')
def _(walk, inputs, eqn):
  unknown = walk.one_along(walk.unknown(inputs[0]), (eqn.params['axis'],))
  return [_Value(unknown, _shape(eqn))]


@_rule('reduce_window_sum reduce_window_max reduce_window_min')
def _(walk, inputs, eqn):
  shape = _shape(eqn)
  axes = [
    i
    for i, n in enumerate(eqn.params['window_dimensions'])
    if n > 1 or shape[i] != inputs[0].shape[i]
  ]
  return [_Value(walk.one_along(walk.unknown(inputs[0]), axes), shape)]


# ------------------------------------------------------------------- products


def _split_axes(ndim, contracting, batch):
  return [i for i in range(ndim) if i not in contracting and i not in batch]


@_rule('dot_general')
def _(walk, inputs, eqn):
  (lc, rc), (lb, rb) = eqn.params['dimension_numbers']
  sides = ((lc, lb), (rc, rb))
  leaves = [x for x in inputs if x.is_leaf]
  if len(leaves) == 2 or any(x.index.shape != x.shape for x in leaves):
    return None
  if leaves:
    side = int(inputs[1].is_leaf)
    return [_weight_dot(walk, inputs, sides, side, _shape(eqn))]
  return [_values_dot(walk, inputs, sides, _shape(eqn))]


def _weight_dot(walk, inputs, sides, side, shape):
  """y = x . w: w takes up what y carries over what x carries."""
  w, x = inputs[side], inputs[1 - side]
  contracted, batch = sides[side]
  of_x, batch_x = sides[1 - side]
  free_w = _split_axes(len(w.shape), contracted, batch)
  free_x = _split_axes(len(x.shape), of_x, batch_x)
  carried = walk.one_along(x.unknown, free_x)
  # Axes of x, where w has them.
  order = [*batch_x, *of_x, *free_x]
  places = [*batch, *contracted]
  taken_in = [1] * len(w.shape)
  for place, i in zip(places, order, strict=False):
    taken_in[place] = carried.shape[i]
  by_place = np.argsort(places, kind='stable')
  moved = carried.transpose([order[i] for i in by_place] + free_x)
  moved = moved.reshape(taken_in)
  held = (*batch, *free_w)
  made = walk.fresh([w.shape[i] for i in held])
  wide = [w.shape[i] if i in held else 1 for i in range(len(w.shape))]
  in_order = np.argsort(held, kind='stable') if held else []
  of_w = made.transpose(in_order).reshape(wide)
  walk.taken.append(Taken(w.path, w.index, ((1, of_w), (-1, moved)), True))
  batch_shape = [w.shape[i] for i in batch]
  free_shape = [w.shape[i] for i in free_w]
  ones = [1] * len(free_x)
  middle = [*ones, *free_shape] if side else [*free_shape, *ones]
  return _Value(made.reshape([*batch_shape, *middle]), shape)


def _values_dot(walk, inputs, sides, shape):
  """The product of two values of the program."""
  a, b = inputs
  frees = [_split_axes(len(x.shape), *axes) for x, axes in zip(inputs, sides)]
  ones = [x.zero or walk.is_one(x) for x in inputs]
  if any(ones):
    # The other one's factor passes, if it is one along what is summed.
    side = 0 if ones[1] else 1
    x, (contracted, batch) = inputs[side], sides[side]
    carried = walk.one_along(x.unknown, contracted)
    carried = carried.transpose([*batch, *frees[side], *contracted])
    kept = carried.shape[: len(batch) + len(frees[side])]
    ones = [1] * len(frees[1 - side])
    free = [*kept[len(batch) :]]
    middle = [*ones, *free] if side else [*free, *ones]
    return _Value(carried.reshape([*kept[: len(batch)], *middle]), shape)
  carried = []
  for x, (contracted, batch), free in zip(inputs, sides, frees):
    unknown = walk.one_along(x.unknown, free)
    unknown = unknown.transpose([*batch, *contracted, *free])
    carried.append(unknown.reshape(unknown.shape[: len(batch + contracted)]))
  walk.opposite(*carried)
  return _plain(shape)


@_rule('conv_general_dilated')
def _(walk, inputs, eqn):
  x, w = inputs
  p = eqn.params
  weighted = w.is_leaf and w.index.shape == w.shape and not x.is_leaf
  if not weighted or p['batch_group_count'] != 1:
    return None
  lhs, rhs, out = p['dimension_numbers']
  carried = walk.one_along(x.unknown, (lhs[0], *lhs[2:])).reshape(-1)
  carried = np.broadcast_to(carried, (x.shape[lhs[1]],))
  groups = p['feature_group_count']
  n_out, n_in = w.shape[rhs[0]], w.shape[rhs[1]]
  made = walk.fresh((n_out,))
  taken_in = np.repeat(carried.reshape(groups, n_in), n_out // groups, axis=0)
  rank = len(w.shape)
  wide = [1] * rank
  wide[rhs[0]], wide[rhs[1]] = n_out, n_in
  taken_in = taken_in if rhs[0] < rhs[1] else taken_in.T
  of_out = [1] * rank
  of_out[rhs[0]] = n_out
  terms = ((1, made.reshape(of_out)), (-1, taken_in.reshape(wide)))
  walk.taken.append(Taken(w.path, w.index, terms, True))
  shape = _shape(eqn)
  result = [1] * len(shape)
  result[out[1]] = n_out
  return [_Value(made.reshape(result), shape)]


@_rule('gather')
def _(walk, inputs, eqn):
  table, indices = inputs
  d, sizes = eqn.params['dimension_numbers'], eqn.params['slice_sizes']
  rows = tuple(d.start_index_map)
  plain = tuple(d.collapsed_slice_dims) == rows and not getattr(
    d, 'operand_batching_dims', ()
  )
  kept = [i for i in range(len(table.shape)) if i not in rows]
  if table.is_leaf and table.index.shape != table.shape:
    return None
  if not plain or any(sizes[i] != table.shape[i] for i in kept):
    return None
  walk.fix(indices)
  shape = _shape(eqn)
  result = [1] * len(shape)
  if not table.is_leaf:
    unknown = walk.one_along(table.unknown, rows)
    for i, place in zip(kept, d.offset_dims, strict=True):
      result[place] = unknown.shape[i]
    return [_Value(unknown.reshape(result), shape, table.zero)]
  made = walk.fresh([table.shape[i] for i in kept])
  wide = [1 if i in rows else n for i, n in enumerate(table.shape)]
  walk.taken.append(
    Taken(table.path, table.index, ((1, made.reshape(wide)),), True)
  )
  for i, place in zip(kept, d.offset_dims, strict=True):
    result[place] = table.shape[i]
  return [_Value(made.reshape(result), shape)]


# ----------------------------------------------------------- programs inside


def _call(key):
  return lambda walk, inputs, eqn: walk.closed(eqn.params[key], inputs)


for _name in ('jit', 'pjit', 'checkpoint', 'remat', 'remat2'):
  _RULES[_name] = _call('jaxpr')
for _name in ('custom_jvp_call', 'custom_vjp_call', 'closed_call'):
  _RULES[_name] = _call('call_jaxpr')


@_rule('cond')
def _(walk, inputs, eqn):
  which, *args = inputs
  walk.fix(which)
  # A parameter that two branches use is used twice: it takes up nothing.
  outs = [walk.closed(branch, args) for branch in eqn.params['branches']]
  joined = []
  for i, cases in enumerate(zip(*outs, strict=True)):
    shape = _shape(eqn, i)
    unknown = _joined(walk, cases, len(shape))
    joined.append(
      _plain(shape, zero=True) if unknown is None else _Value(unknown, shape)
    )
  return joined


@_rule('scan')
def _(walk, inputs, eqn):
  p = eqn.params
  n_consts, n_carry = structural.scan_counts(p)
  consts = inputs[:n_consts]
  carry = inputs[n_consts : n_consts + n_carry]
  xs = inputs[n_consts + n_carry :]
  steps = range(p['length'])
  ys = []
  for i in reversed(steps) if p['reverse'] else steps:
    here = [_layer(x, i) for x in xs]
    outs = walk.closed(p['jaxpr'], [*consts, *carry, *here])
    carry, y = outs[:n_carry], outs[n_carry:]
    ys.append(y)
  if p['reverse']:
    ys.reverse()
  stacked = [
    _stacked(walk, [y[j] for y in ys], _shape(eqn, n_carry + j))
    for j in range(len(eqn.outvars) - n_carry)
  ]
  return [*carry, *stacked]


def _layer(x, i):
  at = lambda p: p[i if p.shape[0] > 1 else 0]
  read = None if x.read is None else (lambda: x.read()[i])
  return dataclasses.replace(_mapped(x, x.shape[1:], at), read=read)


def _stacked(walk, values, shape):
  if not values or all(v.zero for v in values):
    return _plain(shape, zero=True)
  parts = [walk.unknown(v) for v in values]
  wide = np.broadcast_shapes(*(p.shape for p in parts))
  parts = [np.broadcast_to(p, wide) for p in parts]
  return _Value(_narrow(np.stack(parts)), shape)


_CALLS = frozenset(
  (
    'jit pjit checkpoint remat remat2 custom_jvp_call custom_vjp_call closed_call'
    ' cond scan'
  ).split()
)
