"""Runs a config: python -m launch.main --config=configs/digits.py --workdir=/tmp/digits

Run the same command again to go on with a run that was stopped. Any value of a config
can be given as a flag: --config.stage.teacher.steps=100 --config.run.tensorboard=1

Exit codes: 0 done; 2 a mistake, which the only line on stderr names; 75 stopped by SIGTERM or
Ctrl-C and saved, run it again; 130 stopped by Ctrl-C before there was anything to save
(while Python still imports, it ends as Python does).
"""

import signal
import sys
import traceback

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from jaxopt_compress.parallel import cluster
from jaxopt_compress.train import loop
from jaxopt_compress.train import preemption
from launch import mistakes

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'File of get_config(arg), as in configs/digits.py:runlocal.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of checkpoints, metrics and the report.'
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Build and check everything, print it, and stop.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'host:port of process 0, where it cannot be detected.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which one this is.')
_TRACEBACK = flags.DEFINE_bool(
  'traceback', False, 'Show where a mistake was noticed, not only which it is.'
)

# Other errors are ours, and show where they were raised.
_MISTAKES = (ValueError, OSError, ImportError, MemoryError)


def main(argv):
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().addFilter(_of_others)
  # Scripts start what runs in the background with SIGINT ignored: it stays so.
  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, _interrupted)
  try:
    cluster.initialize(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
    loop.run(_CONFIG.value, _WORKDIR.value, dry_run=_DRY_RUN.value)
  except preemption.Preempted as e:
    print(e, file=sys.stderr)
    raise
  except Exception as e:
    text = mistakes.of_the_machine(e, _WORKDIR.value)
    if not text and not isinstance(e, _MISTAKES):
      raise
    _fail(e, text or mistakes.said(e), _TRACEBACK.value)


def _interrupted(signum, frame):
  del signum, frame
  preemption.leave('Stopped; there was nothing to save.', 130)


def _of_others(record):
  """Whether it is not Orbax that logs: what fails there is raised as well."""
  return 'orbax' not in record.pathname


def parse(argv):
  """Parses flags; whatever is wrong with a config is a mistake like others."""
  logging.set_verbosity(logging.ERROR)  # What is wrong is said once, below.
  try:
    _, *more = flags.FLAGS(argv)
    if more:
      raise ValueError(f'{more[0]!r} is no flag. Write --flag=value.')
    for flag in (_CONFIG, _WORKDIR):
      if not flag.present or f'--{flag.name}=' in argv:
        raise ValueError(
          f'--{flag.name} is missing. {flags.FLAGS[flag.name].help}'
        )
    hasattr(_CONFIG.value, 'keys')  # A file that was not found raises here.
  except Exception as e:
    _fail(e, mistakes.explain(e, argv), '--traceback' in argv)
  return argv[:1]


def _fail(error, text, show):
  if show:
    traceback.print_exception(error)
  print(f'Error: {text} (--traceback shows where.)', file=sys.stderr)
  sys.exit(2)


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
