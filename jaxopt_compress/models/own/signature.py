"""What a network of the user's is told: by its own signature, and nothing else.

When it is made, `rngs` gets `nnx.Rngs`, `key` or `rng` a key, and the keywords of the
config the rest. When it is called, it gets x and, of those that it names,

    train, training, is_training                          whether it is trained
    deterministic, use_running_average, inference, eval   whether it is not
    rngs; key, rng                                        randomness, while it is trained
"""

from collections.abc import Callable
from collections.abc import Mapping
import inspect
from typing import Any

from flax import nnx
import jax

from jaxopt_compress.core import choices

_TRAIN = ('train', 'training', 'is_training')
_INFERENCE = ('deterministic', 'use_running_average', 'inference', 'eval')
_KEYS = ('key', 'rng')

_CLASSES = ('classes', 'num_classes', 'n_classes', 'num_labels')

# Linen fields that are not those of the network.
_FLAX = ('parent', 'name')


def bound(
  where: str, make: Callable[..., Any], keywords: Mapping[str, Any]
) -> Callable[[jax.Array], Any]:
  """`key -> what make makes`, with these keywords.

  Raises:
    ValueError: a keyword that it does not take, or one that is missing.
  """
  known = parameters(make)
  own = {n: p for n, p in known.items() if n not in (*_FLAX, *_KEYS, 'rngs')}
  rest = any(p.kind == p.VAR_KEYWORD for p in known.values())
  named = {n: p for n, p in own.items() if p.kind != p.VAR_KEYWORD}
  for key in keywords:
    if key not in named and not rest:
      raise ValueError(
        f'{where} has no {key!r}.{choices.guess(key, named)} It takes'
        f' {", ".join(named) or "nothing"}.'
      )
  missing = [
    n
    for n, p in named.items()
    if p.default is p.empty and p.kind != p.VAR_POSITIONAL and n not in keywords
  ]
  if missing:
    raise ValueError(
      f'{where} needs {", ".join(map(repr, missing))}. Set what it needs beside the'
      ' name.'
    )

  def build(key):
    given = {n: key for n in _KEYS if n in known}
    if 'rngs' in known:
      given['rngs'] = nnx.Rngs(key)
    return make(**keywords, **given)

  return build


def sized(
  make: Callable[..., Any], keywords: Mapping[str, Any], classes: int | None
) -> dict[str, Any]:
  """What is added to the keywords: the number of classes, where it is required.

  A default of the user's stays, whatever the data has.

  >>> sized(lambda width, num_classes: None, dict(width=8), 10)
  {'num_classes': 10}
  """
  wanted = [
    n
    for n, p in parameters(make).items()
    if n in _CLASSES and p.default is p.empty and n not in keywords
  ]
  return {n: classes for n in wanted if classes}


def defaults(make: Callable[..., Any]) -> dict[str, Any]:
  """Numbers, texts and tuples that its arguments are where nothing is said.

  >>> defaults(lambda width=8, *, act=print: None)
  {'width': 8}
  """
  return {
    n: p.default
    for n, p in parameters(make).items()
    if isinstance(p.default, (bool, int, float, str, tuple))
  }


def parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Those of a class or function by name; of a C function, none."""
  try:
    if not isinstance(make, type):
      return dict(inspect.signature(make).parameters)
    # The metaclass of NNX takes anything: what is meant is the initialiser's.
    _, *known = inspect.signature(make.__init__).parameters.items()
    return dict(known)
  except (TypeError, ValueError):
    return {}


def modes(
  where: str, call: Callable[..., Any], *, linen: bool = False
) -> Callable[[bool, jax.Array | None], dict[str, Any]]:
  """`(train, key) -> what a call is told` beside its input.

  Args:
    where: the network, for messages.
    call: bound, so that x is its first argument.
    linen: whether `rngs` are those of Linen, which `apply` takes.

  Raises:
    ValueError: it needs more than one input.
  """
  known = parameters(call)
  told = (*_TRAIN, *_INFERENCE, *_KEYS, 'rngs')
  inputs = [
    n
    for n, p in known.items()
    if p.default is p.empty
    and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    and n not in told
  ]
  if len(inputs) > 1:
    raise ValueError(
      f'{where} is called with {", ".join(inputs)}; one input is expected. Wrap it'
      ' in a module whose call takes one array, or a dict of arrays.'
    )

  def given(train, key):
    said = {n: train for n in _TRAIN if n in known}
    said |= {n: not train for n in _INFERENCE if n in known}
    said |= {n: key for n in _KEYS if n in known}
    if 'rngs' in known and not linen:
      said['rngs'] = None if key is None else nnx.Rngs(key)
    return said

  return given


def answered(where: str, result: Any) -> tuple[jax.Array, dict[str, Any]]:
  """(y, out) of what a network returns: `y`, or `(y, out)` with a dict.

  Raises:
    ValueError: it returns something else.
  """
  y, out = result, {}
  if isinstance(result, tuple) and len(result) == 2:
    y, out = result
  if is_array(y) and isinstance(out, Mapping):
    return y, dict(out)
  raise ValueError(
    f'{where} returns {_described(result)}; an array y, or (y, out) with a dict of'
    ' intermediate values, is expected. Wrap it in a module that returns y.'
  )


def is_array(x: Any) -> bool:
  return hasattr(x, 'shape') and hasattr(x, 'dtype')


def _described(x):
  if is_array(x):
    return f'{x.dtype}{list(x.shape)}'
  if isinstance(x, Mapping):
    return f'a dict of {", ".join(map(str, x)) or "nothing"}'
  if isinstance(x, (tuple, list)):
    return f'a {type(x).__name__} of ({", ".join(map(_described, x))})'
  return f'a value of type {type(x).__name__}'
