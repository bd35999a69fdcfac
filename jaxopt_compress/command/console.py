"""Quantise, prune and distil networks: a config in, a report out.

  jaxopt-compress --config=digits --workdir=/tmp/digits      run one that is shipped
  jaxopt-compress init my_config.py                          write one of your own
  jaxopt-compress --config=my_config.py --workdir=/tmp/mine  run it

Give the same command again to go on with a run that was stopped. It ends with a
report, report.html, in the workdir.

Flags
  --config=FILE.py or NAME   what to do; ':runlocal' behind it is a tiny version that
                             ends in seconds
  --config.KEY=VALUE         change a value: --config.stage.teacher.steps=100
  --workdir=FOLDER           checkpoints, metrics, exports and the report
  --dry_run                  build and check everything, print it, and stop
  --traceback                show where a mistake was noticed, not only which it is
  --coordinator=HOST:PORT --num_processes=N --process_id=I
                             of several processes, where they are not found by
                             themselves
  --helpfull                 all flags, those of absl and JAX too

A config to start from: jaxopt-compress init [KIND or NAME] [FILE.py]
  images                     image files, a folder for each class
  arrays                     your own arrays and your own network
  text                       a language model of your files
  Without FILE.py it is printed. A file that is there is never overwritten.

Exit codes: 0 done; 2 a mistake, named on stderr in one line; 75 stopped and saved;
130 stopped before there was anything to save.
"""

import os
import sys
import textwrap

from jaxopt_compress.command import begin
from jaxopt_compress.command import mistakes
from jaxopt_compress.command import shipped

_HELP = ('-h', '--help', '-help', 'help')


def main() -> None:
  """What `jaxopt-compress` does with `sys.argv`."""
  words = sys.argv[1:]
  if not words or any(word in _HELP for word in words):
    print(page(), end='', file=sys.stdout if words else sys.stderr)
    sys.exit(0 if words else 2)
  if words[0] == 'init':
    try:
      print(begin.begin(words[1:]), end='')
    except (ValueError, OSError) as e:
      mistakes.leave(mistakes.said(e))
    return
  # Networks and data of the user are found from here, as `python -m` finds them.
  if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  # Not on top: help need not wait for all that a run imports.
  try:
    from jaxopt_compress.command import run
  except ModuleNotFoundError as e:
    mistakes.leave(mistakes.said(e), e if '--traceback' in words else None)
  run.main()


def page() -> str:
  """What --help prints."""
  names = textwrap.fill(
    ', '.join(shipped.names()),
    width=86,
    initial_indent='  ',
    subsequent_indent='  ',
    break_on_hyphens=False,
  )
  return f'{__doc__}\nNames that are shipped, in {shipped.folder()}:\n{names}\n'
