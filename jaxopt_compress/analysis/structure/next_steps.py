"""What to do about channels that have to stay.

>>> of('a:-1', 'the size of a result')
"open the boundary by structure.opened('a:-1')"
>>> of('a:-1', 'my_kernel at model.py:3 (f)')
'write it of jax.numpy, as nobody knows the axes of my_kernel, or keep them'
"""

from jaxopt_compress.analysis.structure import numbering
from jaxopt_compress.analysis.structure import numbers

# What reasons that are no operations begin with.
_STEPS = {
  'its parts': 'build the model with other sizes, or keep them',
  'a constant': 'make it of the sizes of parameters, or keep them',
  'one part of a block': 'put the block into a module of its own, or keep them',
  'one for each device': 'use another mesh, or keep them',
}


def of(name: str, why: str) -> str:
  """The next step for a group that is locked for a reason."""
  if why in numbering.BOUNDARY:
    return f'open the boundary by structure.opened({name!r})'
  for words, step in _STEPS.items():
    if why.startswith(words):
      return step
  operation, _, rest = why.partition(' ')
  if not rest.startswith('at '):
    return 'keep them'
  if operation in numbers.RULES:
    return f'write it without {operation} along them, or keep them'
  return f'write it of jax.numpy, as nobody knows the axes of {operation}, or keep them'


def said(name: str, locked: tuple[str, ...]) -> str:
  """Why a group has to stay, and the next step for each reason."""
  whys = '; '.join(f'{why}, so {of(name, why)}' for why in locked)
  return f'{name} has to stay as it is: {whys}.'
