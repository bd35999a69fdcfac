"""Which factor every value of a program carries, were its weights rescaled.

    relu(x (s W) + s b) = s relu(x W + b): what was y carries the factor s > 0

The walk of `algebra` goes through a program with, in place of each value, the
*factor* that each of its entries carries: an unknown, by number. Unknown 0 is the
factor one. Each output channel of each weight starts a new unknown. It passes
through whatever commutes with a positive factor (relu, max, sums, pooling, reshapes,
attention's average of values), and ends where a weight contracts that channel: the
weight is divided by it. On the way the walk collects

  same, inverse   pairs of unknowns that must be equal, or multiply to one:
                  what is added must carry the same factor;
  taken           every place where a parameter takes factors up.

`freedoms` solves for the unknowns. An operation that is not in the table of
`factor_rules` allows no factor: a freedom may be missed, never invented.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import moved
from jaxopt_compress.core import jaxprs

ONE = 0  # the unknown that is known: the factor one


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
class Value:
  """What is known of a value of the program.

  Attributes:
    factors: int32 of its rank, the unknown of each entry; size 1 on axes along which
      all carry one factor.
    shape: of the value.
    zero: whether it is zero, and so carries any factor.
    path, index: of the parameter that it is homogeneous in, entry by entry; size 1
      on axes along which it was repeated.
    read: computes it, where it follows from parameters and constants alone.
  """

  factors: np.ndarray
  shape: tuple[int, ...]
  zero: bool = False
  path: str = ''
  index: np.ndarray | None = None
  read: Callable[[], Any] | None = None

  @property
  def is_leaf(self):
    """Whether it is a parameter, as far as factors go."""
    return self.index is not None

  @property
  def fixed(self):
    """Whether it is known to carry no factor."""
    return not self.is_leaf and not self.zero and not self.factors.any()

  def map(self, f: Callable, shape) -> 'Value':
    """Factors and index of another shape; what computes it is left out."""
    index = None if self.index is None else f(self.index)
    return Value(f(self.factors), tuple(shape), self.zero, self.path, index)


def plain(shape, **known) -> Value:
  """A value that carries no factor."""
  return Value(np.zeros((1,) * len(shape), np.int32), tuple(shape), **known)


def parameter(path, x) -> Value:
  """The whole of a parameter, which may take up any factors."""
  size = math.prod(x.shape)
  index = np.arange(size, dtype=np.int32).reshape(x.shape)
  abstract = isinstance(x, jax.ShapeDtypeStruct)
  read = functools.partial(cannot_read, path) if abstract else lambda: x
  return Value(plain(x.shape).factors, x.shape, False, path, index, read)


def constant(x) -> Value:
  """An array of the program."""
  shape = np.shape(x)
  try:
    zero = math.prod(shape) < 2**20 and not np.any(np.asarray(x))
  except Exception:  # keys and other opaque types
    zero = False
  return plain(shape, zero=bool(zero), read=lambda: x)


def cannot_read(path):
  """Says why a gain is not known."""
  raise ValueError(
    f'What {path} multiplies by is not known: it depends on more than parameters,'
    ' or these were abstract. Call jc.analysis.rescalings(apply)(params, x) with arrays,'
    ' and with the statistics of norms in params.'
  )


# ------------------------------------------------------------------- the walk


class Factors(algebra.Algebra):
  """Collects equations between unknowns, and where parameters take them up."""

  unroll = True  # each layer of a scan has freedoms of its own

  def __init__(self, rules):
    self.rules = rules
    self.num = 1
    self.same = []  # pairs of unknowns with equal factors
    self.inverse = []  # pairs whose factors multiply to one
    self.taken = []
    self.ones = set()  # unknowns that are known to be one already

  def fresh(self, shape) -> np.ndarray:
    """New unknowns."""
    size = math.prod(shape)
    made = np.arange(self.num, self.num + size, dtype=np.int32)
    self.num += size
    return made.reshape(shape)

  def equal(self, a, b):
    """Unknowns that must be the same."""
    a, b = np.broadcast_arrays(a, b)
    differ = a != b
    self.same.append((a[differ], b[differ]))

  def opposite(self, a, b):
    """Unknowns that must multiply to one."""
    a, b = np.broadcast_arrays(a, b)
    self.inverse.append((a.ravel(), b.ravel()))

  def one_along(self, factors, axes) -> np.ndarray:
    """Lets all along some axes carry one factor."""
    for axis in axes:
      if factors.shape[axis] > 1:
        first = factors.take([0], axis)
        self.equal(factors, first)
        factors = first
    return factors

  def carried(self, v: Value) -> np.ndarray:
    """The factors of a value; a parameter takes up fresh ones."""
    if not v.is_leaf:
      return v.factors
    made = self.fresh(v.index.shape)
    self.taken.append(Taken(v.path, v.index, ((1, made),)))
    return made

  def fix(self, v: Value):
    """Allows a value no factor."""
    if v.is_leaf:
      self.taken.append(Taken(v.path, v.index, ()))
    elif not v.zero:
      self.equal(v.factors, ONE)
      self.ones.update(v.factors.ravel().tolist())

  def is_one(self, v: Value) -> bool:
    """Whether a value is known by now to carry no factor."""
    known = v.fixed or self.ones.issuperset(v.factors.ravel().tolist())
    return known and not v.is_leaf

  def alike(self, values, shape) -> Value:
    """A value made of several that must all carry the same."""
    joined = None
    for v in values:
      if v.zero:
        continue
      factors = self.carried(v)
      factors = factors.reshape(
        (1,) * (len(shape) - factors.ndim) + factors.shape
      )
      if joined is not None:
        self.equal(joined, factors)
      # Of two that are equal, the narrower one says it all.
      if joined is None or factors.size < joined.size:
        joined = factors
    if joined is None:
      return plain(shape, zero=True)
    return Value(joined, shape)

  def plain(self, aval):
    return plain(aval.shape)

  def constant(self, x):
    return constant(x)

  def unknown(self, at, inputs):
    for x in inputs:
      self.fix(x)
    return super().unknown(at, inputs)

  def apply(self, at, inputs):
    outs = super().apply(at, inputs)
    return [
      dataclasses.replace(out, read=_reader(at.eqn, inputs, i))
      for i, out in enumerate(outs)
    ]

  def decide(self, x):
    self.fix(x)

  def join(self, cases, aval):
    # A parameter that two branches use is used twice: it takes up nothing.
    return self.alike(cases, tuple(aval.shape))

  def layer(self, x, turn, aval):
    layer = x.map(lambda p: p[turn if p.shape[0] > 1 else 0], x.shape[1:])
    read = None if x.read is None else (lambda: x.read()[turn])
    return dataclasses.replace(layer, read=read)

  def stack(self, ys, aval):
    if not ys or all(y.zero for y in ys):
      return plain(aval.shape, zero=True)
    parts = [self.carried(y) for y in ys]
    wide = np.broadcast_shapes(*(p.shape for p in parts))
    parts = [np.broadcast_to(p, wide) for p in parts]
    return Value(moved.narrow(np.stack(parts)), tuple(aval.shape))


def _reader(eqn, inputs, i):
  """Computes a result from parameters and constants, when asked to."""
  if any(x.read is None for x in inputs):
    return None
  return lambda: jaxprs.run_dense(eqn, [x.read() for x in inputs])[i]
