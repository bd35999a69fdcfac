"""Where the figures of a report come from."""

import os
import pathlib
import platform
import shlex
import shutil
import socket
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


def opens(path: str | os.PathLike, environ=os.environ) -> str:
  """The line that opens a page: what a terminal follows, or what brings it here.

  >>> opens('/tmp/a b/report.html', {})
  'Report: file:///tmp/a%20b/report.html'
  """
  path = pathlib.Path(path).absolute()
  if not environ.get('SSH_CONNECTION'):
    return f'Report: {path.as_uri()}'
  there = shlex.quote(f'{socket.gethostname()}:{path}')
  return f'Report: {path} (one file: `scp {there} .` brings it to you)'


def _command() -> str:
  """As typed: `python -m launch.main ...`, not the path that it resolves to."""
  first, *rest = sys.orig_argv or sys.argv or ['']
  # A console script is called by its name; the system puts Python before it.
  if rest and rest[0] == shutil.which(os.path.basename(rest[0])):
    first, *rest = rest
  return shlex.join([os.path.basename(first), *rest])
