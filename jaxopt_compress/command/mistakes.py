"""What a mistake on the command line, or in a config, is called: in one line."""

from collections.abc import Iterator
from collections.abc import Sequence
import errno
import os
import pathlib
import shutil
import sys
import traceback
from typing import NoReturn

from absl import flags
from ml_collections import config_flags

from jaxopt_compress.core import choices

# What JAX says of a machine, and what to do about it.
_LIMITS = {
  'RESOURCE_EXHAUSTED': (
    'Choose smaller batches or a smaller model, or more devices.'
  ),
  'Unable to initialize backend': 'Set JAX_PLATFORMS to one that is there.',
}
# The modules of what setup.py lists as extras.
_EXTRAS = {
  'examples': ('flatbuffers', 'grain', 'PIL', 'safetensors', 'sklearn', 'tqdm'),
  'tensorboard': ('tensorboardX',),
}


def explain(error: BaseException, argv: Sequence[str]) -> str:
  """One line on why flags could not be parsed, or why a run could not go on.

  Args:
    error: what was raised.
    argv: the command line.
  """
  file = _config_file(argv)
  chain = _chain(error)
  for e in chain:
    if file and (line := _line_of(e, file)):
      return f'{file}, line {line}: {type(e).__name__}: {said(e)}'
  if file and 'get_config' in str(chain[0]):
    return (
      f'{file} has no get_config(arg) to call: {said(chain[0])}.'
      ' `jaxopt-compress init` prints a config that has one.'
    )
  if file and isinstance(chain[0], (AttributeError, KeyError)):
    for key in _overridden(argv):
      if wrong := _wrong_key(key, _config(argv)):
        return wrong
  return said(error)


def of_the_machine(error: BaseException, workdir: str) -> str:
  """What the machine has no more of, in whichever words a library put it; or ''."""
  texts = [str(e) for e in _chain(error)]
  for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    if any(os.strerror(code) in text for text in texts):
      above = [pathlib.Path(workdir), *pathlib.Path(workdir).absolute().parents]
      free = shutil.disk_usage(next(p for p in above if p.exists())).free
      return (
        f'{os.strerror(code)}: {workdir} has {free:,} bytes left. What was saved'
        ' is kept: make room, and run the same command again.'
      )
  for words, advice in _LIMITS.items():
    if any(words in text for text in texts):
      return f'{said(error)} {advice}'
  return ''


def said(error: BaseException) -> str:
  """The message of an error without its line breaks."""
  text = error
  if isinstance(error, SyntaxError):
    text = error.msg  # Without the line, which is said already.
  elif isinstance(error, KeyError) and error.args:
    text = error.args[0]  # Without quotes around it.
  elif isinstance(error, ModuleNotFoundError) and (extra := _extra(error)):
    text = f"{error}. Run pip install 'jaxopt_compress[{extra}]'."
  return ' '.join(str(text).split()) or type(error).__name__


def leave(text: str, show: BaseException | None = None) -> NoReturn:
  """Ends the process with code 2 and a line, the traceback of `show` above it."""
  if show is not None:
    traceback.print_exception(show)
  print(f'Error: {text}', file=sys.stderr)
  sys.exit(2)


def _extra(error) -> str:
  """The extra of ours that brings a module that was not found, or ''."""
  name = (error.name or '').partition('.')[0]
  return next((e for e, names in _EXTRAS.items() if name in names), '')


def _config_file(argv) -> str:
  """The file of --config, without what follows a colon."""
  return _value_of('config', argv).partition(':')[0]


def _value_of(name, argv):
  for flag, after in zip(argv, [*argv[1:], ''], strict=True):
    for dashes in ('-', '--'):
      if flag == f'{dashes}{name}':
        return after
      if flag.startswith(f'{dashes}{name}='):
        return flag.partition('=')[2]
  return ''


def _chain(error):
  """The error that came first, then those which libraries raised in its place."""
  before = error.__cause__ or error.__context__
  return [*(_chain(before) if before else ()), error]


def _line_of(error, file):
  """The last line of the config that an error went through; 0: none."""
  if isinstance(error, SyntaxError):
    return error.lineno if error.filename == file else 0
  frames = traceback.extract_tb(error.__traceback__)
  return next((f.lineno for f in reversed(frames) if f.filename == file), 0)


def _config(argv):
  """What the config says without what the flags change."""
  values, argv = (
    flags.FlagValues(),
    ['', f'--config={_value_of("config", argv)}'],
  )
  config = config_flags.DEFINE_config_file(
    'config', flag_values=values, sys_argv=argv
  )
  values(argv)
  return config.value


def _overridden(argv) -> Iterator[str]:
  """The keys of `--config.<key>=<value>`."""
  for flag in argv:
    name = flag.lstrip('-').partition('=')[0]
    if flag.startswith('-') and name.startswith('config.'):
      yield name.removeprefix('config.')


def _wrong_key(key, config):
  """What is wrong with a key of a config; '' if it is there."""
  where = 'config'
  for word in key.split('.'):
    there = list(config) if hasattr(config, 'keys') else []
    if word not in there:
      return (
        f'{where} has no {word!r}.{choices.guess(word, there)} It has'
        f' {", ".join(sorted(there)) or "no keys"}. What it shall have besides is'
        ' written into the file.'
      )
    where, config = f'{where}.{word}', config[word]
  return ''
