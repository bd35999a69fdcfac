"""What follows a product and can be done where its results are written.

    y -> relu(gain * curve(y * scale + shift) + offset + other),  or times other

each of which may be missing; with numbers for each column, one of `curves.CURVES`, and
`other` as large as y: a bias, a normalisation with known moments, an activation with
learned scales around it, a residual sum, a gate. XLA would read and write all of y
again for it.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.kernels import curves
from jaxopt_compress.kernels import flow as flow_lib
from jaxopt_compress.kernels import formulas

# Products whose results are looked after.
PRODUCTS = (lax.dot_general_p, lax.conv_general_dilated_p)
_JIT = formulas.JIT


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Epilogue:
  """What is done with the results of a product.

  Attributes:
    scale, shift: None, or [n] float32, for each column; [1] for all.
    other: None, or what is added afterwards or a factor, of the shape of the
      results.
    curve: None, or in `curves.CURVES`: before `other`.
    times: whether `other` is a factor.
    relu: None, or what computes it, with its own derivative at zero: at the end.
    gain, offset: as scale and shift, behind the curve.
  """

  scale: jax.Array | None = None
  shift: jax.Array | None = None
  other: jax.Array | None = None
  curve: str | None = dataclasses.field(default=None, metadata={'static': True})
  times: bool = dataclasses.field(default=False, metadata={'static': True})
  relu: Callable[[jax.Array], jax.Array] | None = dataclasses.field(
    default=None, metadata={'static': True}
  )
  gain: jax.Array | None = None
  offset: jax.Array | None = None

  def __call__(self, y: jax.Array) -> jax.Array:
    """The same in XLA."""

    def affine(y, scale, shift):
      along_columns = (1,) * (y.ndim - 1) + (-1,)
      y = y if scale is None else y * scale.reshape(along_columns)
      return y if shift is None else y + shift.reshape(along_columns)

    out = affine(y, self.scale, self.shift)
    out = out if self.curve is None else curves.CURVES[self.curve](out)
    out = affine(out, self.gain, self.offset)
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
    shape: of the results.
    columns: the axes of results that are those of the weight, in order.
    indices: of what follows it, in order.
    steps: ('add', 'sub' or 'mul', variable or literal, the axis of the results that
      each of its axes lies along) of the affine ones.
    after: the same, behind the curve.
    other: the variable that is added to the curve of that or, with `times`, a
      factor of it; or None.
    curve, times, relu: as in `Epilogue`.
    places: for each axis of what comes last, that of the results that it is; None
      for one of size one that was added.
  """

  product: int
  equation: Any
  operands: tuple[Any, ...]
  shape: tuple[int, ...]
  columns: tuple[int, ...]
  places: tuple[int | None, ...]
  indices: tuple[int, ...] = ()
  steps: tuple[tuple[str, Any, tuple[int, ...]], ...] = ()
  after: tuple[tuple[str, Any, tuple[int, ...]], ...] = ()
  other: Any = None
  curve: str | None = None
  times: bool = False
  relu: Callable | None = None

  @property
  def last(self) -> int:
    return (self.product, *self.indices)[-1]

  @property
  def reads(self) -> list[Any]:
    """What it needs besides the operands."""
    others = [] if self.other is None else [self.other]
    return [v for _, v, _ in (*self.steps, *self.after)] + others

  def epilogue(self, read: Callable[[Any], jax.Array]) -> Epilogue | None:
    """With the values that `read` has of variables and literals; None for nothing."""
    if not self.indices:
      return None
    other = None if self.other is None else read(self.other)
    other = None if other is None else other.reshape(self.shape)
    return Epilogue(
      *self._affine(self.steps, read),
      other,
      self.curve,
      self.times,
      self.relu,
      *self._affine(self.after, read),
    )

  def _affine(self, steps, read):
    """(scale, shift) of steps one after the other, each None where there is none."""
    scale = shift = None
    for name, v, axes in steps:
      value = self._of_columns(jnp.asarray(read(v), jnp.float32), axes)
      if name == 'mul':
        scale = value if scale is None else scale * value
        shift = None if shift is None else shift * value
      else:
        value = -value if name == 'sub' else value
        shift = value if shift is None else shift + value
    return scale, shift

  def _of_columns(self, value, axes):
    """What lies along some of the columns, for each: [n]; [1] of one number."""
    if value.size == 1:
      return value.reshape(-1)
    pairs = [(a, n) for a, n in zip(axes, value.shape, strict=True) if n > 1]
    sizes = [self.shape[a] for a in self.columns]
    along = [self.columns.index(a) for a, _ in pairs]
    value = value.reshape([n for _, n in pairs])
    return lax.broadcast_in_dim(value, sizes, along).reshape(-1)


def find(
  jaxpr, leaves: Iterable[Any] | None = None, taken: Iterable[int] = ()
) -> dict[int, Chain]:
  """The chains of a body by the index of their product.

  Args:
    jaxpr: the body.
    leaves: variables that are leaves: products of others are left alone. None for
      all products.
    taken: indices of equations that are left alone.
  """
  flow = flow_lib.Flow(jaxpr)
  near = None if leaves is None else flow.perhaps_leaves(leaves)
  chains, taken = {}, {*taken}
  for i, eqn in enumerate(jaxpr.eqns):
    found = None if i in taken else product(eqn)
    if not found or not (near is None or near.intersection(_variables(eqn))):
      continue
    chain = following(i, flow, taken)
    if chain.indices:
      chains[i] = chain
      taken.update(chain.indices)  # a sum of two products follows one of them
  return chains


def _variables(eqn) -> list[Any]:
  return [v for v in eqn.invars if not formulas.is_literal(v)]


def product(eqn):
  """(equation, what it reads) of the product that an equation is; None for others.

  A jitted function that does nothing but a product counts as that product.
  """
  if eqn.primitive in PRODUCTS:
    return eqn, tuple(eqn.invars)
  body = formulas.only_body(eqn) if eqn.primitive.name in _JIT else None
  if body is None or len(body.eqns) != 1:
    return None
  found = product(body.eqns[0])
  if not found or list(body.outvars) != list(body.eqns[0].outvars):
    return None
  outer = dict(zip(body.invars, eqn.invars, strict=True))
  inner = (v if formulas.is_literal(v) else outer[v] for v in found[1])
  return found[0], tuple(inner)


def alone(at: int, jaxpr) -> Chain:
  """A chain of the product at an index and nothing that follows it."""
  eqn = jaxpr.eqns[at]
  equation, operands = product(eqn)
  shape = eqn.outvars[0].aval.shape
  places = tuple(range(len(shape)))
  return Chain(at, equation, operands, shape, _columns(equation), places)


def following(
  at: int,
  flow: flow_lib.Flow,
  taken: Collection[int] = (),
  later: Collection[Any] = (),
) -> Chain:
  """What follows the product at an index, as far as it is an epilogue.

  Args:
    at: the index.
    flow: of the body.
    taken: indices of equations that are left alone.
    later: variables that cannot be read with the product.
  """
  jaxpr, readers = flow.jaxpr, flow.readers
  (v,) = jaxpr.eqns[at].outvars
  # `whole` is the chain up to its last step: a reshape counts if a step comes after it.
  chain = whole = alone(at, jaxpr)
  if not jnp.issubdtype(v.aval.dtype, jnp.floating):
    return chain
  while whole.relu is None:
    read = [i for i in readers.get(v, ()) if i not in taken]
    if not read or len(read) < len(readers[v]) or None in read:
      break
    step = None
    if chain.curve is None and chain.other is None:
      # First, as curves begin with what is a step by itself: a relu, a sum.
      name, indices = curves.find(v, flow)
      if name and not any(i in taken for i in indices):
        step = dict(curve=name, indices=chain.indices + indices)
    moved = None
    if step is None and len(read) == 1:
      step = _step(chain, read[0], v, flow, later)
      moved = None if step else _moved(chain, read[0], v, flow)
    if not step and not moved:
      break
    chain = dataclasses.replace(chain, **(step or moved))
    whole = whole if moved else chain
    (v,) = jaxpr.eqns[chain.last].outvars
  return whole


def _columns(eqn) -> tuple[int, ...]:
  """The axes of the results of a product that are those of its second operand."""
  numbers, (out,) = eqn.params['dimension_numbers'], eqn.outvars
  if eqn.primitive is lax.conv_general_dilated_p:
    return (numbers.out_spec[1],)
  (_, summed), (_, batch) = numbers
  free = eqn.invars[1].aval.ndim - len(summed) - len(batch)
  return tuple(range(out.aval.ndim - free, out.aval.ndim))


def _moved(chain, i, v, flow) -> dict[str, Any] | None:
  """A chain with an equation more that only adds and drops axes of size one."""
  eqn = flow.jaxpr.eqns[i]
  name = eqn.primitive.name
  if name not in ('reshape', 'squeeze', 'broadcast_in_dim'):
    return None
  if len(eqn.invars) > 1 or (name == 'reshape' and eqn.params['dimensions']):
    return None
  (out,) = eqn.outvars
  both = zip(v.aval.shape, chain.places, strict=True)
  long = [(n, place) for n, place in both if n > 1]
  if [n for n in out.aval.shape if n > 1] != [n for n, _ in long]:
    return None
  left = iter([place for _, place in long])
  places = tuple(next(left) if n > 1 else None for n in out.aval.shape)
  return dict(indices=(*chain.indices, i), places=places)


def _step(chain, i, v, flow, later) -> dict[str, Any] | None:
  """What a chain becomes with one more equation; None where it ends before."""
  eqn, more = flow.jaxpr.eqns[i], dict(indices=(*chain.indices, i))
  # Results that are spread over what they meet are not written by the product.
  if eqn.outvars[0].aval.shape != v.aval.shape:
    return None
  relu = _relu(eqn, v)
  if relu is not None:
    return more | dict(relu=relu)
  if chain.other is not None:
    return None
  name = eqn.primitive.name
  value = _affine(eqn, v, chain, flow)
  if value is not None:
    if not formulas.is_literal(value[0]) and value[0] in later:
      return None
    where = 'after' if chain.curve else 'steps'
    return more | {where: (*getattr(chain, where), (name, *value))}
  other = [o for o in eqn.invars if o is not v]
  if (
    name not in ('add', 'mul')
    or len(other) != 1
    or formulas.is_literal(other[0])
    or other[0] in later
  ):
    return None
  if other[0].aval.shape != v.aval.shape:
    return None
  if not other[0].aval.dtype == v.aval.dtype == eqn.outvars[0].aval.dtype:
    return None
  return more | dict(other=other[0], times=name == 'mul')


def _affine(eqn, v, chain, flow):
  """What is added to, taken off or multiplied with `v` along its columns.

  Returns (variable or literal, the axis of the results of the product that each of
  its axes lies along).
  """
  name = eqn.primitive.name
  if name not in ('add', 'sub', 'mul') or (
    name == 'sub' and eqn.invars[0] is not v
  ):
    return None
  (source,) = [o for o in eqn.invars if o is not v] or [None]
  if source is None or eqn.outvars[0].aval.dtype != v.aval.dtype:
    return None
  axes = tuple(range(source.aval.ndim))  # of as many axes as v, or a scalar
  made = flow.maker(source)
  if made is not None and made.primitive.name == 'broadcast_in_dim':
    # What is spread over rows is read as it is before.
    if made.params['shape'] == v.aval.shape:
      source, axes = made.invars[0], made.params['broadcast_dimensions']
  axes, sizes = tuple(chain.places[a] for a in axes), source.aval.shape
  along = {a for a, n in zip(axes, sizes, strict=True) if n > 1}
  return (source, axes) if along.issubset(chain.columns) else None


def _relu(eqn, v) -> Callable | None:
  """relu, if that is what an equation computes: its values, and its derivative."""
  if eqn.primitive.name not in ('max', 'custom_jvp_call', *_JIT):
    return None
  (out, *more) = eqn.outvars
  if more:
    return None
  plain = formulas.of_equations([eqn], v, out)
  if plain is not None:
    return _maximum if _is_maximum(plain) else None
  # It has a derivative of its own: the one of `jax.nn.relu`, or one for XLA.
  values = formulas.of_equations(
    [eqn], v, out, enter=(*_JIT, 'custom_jvp_call')
  )
  if values is None or not _is_maximum(values):
    return None
  found = formulas.of_derivative(formulas.as_function([eqn], v, out), v.aval)
  known = formulas.of_known_derivative(jax.nn.relu, v.aval.shape, v.aval.dtype)
  return jax.nn.relu if found is not None and found == known else None


def _is_maximum(formula) -> bool:
  """Whether a formula is max(x, 0)."""
  lines, out = formula
  if len(lines) != 1:
    return False
  ((name, _, operands),) = lines
  of_x = set(operands) == {formulas.X, 0.0}
  return name == 'max' and of_x and out == formulas.line(1)


def _maximum(y):
  return lax.max(y, jnp.zeros((), y.dtype))
