"""Contestants that take turns on the same cores, each still while another runs.

    seconds = interleave({'name': Contestant(turn, pid), ...}, rounds, budget)

A contestant lives here or in a process of its own that waits on a pipe. Its threads
may go on spinning for a while after its turn, as they do for its users; the next turn
begins when they have stopped.
"""

from collections.abc import Callable
from collections.abc import Hashable
import glob
import json
import os
import pathlib
import subprocess
import tempfile
import threading
import time
from typing import NamedTuple

import jax
import numpy as np

# Ceilings, whose turns tell what was done a second.
RATES = ('read', 'vnni', 'amx')


class Contestant(NamedTuple):
  """Who takes turns.

  Attributes:
    turn: runs a number of calls one after the other; returns seconds a call, or a
      rate.
    pid: of the process whose threads it uses.
  """

  turn: Callable[[int], float]
  pid: int


def here(f: Callable, *args) -> Contestant:
  """A jitted function in this process."""

  def turn(calls):
    start = time.perf_counter()
    for _ in range(calls):
      jax.block_until_ready(f(*args))
    return (time.perf_counter() - start) / calls

  return Contestant(turn, os.getpid())


class Worker:
  """A process that answers each line with a line."""

  def __init__(self, command: list[str], env: dict[str, str] | None = None):
    self._process = subprocess.Popen(
      command,
      env={**os.environ, **(env or {})},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
    self.pid = self._process.pid

  def ask(self, line: str) -> str:
    try:
      self._process.stdin.write(line + '\n')
      self._process.stdin.flush()
      reply = self._process.stdout.readline()
    except BrokenPipeError:
      reply = ''
    if not reply:
      code = self._process.wait()
      raise RuntimeError(f'{self._process.args} ended with {code}')
    return reply.strip()

  def ask_json(self, **request):
    reply = json.loads(self.ask(json.dumps(request)))
    if 'error' in reply:
      raise RuntimeError(reply['error'])
    return reply['result']

  def close(self):
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()


class Rival:
  """A library in an interpreter of its own: `rivals`.

  Attributes:
    library: which.
    path: '', or 'avx512-vnni' where it is kept from AMX.
  """

  def __init__(self, python: str, library: str, path: str = ''):
    self.library, self.path = library, path
    script = pathlib.Path(__file__).parent / 'rivals.py'
    command = [python, '-W', 'ignore', str(script), library]
    self._worker = Worker(command + ['--vnni'] * bool(path))
    self.close = self._worker.close

  def weights(self, folder: str):
    self._worker.ask_json(do='weights', folder=folder)

  def rows(self, folder: str) -> dict[str, str]:
    """What each contestant computes, by name; of those that work."""
    found = self._worker.ask_json(do='rows', folder=folder)
    return {name: kind for name, kind in found.items() if self._works(name)}

  def result(self, name: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
      path = f'{folder}/result.npy'
      self._worker.ask_json(do='result', name=name, path=path)
      return np.load(path)

  def contestant(self, name: str) -> Contestant:
    def turn(calls):
      return self._worker.ask_json(do='turn', name=name, calls=calls)

    return Contestant(turn, self._worker.pid)

  def _works(self, name):
    try:
      self._worker.ask_json(do='turn', name=name, calls=1)
      return True
    except RuntimeError as e:
      print(f'{name} does not take part: {e}', flush=True)
      return False


def interleave(
  contestants: dict[Hashable, Contestant], rounds: int, budget: float
) -> dict[Hashable, np.ndarray]:
  """Seconds a call: {name: [rounds]}, each round in another order.

  Args:
    contestants: who takes part.
    rounds: turns of each.
    budget: seconds of a turn; one call, if that takes longer. A third of it is spent
      on warming up before each turn. Whoever needs a hundred times as long for one
      call has one turn, which stands for all.
  """
  calls, took = {}, {}
  pids = {who.pid for who in contestants.values()}
  for name, who in contestants.items():
    _wait_until_still(who.pid)
    who.turn(1)  # compiles, allocates
    seconds = who.turn(1)
    if seconds > 100 * budget and name not in RATES:
      took[name] = [seconds] * rounds
      continue
    seconds = min(seconds, who.turn(1))
    calls[name] = int(np.clip(budget / max(seconds, 1e-9), 1, 1000))
    took[name] = []
  names = list(calls)
  for i in range(rounds):
    # Who runs after whom makes a difference.
    for j in np.random.default_rng(i).permutation(len(names)):
      name = names[j]
      for pid in pids:
        _wait_until_still(pid)
      # Its threads wake up, and caches come to hold what it reads itself: where that
      # is much, not in one call.
      contestants[name].turn(1 + calls[name] // 3)
      took[name].append(contestants[name].turn(calls[name]))
  return {name: np.array(t) for name, t in took.items()}


def _wait_until_still(pid: int, pause: float = 5e-4, patience: float = 0.5):
  """Waits until threads of a process, but for this one, use no CPU."""
  end = time.monotonic() + patience
  before = _ran(pid)
  while time.monotonic() < end:
    time.sleep(pause)
    now = _ran(pid)
    if now - before < 1e5:  # nanoseconds
      return
    before = now


def _ran(pid: int) -> int:
  """Nanoseconds that the threads of a process, but for this one, have run."""
  total, me = 0, str(threading.get_native_id())
  for path in glob.glob(f'/proc/{pid}/task/*/schedstat'):
    if path.split('/')[4] == me:
      continue
    try:
      with open(path) as f:
        total += int(f.read().split()[0])
    except OSError:  # it ended
      pass
  return total
