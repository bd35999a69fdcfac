"""The loss between student and teacher, as a config says it.

'kl'                                  a name of `distillation.losses`
'jsd, beta 0.5'                       with numbers that it takes
'jsd, beta linear 0.1 -> 0.9'         which may change with the steps
'my_pkg.losses:mine, gamma 2'         the user's own, of the same form
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import inspect
from typing import Any

import jax

from jaxopt_compress.core import choices
from jaxopt_compress.distillation import losses
from jaxopt_compress.train import named
from jaxopt_compress.train import schedules

# They compare logits too, and are no soft loss: one has no gradient, and the other
# has labels in it, whose weight is `alpha`.
_OTHERS = ('agreement', 'distill')
_OWN = ('temperature', 'mask', 'axis_name')  # given by the stage


@dataclasses.dataclass(frozen=True)
class SoftLoss:
  """A loss and its numbers.

  Attributes:
    name: of it.
    function: `(student_logits, teacher_logits[, labels], *, mask, ...) -> (sum, count)`.
    numbers: `{name: a number, or the words of a schedule}`.
  """

  name: str
  function: Callable[..., tuple[jax.Array, jax.Array]]
  numbers: Mapping[str, Any]

  def takes(self, name: str) -> bool:
    """Whether it has an argument of this name."""
    return name in inspect.signature(self.function).parameters

  def at(self, step: jax.Array, steps: int) -> dict[str, Any]:
    """Its numbers at a step."""
    return {
      name: schedules.at(said, steps)(step)
      for name, said in self.numbers.items()
    }


def read(
  where: str,
  said: str,
  room: Any = losses,
  known: Sequence[str] | None = None,
) -> SoftLoss:
  """What the words mean.

  Args:
    where: the path in the config.
    said: the words.
    room: where the loss is found by its name.
    known: names of these; None: those that compare logits.

  Raises:
    ValueError: there is no such loss, it does not take such a number, or what is said
      of one is no number.

  >>> read('loss', 'kl').numbers
  {}
  """
  # '' is that of classes.
  name, *words = (word.strip() for word in (said or 'kl').split(','))
  if named.is_own(name):
    function = named.find(where, name)
  else:
    choices.one_of(where, name, names() if known is None else known)
    function = getattr(room, name)
  parameters = inspect.signature(function).parameters
  known = {
    key: p
    for key, p in parameters.items()
    if p.kind == p.KEYWORD_ONLY and key not in _OWN
  }
  numbers = {}
  for word in words:
    key, _, value = word.partition(' ')
    if key not in known:
      raise ValueError(
        f'{where} is {said!r}, and {name} takes no {key!r}.'
        f'{choices.guess(key, known)} Its numbers: {", ".join(known) or "none"}.'
      )
    if key in numbers:
      raise ValueError(
        f'{where} is {said!r}, and says {key} twice. Say it once.'
      )
    numbers[key] = _value(f'{where}, {key},', value.strip())
  needed = [k for k, p in known.items() if p.default is p.empty]
  if missing := [k for k in needed if k not in numbers]:
    raise ValueError(
      f'{where} is {said!r}, and {name} needs {", ".join(missing)}. Write'
      f" '{name}, {missing[0]} 2'."
    )
  return SoftLoss(name, function, numbers)


def names() -> list[str]:
  """The losses that compare a student's logits with a teacher's."""
  found = []
  for name, f in vars(losses).items():
    if inspect.isfunction(f) and name not in _OTHERS:
      first = list(inspect.signature(f).parameters)[:2]
      if first == ['student_logits', 'teacher_logits']:
        found.append(name)
  return found


def _value(where, said):
  """A number, whole if it is written so, or the words of a schedule."""
  for kind in (int, float):
    try:
      return kind(said)
    except ValueError:
      pass
  schedules.check(where, said, '')
  return said
