"""What follows a product and can be done where its results are written.

    y -> activation(y * scale + shift)

with one scale and shift for each entry of the last axis, and relu or nothing: a bias,
a normalisation with known moments, an activation. XLA would read and write all of y
again for it.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# Products whose results are looked after.
PRODUCTS = (lax.dot_general_p, lax.conv_general_dilated_p)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Epilogue:
  """What is done with the results of a product.

  Attributes:
    scale, shift: None, or [n] float32, for each entry of the last axis.
    activation: None, or what computes relu, with its own derivative at zero.
  """

  scale: jax.Array | None
  shift: jax.Array | None
  activation: Callable[[jax.Array], jax.Array] | None = dataclasses.field(
    metadata={'static': True}
  )

  def __call__(self, y: jax.Array) -> jax.Array:
    """The same in XLA."""
    along = lambda p: p.reshape((1,) * (y.ndim - 1) + (-1,))
    out = y if self.scale is None else y * along(self.scale)
    out = out if self.shift is None else out + along(self.shift)
    out = out if self.activation is None else self.activation(out)
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
    activation: of the last one, or None.
  """

  product: int
  equation: Any
  operands: tuple[Any, ...]
  indices: tuple[int, ...]
  steps: tuple[tuple[str, Any], ...]
  activation: Callable | None

  @property
  def last(self) -> int:
    return self.indices[-1]

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
    return Epilogue(scale, shift, self.activation)


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
  indices, steps, activation = [], [], None
  (v,) = jaxpr.eqns[at].outvars
  if not jnp.issubdtype(v.aval.dtype, jnp.floating):
    return None
  while activation is None and len(read := readers.get(v, ())) == 1:
    (i,) = read
    if i is None or i in taken:
      break
    eqn = jaxpr.eqns[i]
    activation = _relu(eqn)
    if activation is None:
      value = _affine(eqn, v, makers)
      if value is None:
        break
      steps.append((eqn.primitive.name, value))
    indices.append(i)
    (v,) = eqn.outvars
  if not indices:
    return None
  return Chain(at, *found, tuple(indices), tuple(steps), activation)


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
  return jax.nn.relu


def _maximum(y):
  return lax.max(y, jnp.zeros((), y.dtype))


def _is_literal(v) -> bool:
  return hasattr(v, 'val')
