"""Starts JAX's multi-process runtime, and says where its settings came from.

In order: arguments (flags), the environment, JAX's own detection of the cluster
(SLURM, Open MPI before 5, Kubernetes, Cloud TPU), a single process.
"""

from collections.abc import Mapping
import os

from absl import logging
import jax

# Ours first, then those of launchers that JAX 0.10 does not detect: Open MPI 5
# renamed the variable that JAX looks for (jax-ml/jax#40512).
_COORDINATOR = ('JAXOPT_COORDINATOR', 'JAX_COORDINATOR_ADDRESS')
_NUM_PROCESSES = ('JAXOPT_NUM_PROCESSES', 'OMPI_COMM_WORLD_SIZE')
_PROCESS_ID = ('JAXOPT_PROCESS_ID', 'OMPI_COMM_WORLD_RANK')
# Where one of these is set, JAX finds the coordinator and the processes by itself.
_DETECTABLE = (
  'SLURM_STEP_NODELIST',
  'OMPI_MCA_orte_hnp_uri',
  'TPU_WORKER_HOSTNAMES',
  'MEGASCALE_COORDINATOR_ADDRESS',
)


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> str:
  """Starts the runtime once; later calls do nothing.

  Call it before anything asks for devices. On a cluster that JAX detects, or with
  one process, it needs no arguments.

  Args:
    coordinator: 'host:port' of process 0.
    num_processes: how many processes there are.
    process_id: which one this is, from 0.

  Returns:
    What was chosen: 'already running', 'arguments', 'environment', 'detected' or
    'single process'.

  Raises:
    ValueError: some of the three are known and others are not.
  """
  if jax.distributed.is_initialized():
    return 'already running'
  choice, kwargs = choose(coordinator, num_processes, process_id, os.environ)
  # A single process is not asked for its index: that would start the backend, which
  # the caller may still want to configure.
  index, count = 0, 1
  if choice != 'single process':
    jax.distributed.initialize(**kwargs)
    index, count = jax.process_index(), jax.process_count()
  logging.info('Cluster: %s; process %d of %d.', choice, index, count)
  return choice


def choose(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  environ: Mapping[str, str],
) -> tuple[str, dict[str, str | int]]:
  """What `initialize` would choose, and with which arguments; starts nothing.

  >>> choose(None, None, None, {})
  ('single process', {})
  >>> choose('a:1', 2, 0, {})[0]
  'arguments'
  """
  given = (coordinator, num_processes, process_id)
  found = (
    _first(environ, _COORDINATOR),
    _number(environ, _NUM_PROCESSES),
    _number(environ, _PROCESS_ID),
  )
  facts = tuple(
    f if g is None else g for g, f in zip(given, found, strict=True)
  )
  if any(g is not None for g in given):
    return 'arguments', _complete(facts)
  if found[0] is not None and found[1] is not None:
    return 'environment', _complete(facts)
  if any(name in environ for name in _DETECTABLE) and _many(environ):
    return 'detected', {}
  # Several processes and nobody to coordinate them: the error says what is missing.
  if found[1] is not None and found[1] > 1:
    return 'environment', _complete(facts)
  return 'single process', {}


def _many(environ) -> bool:
  """A SLURM step of one task is a single process, not a cluster."""
  return environ.get('SLURM_NTASKS', '2') != '1'


def _complete(facts):
  names = ('coordinator', 'num_processes', 'process_id')
  missing = [n for n, f in zip(names, facts, strict=True) if f is None]
  if missing:
    raise ValueError(
      f'A multi-process run needs {", ".join(names)}; {", ".join(missing)} is'
      ' not known. Give it as a flag, or set'
      f' {_COORDINATOR[0]}, {_NUM_PROCESSES[0]} and {_PROCESS_ID[0]}.'
    )
  coordinator, num_processes, process_id = facts
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f'process_id {process_id} is not in [0, {num_processes}). Number the'
      ' processes from 0.'
    )
  return dict(
    coordinator_address=coordinator,
    num_processes=num_processes,
    process_id=process_id,
  )


def _first(environ, names):
  return next((environ[n] for n in names if environ.get(n)), None)


def _number(environ, names):
  text = _first(environ, names)
  if text is not None and not text.isdigit():
    raise ValueError(f'{" or ".join(names)} must be a number, not {text!r}.')
  return None if text is None else int(text)
