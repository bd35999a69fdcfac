"""Being asked to stop: save first, then exit with a code that says "again".

SIGTERM asks, and so does Ctrl-C (SIGINT). Where `jax.distributed` runs, JAX has caught
SIGTERM already, and all processes must agree on the step at which they stop.
"""

import contextlib
import os
import signal
import sys

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: saved and not finished, run the same command again.
# It is not 143, which is what a process that died of SIGTERM unsaved shows.
EXIT_CODE = 75


class Preempted(SystemExit):
  """Raised after saving; ends the process with `EXIT_CODE`."""

  def __init__(self, message: str):
    super().__init__(EXIT_CODE)
    self.message = message

  def __str__(self):
    return self.message


def leave(message: str, code: int) -> None:
  """Ends the process from the handler of a signal, with a line on stderr.

  A handler that raises is not always heard: Python drops what is raised while it
  collects garbage, and JAX has it call back just then.
  """
  # What was interrupted may be printing: then the buffer cannot be had.
  with contextlib.suppress(RuntimeError, OSError, ValueError):
    sys.stdout.flush()
  os.write(2, f'{message}\n'.encode())
  os._exit(code)


class Watch:
  """Catches SIGTERM and SIGINT between `with Watch() as watch:` and its end.

  The same signal again ends the process at once.

  Args:
    saved: there is nothing to save, so a signal ends the process with `EXIT_CODE`.
  """

  def __init__(self, saved: bool = False):
    self._saved = saved
    self._asked = False
    self._polls = 0
    self._previous = {}

  def __enter__(self):
    signals = [signal.SIGINT]
    if not jax.distributed.is_initialized():
      signals.append(signal.SIGTERM)
    # Scripts start what runs in the background with SIGINT ignored: it stays so.
    for signum in signals:
      if signal.getsignal(signum) != signal.SIG_IGN:
        self._previous[signum] = signal.signal(signum, self._handle)
    return self

  def __exit__(self, *unused_exc):
    for signum, handler in self._previous.items():
      if handler is not None:  # it was not set from Python
        signal.signal(signum, handler)

  def _handle(self, signum, frame):
    del frame
    self._asked = True
    signal.signal(signum, signal.SIG_DFL)
    if self._saved:
      leave('Stopped; all stages are saved.', EXIT_CODE)
    if signum == signal.SIGINT:
      # Not print: what was interrupted may be printing.
      os.write(2, b'\nSaving after this step; Ctrl-C again stops at once.\n')
      if jax.distributed.is_initialized():
        signal.raise_signal(signal.SIGTERM)  # JAX tells the other processes

  def requested(self) -> bool:
    """Whether to stop now. Every process must ask, equally often."""
    # Processes agree on a number at which to stop, so it must rise from call to
    # call, over all stages.
    self._polls += 1
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(self._polls)
    return self._asked
