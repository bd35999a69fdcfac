"""What the processes of a run do together; a single process waits for nobody.

Every process must call each of these, in the same order.
"""

from collections.abc import Mapping
import json
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np


def wait(name: str) -> None:
  """No process goes on before all are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def gather(text: str) -> list[str]:
  """What each process says, by its index."""
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  # Arrays that are gathered have one size, and not 0.
  padded = np.zeros(max(sizes.max(), 1), np.uint8)
  padded[: data.size] = data
  rows = multihost_utils.process_allgather(padded)
  return [
    row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
  ]


def agree(settings: Mapping[str, Any]) -> None:
  """Raises in every process if some were given other settings.

  Args:
    settings: flat, JSON values.
  """
  # A value that is not JSON is refused later, where its field is known.
  mine = json.dumps(settings, default=str)
  first, *others = map(json.loads, gather(mine))
  for i, other in enumerate(others, start=1):
    for key in dict.fromkeys([*first, *other]):
      ours, theirs = (x.get(key, 'absent') for x in (first, other))
      if ours != theirs:
        raise ValueError(
          f'{key} is {ours!r} in process 0 and {theirs!r} in process {i}. Start'
          ' all processes of a run with the same command, on the same files.'
        )


def fail_together(problem: str) -> None:
  """Raises in every process what went wrong in the first that says something."""
  for said in gather(problem):
    if said:
      raise ValueError(said)
