"""Seconds of programs that take turns, and the memory that one takes."""

from collections.abc import Callable
from collections.abc import Mapping
import os
import threading
import time
from typing import Any

import jax
import numpy as np

CLOCKS = {'wall': time.perf_counter, 'processor': time.process_time}


def take_turns(
  programs: Mapping[str, tuple[Callable, tuple]],
  repeats: int,
  clock: str = 'wall',
) -> dict[str, np.ndarray]:
  """Seconds of each run, `{name: [repeats]}`; the first of each is not counted.

  Args:
    programs: `{name: (function, arguments)}`.
    repeats: runs of each.
    clock: 'wall', or 'processor': the time of all cores, which a busy machine changes
      less.
  """
  took = {name: [] for name in programs}
  now, order = CLOCKS[clock], list(programs.items())
  for i in range(repeats + 1):
    order.reverse()  # who runs after whom makes no difference
    for name, (f, args) in order:
      start = now()
      jax.block_until_ready(f(*args))
      if i:
        took[name].append(now() - start)
  return {name: np.array(seconds) for name, seconds in took.items()}


def resident() -> int:
  """Bytes of memory that this process holds now."""
  with open('/proc/self/statm') as f:
    return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def peak(f: Callable[[], Any]) -> tuple[float, int]:
  """(seconds, the most bytes that the process held) while `f` ran to its end."""
  held, done = [resident()], threading.Event()

  def watch():
    while not done.wait(0.002):
      held.append(resident())

  watcher = threading.Thread(target=watch)
  watcher.start()
  start = time.perf_counter()
  try:
    jax.block_until_ready(f())
    seconds = time.perf_counter() - start
  finally:
    done.set()
    watcher.join()
  return seconds, max(held)
