"""What a plan would do, without doing it."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import jax

from jaxopt_compress import report
from jaxopt_compress.analysis import storage
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.train import distil
from jaxopt_compress.train import stages


def describe(built: Sequence[stages.Built], leaves: bool = False) -> str:
  """The stages as a table; with `leaves`, what becomes of every weight too."""
  rows = []
  for b in built:
    params = b.final['params']
    named = rules_lib.named_leaves(params)
    about = '~' if b.guessed else ''
    compressed = sum(array.is_compressed(x) for _, x in named)
    rows.append(
      [
        b.stage.name,
        b.model.name,
        f'{b.stage.steps:,}',
        b.stage.init or '-',
        ', '.join(name for name, _ in b.stage.distil.teachers) or '-',
        about + f'{report.records.parameters(params):,}',
        about + f'{storage.nbytes(params):,}',
        f'{compressed} of {len(named)}',
      ]
    )
  headers = 'stage model steps init teacher parameters bytes compressed'.split()
  text = report.table.render(headers, rows)
  if any(b.guessed for b in built):
    text += '\n~ Scores decide; shown as if each group gave the same share.'
  for b in built if leaves else ():
    if b.stage.compresses:
      text += f'\n\n{b.stage.name}:\n{_leaves(b.final["params"])}'
  return text


def _leaves(params):
  rows = [
    [
      path,
      'x'.join(map(str, x.shape)) or 'scalar',
      x.describe() if array.is_compressed(x) else str(x.dtype),
    ]
    for path, x in rules_lib.named_leaves(params)
  ]
  return report.table.render(['leaf', 'shape', 'format'], rows)


def trace(
  step: Callable[..., Any],
  built: stages.Built,
  batch: Any,
  finals: Mapping[str, Any],
) -> None:
  """Traces one training step as the devices will run it, on shapes alone.

  Args:
    step: from `parallel.data_parallel`.
    built: the stage that it trains.
    batch: this process's share of one.
    finals: what the stages leave behind that it learns from; see `Built.final`.

  Raises:
    ValueError: what is wrong with it; the message begins with the stage's name.
  """
  frozen = ()
  if not built.stage.cache.asked:
    frozen = jax.eval_shape(
      functools.partial(distil.frozen, built.stage.distil), finals
    )
  try:
    jax.eval_shape(
      lambda state, frozen: step(state, batch, frozen),
      built.template,
      frozen,
    )
  except (
    Exception
  ) as e:  # Of a loss, of a model: all mean that it does not run.
    kind = '' if isinstance(e, ValueError) else f'{type(e).__name__}: '
    raise ValueError(
      f'Stage {built.stage.name!r} cannot take a training step. {kind}{e}'
    ) from e
