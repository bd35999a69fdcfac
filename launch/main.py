"""Runs a config: python -m launch.main --config=configs/digits.py --workdir=/tmp/digits

Run the same command again to go on with a run that was stopped. Exit codes: 0 done,
2 a mistake that the message names, 75 stopped by SIGTERM and saved, run it again.
"""

import sys
import traceback

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from jaxopt_compress.parallel import cluster
from jaxopt_compress.train import loop
from jaxopt_compress.train import preemption

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'File of get_config(arg), as in configs/digits.py:runlocal.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of checkpoints, metrics and the report.'
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Build and check everything, print it, and stop.'
)
_TRACEBACK = flags.DEFINE_bool(
  'traceback', False, 'Show where a mistake was noticed, not only which it is.'
)
flags.mark_flags_as_required(['config', 'workdir'])


def main(argv):
  del argv
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells all it does
  try:
    cluster.initialize()
    loop.run(_CONFIG.value, _WORKDIR.value, dry_run=_DRY_RUN.value)
  except preemption.Preempted as e:
    print(e, file=sys.stderr)
    raise
  except ValueError as e:
    if _TRACEBACK.value:
      traceback.print_exc()
    print(f'Error: {e}\n(--traceback shows where.)', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  app.run(main)
