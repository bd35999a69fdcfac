"""`jaxopt-compress init`: a commented config to start from.

Each kind is a file of `starts`, which runs as it is, or of the configs that are shipped.
"""

from collections.abc import Sequence
import pathlib

from jaxopt_compress.command import shipped
from jaxopt_compress.core import choices

STARTS = pathlib.Path(__file__).with_name('starts')
_KIND = 'images'


def kinds() -> list[str]:
  """What can be asked for besides the names that are shipped.

  >>> kinds()
  ['arrays', 'images', 'text']
  """
  return sorted(p.stem for p in STARTS.glob('*.py') if p.stem != '__init__')


def begin(words: Sequence[str]) -> str:
  """What to print after `init`: the config, or what to do with the file written.

  Args:
    words: a kind, a file to write, both or none.

  Raises:
    ValueError: a word that is neither, two of one sort, or a file that is there.
  """
  files = [word for word in words if word.endswith('.py')]
  asked = [word for word in words if not word.endswith('.py')]
  for what, found in (('file', files), ('kind', asked)):
    if len(found) > 1:
      raise ValueError(
        f'init has the {what}s {" and ".join(found)}; one is expected.'
      )
  there = (*kinds(), *shipped.names())
  # Who writes text.py means the text.
  called = [stem for f in files if (stem := pathlib.Path(f).stem) in there]
  kind = [*asked, *called, _KIND][0]
  if kind not in there:
    raise ValueError(
      f'{kind!r} is no kind of config.{choices.guess(kind, there)} There are'
      f' {", ".join(there)}. The name of a file to write ends in .py.'
    )
  own = kind in kinds()
  text = ((STARTS if own else shipped.folder()) / f'{kind}.py').read_text()
  if not own:
    # Its command is that of a clone, and not everybody is in one.
    text = text.replace('python -m launch.main', 'jaxopt-compress')
    text = text.replace(f'configs/{kind}.py', files[0] if files else kind)
  if not files:
    return text
  file = pathlib.Path(files[0])
  if own:
    # The file says how it is run, and finds what it defines by its own name.
    text = text.replace(f'{kind}.py', str(file))
    text = text.replace(f"'{kind}:", f"'{file.stem}:")
  try:
    # Fails where there is one, whoever made it meanwhile.
    with file.open('x') as f:
      f.write(text)
  except FileExistsError as e:
    raise ValueError(
      f'{file} is there, and stays as it is. Choose another name.'
    ) from e
  return (
    f'{file} is written, from {kind!r}. Read it, put your own things into it, then see whether all'
    f' fits together:\n\n  jaxopt-compress --config={file} --workdir=/tmp/'
    f'{file.stem} --dry_run\n\nWithout --dry_run it runs; `{file}:runlocal` is a run'
    ' of seconds.\n'
  )
