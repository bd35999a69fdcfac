"""What the evaluation of a program knows, and what it finds out.

A `Context` holds the rules and what has been recorded so far. One context belongs to
one call of a lifted function; the bodies of its jits, loops and branches share it.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
from typing import Any

from jaxopt_compress.core import jaxprs

# Why a leaf is dense in an operation that another leaf ran natively.
TAKEN = 'another compressed leaf took the operation'


@dataclasses.dataclass(frozen=True)
class Dense:
  """What a rule returns to decline: the equation runs on the dense array.

  Attributes:
    reason: why, in a few words, for `explain`.
  """

  reason: str


@dataclasses.dataclass(frozen=True)
class Met:
  """One meeting of a compressed leaf with an operation of the model.

  Or what a kernel computes, or does not, without a leaf: attention, a norm.

  Attributes:
    path: name of the leaf in the arguments, '' where there is none.
    primitive: name of the JAX primitive, or of what several of them compute.
    native: whether it ran on the compressed form, or in a kernel.
    reason: why it did not, or ''.
    source: file, line and function of the model.
    together: names of the leaves that one call computes with, if they are several.
  """

  path: str
  primitive: str
  native: bool
  reason: str
  source: str
  together: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Monoid:
  """How findings about one leaf are put together.

  Attributes:
    merge: (finding, finding) -> finding.
    empty: a finding's shapes -> the finding of nothing.
    all_reduce: (finding, axes, known) -> the finding over devices. `axes` are those
      along which devices saw different data, which is `known` from types, or else
      assumed from how the arguments are cut.
  """

  merge: Callable[[Any, Any], Any]
  empty: Callable[[Any], Any]
  all_reduce: Callable[[Any, tuple[str, ...], bool], Any]


def _as_it_is(leaf, spec):
  return leaf


def _none(_):
  return ()


@dataclasses.dataclass
class Context:
  """What one evaluation needs to know.

  Attributes:
    rule_for: (primitive, leaf type) -> rule or None.
    structural: by the name of a primitive, what rebuilds its equations around
      their bodies: f(ctx, eqn, [(value, name)]) -> [(value, name)], or
      NotImplemented.
    record: called with a `Met` for every meeting.
    inline: evaluate jitted bodies in place instead of under `jax.jit`, so that
      each call of a shared body is recorded.
    finders: leaf types -> what looks for `claims.Claim`s where one of them is.
    opens: equation -> the body that it calls and nothing else, or None.
    jits: jitted evaluations of shared bodies, by the identity of their jaxpr and
      the scope around it.
    calls: the lines of the structural equations being evaluated, outermost
      first.
    monoids: how what rules find out about each leaf is put together; empty
      unless something is observed.
    found: what rules have found out so far in the body that is evaluated, by the
      name of the leaf.
    placed: (leaf, spec) -> the leaf, which may remember how a `shard_map` cuts it.
    handler_at: scope path, ending in the primitive's name -> what replaces a
      first-order equation there, or None.
    scope: names of the scopes around the body that is evaluated.
  """

  rule_for: Callable[[Any, type], Callable | None]
  structural: Mapping[str, Callable]
  record: Callable[[Met], None] | None = None
  inline: bool = False
  finders: Callable[[set[type]], Sequence[Callable]] = _none
  opens: Callable[[Any], Any | None] = _none
  jits: dict[Any, tuple[Any, Callable]] = dataclasses.field(
    default_factory=dict
  )
  calls: list[str] = dataclasses.field(default_factory=list)
  monoids: dict[str, Monoid] = dataclasses.field(default_factory=dict)
  found: dict[str, Any] = dataclasses.field(default_factory=dict)
  placed: Callable[[Any, Any], Any] = _as_it_is
  handler_at: Callable[[str], Callable | None] | None = None
  scope: tuple[str, ...] = ()
  _wanted: dict[Any, Any] = dataclasses.field(default_factory=dict)

  def quiet(self) -> 'Context':
    """The same rules, and nothing recorded, observed or replaced."""
    return Context(
      self.rule_for, self.structural, finders=self.finders, opens=self.opens
    )

  def bodies(self, eqn) -> list[Any]:
    """The jaxprs that an equation runs; none for a first-order equation."""
    known = eqn.primitive.name in self.structural
    return jaxprs.inside(eqn) if known else []

  def path(self, eqn) -> str:
    """Where an equation of the body that is evaluated is, and what it is."""
    names = jaxprs.scope_names(eqn)
    return '/'.join((*self.scope, *names, eqn.primitive.name))

  def wants(self, eqn) -> bool:
    """Whether a handler is for the equation, or for one inside it."""
    if self.handler_at is None:
      return False
    inside = self.bodies(eqn)
    if not inside:
      return self.handler_at(self.path(eqn)) is not None
    with self.within((*self.scope, *jaxprs.scope_names(eqn))):
      return any(self._wants_inside(body) for body in inside)

  def _wants_inside(self, jaxpr) -> bool:
    key = id(jaxpr), self.scope
    if key not in self._wanted:
      # The jaxpr is held so that no other can get its id.
      self._wanted[key] = jaxpr, any(self.wants(eqn) for eqn in jaxpr.eqns)
    return self._wanted[key][1]

  @contextlib.contextmanager
  def within(self, scope):
    """Evaluates a body that is in a scope."""
    outer, self.scope = self.scope, scope
    try:
      yield
    finally:
      self.scope = outer

  @contextlib.contextmanager
  def entering(self, eqn):
    """Remembers where the body that is evaluated meanwhile was called."""
    self.calls.append(self._source(eqn) if self.record else '')
    # Without handlers scopes say nothing, and bodies called from two are shared.
    scope = (*self.scope, *jaxprs.scope_names(eqn)) if self.handler_at else ()
    with self.within(scope):
      yield
    self.calls.pop()

  def give(self, found: dict[str, Any]) -> None:
    """Adds to what was found."""
    for name, value in found.items():
      if name in self.found:
        value = self.monoids[name].merge(self.found[name], value)
      self.found[name] = value

  def apart(self, run: Callable) -> Callable:
    """`run`, returning (its result, what was found in it).

    What is found under a JAX transform is made of its tracers, so it must leave
    the transform as a result.
    """

    def both(*args):
      outer, self.found = self.found, {}
      try:
        return run(*args), self.found
      finally:
        self.found = outer

    return both

  def note(self, eqn, name, native, reason='', **more) -> None:
    """Records that the leaf of a name met an equation."""
    if self.record is not None:
      primitive = more.pop('primitive', eqn.primitive.name)
      source = self._source(eqn)
      self.record(Met(name, primitive, native, reason, source, **more))

  def _source(self, eqn) -> str:
    # Bodies of JAX's own jitted functions have no line of the user's; the call
    # around them has.
    return jaxprs.source_of(eqn) or (self.calls[-1] if self.calls else '')
