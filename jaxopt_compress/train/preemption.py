"""Being asked to stop: save first, then exit with a code that says "again".

One process catches SIGTERM itself. Where `jax.distributed` runs, JAX has caught it
already, and all processes must agree on the step at which they stop.
"""

import signal

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


class Watch:
  """Catches SIGTERM between `with Watch() as watch:` and its end.

  A second SIGTERM ends the process at once.

  Args:
    saved: there is nothing to save, so SIGTERM raises `Preempted` where it comes.
  """

  def __init__(self, saved: bool = False):
    self._saved = saved
    self._asked = False
    self._polls = 0
    self._previous = None

  def __enter__(self):
    if not jax.distributed.is_initialized():
      self._previous = signal.signal(signal.SIGTERM, self._handle)
    return self

  def __exit__(self, *unused_exc):
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def _handle(self, signum, frame):
    del frame
    self._asked = True
    signal.signal(signum, signal.SIG_DFL)
    if self._saved:
      raise Preempted('Stopped; all stages are saved.')

  def requested(self) -> bool:
    """Whether to stop now. Every process must ask, equally often."""
    # Processes agree on a number at which to stop, so it must rise from call to
    # call, over all stages.
    self._polls += 1
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(self._polls)
    return self._asked
