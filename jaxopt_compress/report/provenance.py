"""Where the figures of a report come from."""

import os
import platform
import shlex
import sys

import jax


def environment() -> dict[str, str | int]:
  """The versions, the devices and the command of this process."""
  devices = jax.devices()
  return {
    'command': _command(),
    'python': platform.python_version(),
    'jax': jax.__version__,
    'backend': jax.default_backend(),
    'device': devices[0].device_kind,
    'devices': len(devices),
    # What this process may use: a container often has fewer than the machine.
    'cores': len(os.sched_getaffinity(0))
    if hasattr(os, 'sched_getaffinity')
    else os.cpu_count() or 0,
    'system': f'{platform.system()} {platform.machine()}',
  }


def _command() -> str:
  """As typed: `python -m launch.main ...`, not the path that it resolves to."""
  first, *rest = sys.orig_argv or sys.argv or ['']
  return shlex.join([os.path.basename(first), *rest])
