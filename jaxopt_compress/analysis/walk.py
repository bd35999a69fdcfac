"""How a program is read: equations, the programs inside them, where each is.

A program is a jaxpr, a list of equations, some of which have programs inside: jit,
remat, scan, cond, while, custom derivatives, shard_map. `enter(eqn)` gives these as
one of a few records, the same for every release of JAX. Beside `core.structural`,
which runs such equations, this is the only file that knows their parameters.

What adds up over equations needs no more (`flops`, `scopes`). A question about
values goes on to `algebra`, which carries them from equation to equation.

  >>> import jax, jax.numpy as jnp
  >>> program = jax.make_jaxpr(jax.jit(lambda x: jnp.tanh(x) @ x))(jnp.eye(2))
  >>> [at.path for at in places(program)]
  ['tanh', 'dot_general']
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from jaxopt_compress.analysis import raised
from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.core import structural


@dataclasses.dataclass(frozen=True)
class Call:
  """A program that runs once on all operands: jit, remat, custom derivatives.

  Attributes:
    remat: the keywords of `jax.checkpoint` where it is one, else None.
    recomputes: whether it is the recomputation of a gradient.
    in_shardings, out_shardings: of a jit, one for each operand and result, or ().
  """

  body: Any
  remat: Mapping[str, Any] | None = None
  recomputes: bool = False
  in_shardings: Sequence = ()
  out_shardings: Sequence = ()
  times = 1
  bodies = property(lambda self: (self.body,))


@dataclasses.dataclass(frozen=True)
class Scan:
  """A loop over the first axis: operands are (constants, carry, scanned)."""

  body: Any
  num_consts: int
  num_carry: int
  times: int
  reverse: bool
  unroll: int = 1
  bodies = property(lambda self: (self.body,))


@dataclasses.dataclass(frozen=True)
class While:
  """A loop: operands are (constants of test, constants of body, carry)."""

  test: Any
  body: Any
  num_test_consts: int
  num_body_consts: int
  times = 1  # or more: a program does not tell
  bodies = property(lambda self: (self.test, self.body))


@dataclasses.dataclass(frozen=True)
class Cond:
  """Branches on the same operands: the first operand chooses.

  Attributes:
    by_platform: whether it chooses the platform that the program runs on.
  """

  branches: tuple
  by_platform: bool = False
  times = 1
  bodies = property(lambda self: self.branches)


@dataclasses.dataclass(frozen=True)
class ShardMap:
  """A program that each of `times` devices runs on its part of the operands.

  Attributes:
    mesh: of devices.
    axes: of the mesh, those that are manual from here on, in its order.
    checked: whether types say along which axes devices differ.
  """

  body: Any
  in_specs: Sequence
  out_specs: Sequence
  times: int
  mesh: Any
  axes: tuple[str, ...]
  checked: bool
  bodies = property(lambda self: (self.body,))

  def differing(self, aval) -> tuple[str, ...]:
    """The axes along which a value of the body may differ between devices."""
    known = jaxprs.varying(aval)
    return tuple(a for a in self.axes if not self.checked or a in known)


@dataclasses.dataclass(frozen=True)
class Opaque:
  """Programs whose inputs are not the operands: they can be counted, no more.

  `times` is None where it is known only when the program runs.
  """

  bodies: tuple
  times: int | None = 1


Inside = Call | Scan | While | Cond | ShardMap | Opaque


def _call(p):
  body = p.get('call_jaxpr', p.get('jaxpr'))
  if body is None:
    return None
  return Call(
    body,
    in_shardings=p.get('in_shardings') or (),
    out_shardings=p.get('out_shardings') or (),
  )


def _remat(p):
  keywords = {key: p[key] for key in ('prevent_cse', 'policy')}
  return Call(p['jaxpr'], keywords, p.get('differentiated', False))


def _scan(p):
  consts, carry = structural.scan_counts(p)
  return Scan(p['jaxpr'], consts, carry, p['length'], p['reverse'], p['unroll'])


def _while(p):
  consts = p['cond_nconsts'], p['body_nconsts']
  return While(p['cond_jaxpr'], p['body_jaxpr'], *consts)


def _cond(p):
  by_platform = p.get('branches_platforms') is not None
  return Cond(tuple(p['branches']), by_platform)


def _shard_map(p):
  # Shapes inside are those of one device along the axes that are manual here.
  mesh = p['mesh']
  manual = p.get('newly_manual_axes')
  if manual is None:
    manual = p.get('manual_axes', mesh.axis_names)
  axes = tuple(a for a in mesh.axis_names if a in manual)
  return ShardMap(
    p['jaxpr'],
    p['in_specs'],
    p['out_specs'],
    math.prod(mesh.shape[a] for a in axes),
    mesh,
    axes,
    p.get('check_vma', True),
  )


def _linear_solve(p):
  return Opaque((p['jaxprs'].solve,))


def _pallas_call(p):
  grid = p['grid_mapping'].grid
  known = all(isinstance(n, int) for n in grid)
  return Opaque((p['jaxpr'],), math.prod(grid) if known else None)


_ENTER: dict[str, Callable[[dict], Inside | None]] = {
  'jit': _call,
  'pjit': _call,
  'closed_call': _call,
  'core_call': _call,
  'checkpoint': _remat,
  'remat': _remat,
  'remat2': _remat,
  'custom_jvp_call': _call,
  'custom_vjp_call': _call,
  'scan': _scan,
  'while': _while,
  'cond': _cond,
  'shard_map': _shard_map,
  'custom_linear_solve': _linear_solve,
  'pallas_call': _pallas_call,
}


def enter(eqn) -> Inside | None:
  """The programs inside an equation, or None where there are none."""
  how = _ENTER.get(eqn.primitive.name)
  return None if how is None else how(eqn.params)


def unnamed_bodies(eqn) -> Iterator[Any]:
  """The programs that a primitive has which `enter` does not know."""
  for key, param in eqn.params.items():
    if key == 'transpose':  # of linear_call: run by the gradient, not here
      continue
    for x in param if isinstance(param, (tuple, list)) else (param,):
      if hasattr(x, 'eqns') or hasattr(getattr(x, 'jaxpr', None), 'eqns'):
        yield x


def live(jaxpr) -> list:
  """The equations whose results are read, or that have effects, in order."""
  jaxpr, _ = jaxprs.opened(jaxpr)
  needed = {v for v in jaxpr.outvars if jaxprs.is_var(v)}
  found = []
  for eqn in reversed(jaxpr.eqns):
    if eqn.effects or any(v in needed for v in eqn.outvars):
      needed.update(v for v in eqn.invars if jaxprs.is_var(v))
      found.append(eqn)
  return found[::-1]


def trace(fun: Callable, params, args, kwargs) -> tuple[Any, list[tuple]]:
  """The program of `fun(params, *args, **kwargs)`, on what its leaves stand for.

  Nothing is computed: arrays may be abstract.

  Returns:
    (closed jaxpr, [(path, leaf)]): the leaves of `params` that are arrays. They
    are its first inputs, in this order.
  """
  values, refill = array.arrays_apart(
    (params, args, kwargs), is_array, array.is_compressed
  )

  def of_arrays(*values):
    params, args, kwargs = refill(values)
    return fun(params, *args, **kwargs)

  dense = [
    jax.eval_shape(x.materialize) if array.is_compressed(x) else x
    for x in values
  ]
  named = [(p, x) for p, x in rules_lib.named_leaves(params) if is_array(x)]
  with jax.disable_jit(False):  # else loops come unrolled
    return jax.make_jaxpr(of_arrays)(*dense), named


def abstract(tree):
  """Arrays, and what leaves stand for, as shapes, cut over devices as they are."""

  def shape(x):
    if array.is_compressed(x):
      return jax.eval_shape(x.materialize)
    if not is_array(x):
      return x
    aval = jax.typeof(x) if isinstance(x, jax.Array) else x
    return jax.ShapeDtypeStruct(
      aval.shape,
      aval.dtype,
      weak_type=getattr(aval, 'weak_type', False),
      sharding=getattr(aval, 'sharding', None),
    )

  return jax.tree.map(shape, tree, is_leaf=array.is_compressed)


def is_array(x) -> bool:
  # Numbers stay what they are, those of numpy too, so that flags keep working.
  return hasattr(x, 'shape') and not isinstance(x, np.generic)


# ---------------------------------------------------------------- where one is


@dataclasses.dataclass(frozen=True)
class At:
  """An equation of the walk, and what is around it.

  Attributes:
    eqn: the equation.
    outer: the equation whose program this one is in, or None.
    turn: which turn of the loop `outer` it is, where turns are walked apart.
  """

  eqn: Any
  outer: 'At | None' = None
  turn: int | None = None

  @functools.cached_property
  def scope(self) -> tuple[str, ...]:
    """Names of the scopes around the equation, outermost first."""
    around = self.outer.scope if self.outer else ()
    return (*around, *jaxprs.scope_names(self.eqn))

  @property
  def path(self) -> str:
    """Its scopes and its primitive, as in 'blocks/attn/dot_general'."""
    return '/'.join((*self.scope, self.eqn.primitive.name))

  @functools.cached_property
  def source(self) -> str:
    """File, line and function of the model."""
    # Programs of JAX's own functions have no line of the user's; the call has.
    here = jaxprs.source_of(self.eqn)
    return here or (self.outer.source if self.outer else '')

  @functools.cached_property
  def model_line(self) -> str:
    """File, line and function outside of installed packages that led here, or ''."""
    trace = self.eqn.source_info.traceback
    for frame in trace.frames if trace else ():
      if not raised.is_library(frame.file_name):
        return f'{frame.file_name}:{frame.line_num} ({frame.function_name})'
    return self.outer.model_line if self.outer else ''

  @property
  def around(self) -> list[tuple['At', int | None]]:
    """The equations that this one is inside of, outermost first, and the turn."""
    if self.outer is None:
      return []
    return [*self.outer.around, (self.outer, self.turn)]

  @property
  def place(self) -> tuple[int, ...]:
    """What tells it from all others of its program: it and those around, by identity."""
    return (*(id(a.eqn) for a, _ in self.around), id(self.eqn))

  def shape(self, i: int = 0) -> tuple[int, ...]:
    """The shape of a result."""
    return tuple(self.eqn.outvars[i].aval.shape)


def places(jaxpr, outer: At | None = None) -> Iterator[At]:
  """Every equation that has no program inside, in program order."""
  for eqn in jaxprs.opened(jaxpr)[0].eqns:
    at, inside = At(eqn, outer), enter(eqn)
    if inside is None or isinstance(inside, Opaque):
      yield at
      continue
    for body in inside.bodies:
      yield from places(body, at)
