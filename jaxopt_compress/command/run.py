"""Runs the config that the flags name, and says what went wrong in one line.

Exit codes: 0 done; 2 a mistake, which the only line on stderr names; 75 stopped by SIGTERM or
Ctrl-C and saved, run it again; 130 stopped by Ctrl-C before there was anything to save
(while Python still imports, it ends as Python does).
"""

import os
import signal
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from jaxopt_compress.command import mistakes
from jaxopt_compress.command import shipped
from jaxopt_compress.parallel import cluster
from jaxopt_compress.train import loop
from jaxopt_compress.train import preemption

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'A file of get_config(arg), or the name of one that is shipped: digits:runlocal.',
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


def main() -> None:
  """Parses `sys.argv` and runs; ends the process."""
  app.run(_run, flags_parser=parse)


def _run(argv):
  del argv
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
    _leave(text or mistakes.said(e), e, _TRACEBACK.value)


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
    _find_config(argv)
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
    _leave(mistakes.explain(e, argv), e, '--traceback' in argv)
  return argv[:1]


def _find_config(argv):
  """Has `--config` name the file, which is what ml_collections reads."""
  for i, flag in enumerate(argv):
    name, equals, word = flag.partition('=')
    if name in ('-config', '--config'):
      # The value may be a word of its own.
      words = 1 if equals else 2
      word = word or ''.join(argv[i + 1 : i + words])
      if word:
        file = shipped.path(word)
        argv[i : i + words] = [f'--config={file}']
        # What lies beside a config is found last: it hides nothing.
        sys.path.append(os.path.dirname(os.path.abspath(file)))
      return


def _leave(text, error, show):
  mistakes.leave(f'{text} (--traceback shows where.)', error if show else None)
