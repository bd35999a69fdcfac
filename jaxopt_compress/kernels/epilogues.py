"""What follows a product and can be done where its results are written.

    y -> relu(curve(y * scale + shift) + other),  or times other

each of which may be missing; with one scale and shift for each entry of the last axis,
gelu or silu for a curve, and `other` as large as y: a bias, a normalisation with known
moments, an activation, a residual sum, a gate. XLA would read and write all of y again
for it.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# Products whose results are looked after.
PRODUCTS = (lax.dot_general_p, lax.conv_general_dilated_p)
# Curves that are known by what they compute.
CURVES = {'gelu': jax.nn.gelu, 'silu': jax.nn.silu}
_MOST_EQUATIONS = 12  # that a curve is looked for in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Epilogue:
  """What is done with the results of a product.

  Attributes:
    scale, shift: None, or [n] float32, for each entry of the last axis.
    other: None, or what is added afterwards or a factor, of the shape of the
      results.
    curve: None, or in `CURVES`: before `other`.
    times: whether `other` is a factor.
    relu: None, or what computes it, with its own derivative at zero: at the end.
  """

  scale: jax.Array | None = None
  shift: jax.Array | None = None
  other: jax.Array | None = None
  curve: str | None = dataclasses.field(default=None, metadata={'static': True})
  times: bool = dataclasses.field(default=False, metadata={'static': True})
  relu: Callable[[jax.Array], jax.Array] | None = dataclasses.field(
    default=None, metadata={'static': True}
  )

  def split(self) -> tuple['Epilogue', 'Epilogue']:
    """What is done along columns, and what comes after it."""
    rest = dataclasses.replace(self, scale=None, shift=None)
    return Epilogue(self.scale, self.shift), rest

  def __call__(self, y: jax.Array) -> jax.Array:
    """The same in XLA."""
    along = lambda p: p.reshape((1,) * (y.ndim - 1) + (-1,))
    out = y if self.scale is None else y * along(self.scale)
    out = out if self.shift is None else out + along(self.shift)
    out = out if self.curve is None else CURVES[self.curve](out)
    if self.other is not None:
      out = out * self.other if self.times else out + self.other
    out = out if self.relu is None else self.relu(out)
    return out.astype(y.dtype)


@dataclasses.dataclass(frozen=True)
class Chain:
  """Equations that are an epilogue of a product.

  Attributes:
    product: index of the product in its body.
    equation, operands: the product itself, which may be all that a jitted function
      does, and what it reads.
    indices: of what follows it, in order.
    steps: ('add', 'sub' or 'mul', variable or literal) of the affine ones.
    other: the variable that is added to the curve of that or, with `times`, a
      factor of it; or None.
    curve, times, relu: as in `Epilogue`.
  """

  product: int
  equation: Any
  operands: tuple[Any, ...]
  indices: tuple[int, ...] = ()
  steps: tuple[tuple[str, Any], ...] = ()
  other: Any = None
  curve: str | None = None
  times: bool = False
  relu: Callable | None = None

  @property
  def last(self) -> int:
    return self.indices[-1]

  @property
  def reads(self) -> list[Any]:
    """What it needs besides the operands."""
    others = [] if self.other is None else [self.other]
    return [v for _, v in self.steps] + others

  def epilogue(self, read: Callable[[Any], jax.Array]) -> Epilogue:
    """With the values that `read` has of variables and literals."""
    scale = shift = None
    for name, v in self.steps:
      value = jnp.asarray(read(v), jnp.float32).reshape(-1)
      if name == 'mul':
        scale = value if scale is None else scale * value
        shift = None if shift is None else shift * value
      else:
        value = -value if name == 'sub' else value
        shift = value if shift is None else shift + value
    other = None if self.other is None else read(self.other)
    return Epilogue(scale, shift, other, self.curve, self.times, self.relu)


def find(jaxpr) -> dict[int, Chain]:
  """The chains of a body by the index of their product."""
  readers, makers = {}, {}
  for i, eqn in enumerate(jaxpr.eqns):
    for v in eqn.invars:
      if not _is_literal(v):
        readers.setdefault(v, []).append(i)
    makers |= dict.fromkeys(eqn.outvars, eqn)
  for v in jaxpr.outvars:
    if not _is_literal(v):
      readers.setdefault(v, []).append(None)
  chains, taken = {}, set()
  for i, eqn in enumerate(jaxpr.eqns):
    found = product(eqn)
    chain = found and _after(i, found, jaxpr, readers, makers, taken)
    if chain:
      chains[i] = chain
      taken.update(chain.indices)  # a sum of two products follows one of them
  return chains


def product(eqn):
  """(equation, what it reads) of the product that an equation is; None for others."""
  if eqn.primitive in PRODUCTS:
    return eqn, tuple(eqn.invars)
  body = _only(eqn) if eqn.primitive.name in ('jit', 'pjit') else None
  found = body and product(body.eqns[0])
  if not found:
    return None
  outer = dict(zip(body.invars, eqn.invars, strict=True))
  return found[0], tuple(v if _is_literal(v) else outer[v] for v in found[1])


def _only(eqn):
  """The body of an equation that does one thing."""
  body = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
  body = getattr(body, 'jaxpr', body)
  one = len(body.eqns) == len(body.outvars) == 1 and not body.constvars
  return (
    body if one and list(body.outvars) == list(body.eqns[0].outvars) else None
  )


def _after(at, found, jaxpr, readers, makers, taken) -> Chain | None:
  """What follows the product at an index, as far as it is an epilogue."""
  chain = Chain(at, *found)
  (v,) = jaxpr.eqns[at].outvars
  if not jnp.issubdtype(v.aval.dtype, jnp.floating):
    return None
  while chain.relu is None:
    read = [i for i in readers.get(v, ()) if i not in taken]
    if not read or len(read) < len(readers[v]) or None in read:
      break
    step = None
    if len(read) == 1:
      step = _step(chain, read[0], jaxpr.eqns[read[0]], v, makers)
    if step is None and chain.curve is None and chain.other is None:
      name, indices = _curve(v, jaxpr, readers)
      if name and taken.isdisjoint(indices):
        step = dict(curve=name, indices=chain.indices + indices)
    if step is None:
      break
    chain = dataclasses.replace(chain, **step)
    (v,) = jaxpr.eqns[chain.last].outvars
  return chain if chain.indices else None


def _step(chain, i, eqn, v, makers) -> dict[str, Any] | None:
  """What a chain becomes with one more equation; None where it ends before."""
  more = dict(indices=(*chain.indices, i))
  relu = _relu(eqn)
  if relu is not None:
    return more | dict(relu=relu)
  if chain.other is not None:
    return None
  name = eqn.primitive.name
  value = None if chain.curve else _affine(eqn, v, makers)
  if value is not None:
    return more | dict(steps=(*chain.steps, (name, value)))
  other = [o for o in eqn.invars if o is not v]
  if name not in ('add', 'mul') or len(other) != 1 or _is_literal(other[0]):
    return None
  if other[0].aval.shape != v.aval.shape:
    return None
  if not other[0].aval.dtype == v.aval.dtype == eqn.outvars[0].aval.dtype:
    return None
  return more | dict(other=other[0], times=name == 'mul')


def _curve(v, jaxpr, readers) -> tuple[str | None, tuple[int, ...]]:
  """(name, indices of its equations) of the curve that a variable goes through.

  (None, ()) where it goes through none.
  """
  waiting, inside, indices = set(readers[v]), {v}, []
  while waiting and len(indices) < _MOST_EQUATIONS:
    i = min(waiting)
    waiting.discard(i)
    eqn = jaxpr.eqns[i]
    known = all(_is_literal(o) or o in inside for o in eqn.invars)
    if not known or len(eqn.outvars) != 1:
      break
    indices.append(i)
    if not waiting:  # so far, nothing else reads what is inside
      body = _written([jaxpr.eqns[j] for j in indices], v)
      for name in CURVES:
        if body == _formula(name, jnp.dtype(v.aval.dtype)):
          return name, tuple(indices)
    more = [j for o in eqn.outvars for j in readers.get(o, ())]
    if None in more:
      break
    inside.update(eqn.outvars)
    waiting.update(more)
  return None, ()


@functools.cache
def _formula(name, dtype):
  """What a curve is written as."""
  x = jax.ShapeDtypeStruct((), dtype)
  jaxpr = jax.make_jaxpr(CURVES[name])(x).jaxpr
  return _written(jaxpr.eqns, jaxpr.invars[0])


def _written(eqns, v):
  """Equations of a variable, up to names and shapes; None for others than these."""
  if len(eqns) == 1 and eqns[0].primitive.name in ('jit', 'pjit'):
    body = eqns[0].params.get('jaxpr', eqns[0].params.get('call_jaxpr'))
    body = getattr(body, 'jaxpr', body)
    if list(eqns[0].invars) != [v] or body.constvars or not body.eqns:
      return None
    if list(body.outvars) != list(body.eqns[-1].outvars):
      return None
    return _written(body.eqns, body.invars[0])
  number = {v: 0}
  lines = []
  for eqn in eqns:
    words = []
    for o in eqn.invars:
      if _is_literal(o) and np.ndim(o.val):
        return None
      words.append(float(o.val) if _is_literal(o) else ('v', number.get(o)))
    # Of their parameters, the exponent of a power.
    lines.append((eqn.primitive.name, eqn.params.get('y'), tuple(words)))
    number[eqn.outvars[0]] = len(number)
  return tuple(lines)


def _affine(eqn, v, makers):
  """What is added to, taken off or multiplied with `v` along its last axis."""
  name = eqn.primitive.name
  if name not in ('add', 'sub', 'mul') or (
    name == 'sub' and eqn.invars[0] is not v
  ):
    return None
  (other,) = [o for o in eqn.invars if o is not v] or [None]
  if other is None or eqn.outvars[0].aval.dtype != v.aval.dtype:
    return None
  if all(n == 1 for n in other.aval.shape[:-1]):
    return other
  made = makers.get(other) if not _is_literal(other) else None
  if made is None or made.primitive.name != 'broadcast_in_dim':
    return None
  source, last = made.invars[0], v.aval.ndim - 1
  shape, axes = source.aval.shape, made.params['broadcast_dimensions']
  if made.params['shape'] != v.aval.shape:
    return None
  along = {a for a, n in zip(axes, shape, strict=True) if n > 1}
  return source if along <= {last} else None


def _relu(eqn) -> Callable | None:
  """relu, if that is what an equation computes."""
  name = eqn.primitive.name
  if name == 'max':
    zeros = [
      v
      for v in eqn.invars
      if _is_literal(v) and np.ndim(v.val) == 0 and v.val == 0
    ]
    return _maximum if len(zeros) == 1 else None
  if name not in ('jit', 'pjit', 'custom_jvp_call'):
    return None
  body = _only(eqn)
  if body is None or len(body.invars) != 1:
    return None
  inside = _relu(body.eqns[0])
  if inside is None or name != 'custom_jvp_call':
    return inside
  # Others may have another derivative.
  return jax.nn.relu if _source(body) == _source_of_relu() else None


def _source(body) -> str | None:
  """Where the function of a body was written."""
  return getattr(getattr(body, 'debug_info', None), 'func_src_info', None)


@functools.cache
def _source_of_relu() -> str:
  eqn = jax.make_jaxpr(jax.nn.relu)(0.0).jaxpr.eqns[0]
  while eqn.primitive.name in ('jit', 'pjit'):
    eqn = _only(eqn).eqns[0]
  return _source(_only(eqn)) or 'unknown'


def _maximum(y):
  return lax.max(y, jnp.zeros((), y.dtype))


def _is_literal(v) -> bool:
  return hasattr(v, 'val')
