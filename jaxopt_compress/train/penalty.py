"""What is added to the loss of a stage for its parameters: weight * R(theta).

penalty = ((r'.*/kernel', 'l2'), (r'.*', None))
penalty = ((r'blocks/.*', 'l2_sp'), (r'head/.*', 'l2'), (r'.*', None))     L2-SP

The words are functions of `distillation.penalties`. Those that draw parameters
somewhere draw them to where the stage begins: these are a part of its state, so that a
run that resumes goes on with them, and no constants of its program.
"""

import inspect
from typing import Any

import jax

from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.distillation import penalties
from jaxopt_compress.train import options
from jaxopt_compress.train.step import loss as loss_lib

WORDS = ('l1', 'l2', 'group_lasso', 'towards', 'l2_sp')


def check(where: str, penalty: options.Penalty, init: str) -> None:
  """Raises a ValueError for rules that are none, or have no effect.

  Args:
    where: what the stage is called.
    penalty: of the stage.
    init: the stage that it starts from, or ''.
  """
  for rule in penalty.rules:
    if not isinstance(rule, tuple) or len(rule) != 2:
      raise ValueError(f'A rule is a pair (regex, value), not {rule!r}.')
    if rule[1] is not None:
      choices.one_of(f'{where}.penalty', rule[1], WORDS)
      if not init and _draws(rule[1]):
        raise ValueError(
          f'{where}.penalty has {rule[1]!r}, which draws to where the stage begins, and'
          ' without init that is random. Set init, or choose l2.'
        )
  if penalty.rules and not penalty.weight:
    raise ValueError(
      f'{where}.penalty has no effect with penalty_weight=0. Set penalty_weight.'
    )


def origins(penalty: options.Penalty, params: Any) -> dict[str, jax.Array]:
  """{path: a copy of a parameter that is drawn to where it is now}."""
  if not penalty.rules:
    return {}
  chosen = rules_lib.match(penalty.rules, params)
  return {
    path: jax.numpy.copy(x)
    for path, x in rules_lib.named_leaves(params)
    if chosen[path] and _draws(chosen[path])
  }


def added(loss: loss_lib.Loss, penalty: options.Penalty) -> loss_lib.Loss:
  """A loss with one more part, 'penalty', where there are rules for it."""
  if not penalty.rules:
    return loss

  def of(word, origin):
    if word is None:
      return None
    function = getattr(penalties, word)
    if not _draws(word):
      return function(-1) if word == 'group_lasso' else function
    return lambda leaves: function({path: origin[path] for path in leaves})(
      leaves
    )

  def penalised(seen):
    rules = [
      (pattern, of(word, seen.origins)) for pattern, word in penalty.rules
    ]
    r = penalties.by_path(rules)(seen.params)
    # Of no example: the same on each replica, once.
    part = loss_lib.Part(r, jax.numpy.ones((), r.dtype), penalty.weight)
    return loss(seen) | {'penalty': part}

  return penalised


def _draws(word) -> bool:
  """Whether it takes what parameters are drawn to."""
  return 'reference' in inspect.signature(getattr(penalties, word)).parameters
