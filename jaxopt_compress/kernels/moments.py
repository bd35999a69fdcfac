"""Norms of rows in programs, found by what they compute.

    mean = sum(x) / k,  var = sum((x - mean)^2) / k  or  sum(x^2) / k - mean^2
    y = (x - mean) * rsqrt(var + eps) * scale + shift

or the same without means, with factors in any order. JAX, Flax, Haiku and people write
it in many ways; what each equation computes of x is one of these words:

    part     x or x - mean, and scaled       square   of that
    sum, squares, mean, mean^2, var          over a row
    eps      var + eps                       root     its square root
    inverse  1 / root                        factor   that, scaled
    norm     part * inverse + shift          number   the same everywhere

A variable is a norm if that is its word.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import heapq
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import jaxprs
from jaxopt_compress.kernels import flow as flow_lib
from jaxopt_compress.kernels import norms

_MOST_EQUATIONS = 40  # between what is normed and what reads it
_OF_ROWS = ('sum', 'squares', 'mean', 'mean^2', 'var', 'eps', 'root', 'inverse')


class Word(NamedTuple):
  """What a variable is.

  Attributes:
    name: in the table above.
    centered: whether means are taken off.
    value: of a number; of `eps` and what is made of it, what was added.
    scales: operands that it was multiplied by along columns.
    shift: the operand that was added along columns, or None.
  """

  name: str
  centered: bool = False
  value: float = 0.0
  scales: tuple[Any, ...] = ()
  shift: Any = None


_RAW = Word('part')


@dataclasses.dataclass(frozen=True)
class Found:
  """A norm in a body.

  Attributes:
    x: the variable that it reads.
    indices: positions of its equations, in order.
    equals: variables that are what it computes, in any shape [..., k].
    word: what it is.
  """

  x: Any
  indices: tuple[int, ...]
  equals: frozenset[Any]
  word: Word

  @property
  def reads(self) -> tuple[Any, ...]:
    """Its vectors."""
    shifts = () if self.word.shift is None else (self.word.shift,)
    return *self.word.scales, *shifts

  def norm(self, read: Callable[[Any], jax.Array]) -> norms.Norm:
    """With the values that `read` has of variables and literals."""
    k = self.x.aval.shape[-1]

    def vector(v):
      value = jnp.asarray(read(v), jnp.float32).reshape(-1)
      return jnp.broadcast_to(value, k)

    scale = None
    for v in self.word.scales:
      scale = vector(v) if scale is None else scale * vector(v)
    shift = None if self.word.shift is None else vector(self.word.shift)
    return norms.Norm(scale, shift, self.word.value, self.word.centered)


def find(flow: flow_lib.Flow, ys: Sequence[Any]) -> Found | None:
  """The norm whose results variables are, in any shape; None where they are of none."""
  before = _before(flow, ys)
  # A quick no for nearly all products: without a root there is no norm.
  names = {flow.jaxpr.eqns[i].primitive.name for i in before}
  if names.isdisjoint({'rsqrt', 'sqrt', 'pow'}):
    return None
  sums = [e for e in map(flow.jaxpr.eqns.__getitem__, before) if _is_sum(e)]
  origins = [x for eqn in sums for x in _origins(flow, eqn.invars[0])]
  # The earliest first: of a layer norm, what an RMS norm of x - mean is.
  for x in dict.fromkeys(origins):
    found = _followed(flow, x, ys, before)
    if found is not None:
      return found
  return None


def _before(flow, ys) -> list[int]:
  """The positions of the last equations that variables are made of, in order."""
  queued, waiting, found = set(), [], []

  def wait(v):
    at = flow.makers.get(v) if jaxprs.is_var(v) else None
    if at is not None and at not in queued:
      queued.add(at)
      # The latest is popped first, so what is found is a run back from the results.
      heapq.heappush(waiting, -at)

  for y in ys:
    wait(y)
  while waiting and len(found) < _MOST_EQUATIONS:
    found.append(-heapq.heappop(waiting))
    for v in flow.jaxpr.eqns[found[-1]].invars:
      wait(v)
  return found[::-1]


def _is_sum(eqn) -> bool:
  """Whether an equation sums over the last axis."""
  if eqn.primitive.name != 'reduce_sum':
    return False
  return tuple(eqn.params['axes']) == (eqn.invars[0].aval.ndim - 1,)


def _origins(flow, v) -> list[Any]:
  """What is normed, if `v` or its square is summed; in fewest bits first."""
  found = [v]
  while (made := flow.maker(found[-1])) is not None:
    if _is_square(made):
      found = [made.invars[0]]  # not the square
    elif made.primitive.name == 'convert_element_type' and (
      flow_lib.keeps_numbers(
        made.invars[0].aval.dtype, made.outvars[0].aval.dtype
      )
    ):
      found.append(made.invars[0])
    else:
      break
  floats = [x for x in found if jnp.issubdtype(x.aval.dtype, jnp.floating)]
  return [x for x in reversed(floats) if jaxprs.is_var(x)]


def _is_square(eqn) -> bool:
  name = eqn.primitive.name
  if name == 'mul':
    return eqn.invars[0] is eqn.invars[1]
  return name == 'square' or (name == 'integer_pow' and eqn.params['y'] == 2)


def _followed(flow, x, ys, before) -> Found | None:
  """The norm of x that all of `ys` are, if they are one."""
  words, used = {x: _RAW}, []
  for i in before:
    eqn = flow.jaxpr.eqns[i]
    if len(eqn.outvars) != 1 or eqn.outvars[0] is x:
      continue
    word = _word(eqn, words, x.aval, flow)
    if word is not None:
      words[eqn.outvars[0]] = word
      used.append(i)
  word = words.get(ys[0])
  if word is None or word.name != 'norm':
    return None
  equals = [v for v, known in words.items() if known == word]
  # The kernel writes the norm in the type of x; in another type it is another value.
  equals = frozenset(v for v in equals if v.aval.dtype == x.aval.dtype)
  if not equals.issuperset(ys):
    return None
  indices = _inside(flow, ys, used, words, equals)
  return indices and Found(x, indices, equals, word)


def _inside(flow, ys, used, words, equals) -> tuple[int, ...] | None:
  """The equations of a norm; None where what is inside is read from outside."""
  needed, inside = {*ys}, []
  # Backwards, so that only what the results need is inside.
  for i in reversed(used):
    eqn = flow.jaxpr.eqns[i]
    (out,) = eqn.outvars
    if (out in needed or out in equals) and words[out].name != 'number':
      inside.append(i)
      needed.update(filter(jaxprs.is_var, eqn.invars))
  kept = set(inside)
  for i in inside:
    (out,) = flow.jaxpr.eqns[i].outvars
    if out in equals or kept.issuperset(flow.readers[out]):
      continue
    if words[out] != _RAW:
      return None
    kept.discard(i)  # x in more bits, which others read as well
  return tuple(sorted(kept))


# ------------------------------------------------------------------------- words


def _word(eqn, words, x, flow) -> Word | None:
  """What the result of an equation is; None where that is no part of a norm."""
  rule = _RULES.get(eqn.primitive.name)
  operands = [_known(v, words) for v in eqn.invars]
  if rule is None or not any(operands):
    return None
  word, out = rule(eqn, operands, x, flow), eqn.outvars[0].aval
  if word is None or word.name == 'number':
    return word
  if word.name == 'norm':
    fits = out.shape[-1:] == x.shape[-1:] and out.size == x.size
  elif word.name in _OF_ROWS:
    rows = x.shape[:-1]
    # A number for each row, with or without an axis of one, or spread along the row.
    fits = out.shape in (rows, (*rows, 1), x.shape)
  else:
    fits = out.shape == x.shape
  return word if fits and jnp.issubdtype(out.dtype, jnp.floating) else None


def _known(v, words) -> Word | None:
  if jaxprs.is_var(v):
    return words.get(v)
  return Word('number', value=float(v.val)) if np.ndim(v.val) == 0 else None


def _is(word, *names) -> bool:
  return word is not None and word.name in names


def _is_number(word, value) -> bool:
  return _is(word, 'number') and abs(word.value - value) <= 1e-6 * abs(value)


def _same(eqn, operands, x, flow):
  """Of the same meaning: in another type, or spread in the order of rows.

  What is rounded to fewer bits than x has is another value.
  """
  del flow
  word, *_ = operands
  name, (out,) = eqn.primitive.name, eqn.outvars
  if word is None or word.name == 'number':
    return word
  if name == 'convert_element_type':
    old, new = eqn.invars[0].aval.dtype, out.aval.dtype
    keeps = flow_lib.keeps_numbers(old, new)
    return word if keeps or new == x.dtype else None
  if name == 'broadcast_in_dim':
    axes = tuple(eqn.params['broadcast_dimensions'])
    # Rows keep their places if the axes of the operand stay the first ones.
    aligned = axes == tuple(range(len(axes)))
    return word if aligned and out.aval.ndim == x.ndim else None
  # A reshape: rows stay rows, and only those of the result are counted anew.
  return word if word.name in (*_OF_ROWS, 'norm') else None


def _sum(eqn, operands, x, flow):
  del x, flow
  (word,) = operands
  if not _is_sum(eqn) or word.scales:
    return None
  if word == _RAW:
    return Word('sum')
  return Word('squares', word.centered) if _is(word, 'square') else None


def _square(eqn, operands, x, flow):
  del x, flow
  (word, *_) = operands
  if not _is_square(eqn) or word is None or word.scales:
    return None
  if _is(word, 'part'):
    return Word('square', word.centered)
  return Word('mean^2') if _is(word, 'mean') else None


def _of_sum(word, number, k):
  """A sum or sum of squares times a number."""
  if not _is_number(number, 1 / k):
    return None
  return {'sum': Word('mean'), 'squares': Word('var', word.centered)}[word.name]


def _div(eqn, operands, x, flow):
  del eqn, flow
  a, b = operands
  if _is(a, 'number') and _is(b, 'number'):
    return None
  if _is(a, 'sum', 'squares') and _is(b, 'number') and b.value:
    return _of_sum(a, Word('number', value=1 / b.value), x.shape[-1])
  if _is_number(a, 1.0) and _is(b, 'root'):
    return b._replace(name='inverse')
  if _is(a, 'part') and _is(b, 'root') and a.centered == b.centered:
    return b._replace(name='norm', scales=a.scales)
  return None


def _mul(eqn, operands, x, flow):
  if _is_square(eqn):
    return _square(eqn, operands, x, flow)
  for (a, b), v in zip(
    (operands, operands[::-1]), eqn.invars[::-1], strict=True
  ):
    if _is(a, 'sum', 'squares') and _is(b, 'number'):
      return _of_sum(a, b, x.shape[-1])
    if _is(a, 'part') and _is(b, 'inverse', 'factor'):
      if a.centered != b.centered:
        return None
      return b._replace(name='norm', scales=b.scales + a.scales)
    # Scales may come before the inverse root, on it, or on the norm: as they are for each
    # column, they commute with what is for each row. A shift does not.
    scaled = {'part': 'part', 'inverse': 'factor', 'factor': 'factor'}
    scaled['norm'] = 'norm'
    if a is not None and a.name in scaled and a.shift is None:
      column = _column(v, b, eqn.outvars[0].aval, flow)
      if column is not None:
        return a._replace(name=scaled[a.name], scales=(*a.scales, column))
  return None


def _add(eqn, operands, x, flow):
  del x
  for (a, b), v in zip(
    (operands, operands[::-1]), eqn.invars[::-1], strict=True
  ):
    if _is(a, 'var') and _is(b, 'number'):
      return a._replace(name='eps', value=b.value)
    if _is(a, 'norm') and a.shift is None:
      column = _column(v, b, eqn.outvars[0].aval, flow)
      return None if column is None else a._replace(shift=column)
  return None


def _sub(eqn, operands, x, flow):
  del eqn, x, flow
  a, b = operands
  if _is(a, 'number') and _is(b, 'number'):
    return Word('number', value=a.value - b.value)
  if a is not None and b == Word('number'):  # zeros
    return a
  if a == _RAW and _is(b, 'mean'):
    return Word('part', centered=True)
  if a == Word('var') and _is(b, 'mean^2'):
    return Word('var', centered=True)
  return None


def _max(eqn, operands, x, flow):
  del eqn, x, flow
  for a, b in (operands, operands[::-1]):
    if _is(a, 'var') and b == Word('number'):  # no variance is below zero
      return a
  return None


def _sqrt(eqn, operands, x, flow):
  del x, flow
  word, *more = operands
  if not _is(word, 'eps'):
    return None
  name = eqn.primitive.name
  if name == 'rsqrt' or (name == 'pow' and _is_number(more[0], -0.5)):
    return word._replace(name='inverse')
  if name == 'sqrt' or (name == 'pow' and _is_number(more[0], 0.5)):
    return word._replace(name='root')
  return None


def _greater(eqn, operands, x, flow):
  del eqn, x, flow
  a, b = operands
  if not _is(a, 'number') or not _is(b, 'number'):
    return None
  return Word('number', value=float(a.value > b.value))


def _select(eqn, operands, x, flow):
  """A choice that a number makes: of a variance with no degree of freedom left."""
  del eqn, x, flow
  which, *cases = operands
  return cases[int(which.value)] if _is(which, 'number') else None


def _column(v, word, out, flow):
  """The operand if it is the same for all rows; what it is spread from, if so."""
  if word is not None and word.name != 'number':
    return None
  shape = v.aval.shape
  if all(n == 1 for n in shape[:-1]) and shape[-1:] in (
    (),
    (1,),
    out.shape[-1:],
  ):
    return v
  made = flow.maker(v)
  if made is None or made.primitive.name != 'broadcast_in_dim':
    return None
  source, axes = made.invars[0], made.params['broadcast_dimensions']
  sizes = zip(axes, source.aval.shape, strict=True)
  # Along axes of size one it repeats: what runs along the last one alone is a vector.
  along = {a for a, n in sizes if n > 1}
  return source if along <= {out.ndim - 1} else None


_RULES = {
  'convert_element_type': _same,
  'broadcast_in_dim': _same,
  'reshape': _same,
  'squeeze': _same,
  'reduce_sum': _sum,
  'square': _square,
  'integer_pow': _square,
  'div': _div,
  'mul': _mul,
  'add': _add,
  'sub': _sub,
  'max': _max,
  'sqrt': _sqrt,
  'rsqrt': _sqrt,
  'pow': _sqrt,
  'gt': _greater,
  'select_n': _select,
}
