"""Which channels of a network went: records of the groups of a plan, and strips of them.

mlp/up/kernel:-1   8 -> 5   █·██·█·█
"""

from collections.abc import Sequence

import numpy as np

from jaxopt_compress.analysis.plan import plan as plan_lib
from jaxopt_compress.report import records

_SHADES = '·░▒▓█'  # none of the channels there, some, most, all


def groups(plan: plan_lib.Plan) -> list[records.GroupRecord]:
  """A record for each group that a plan changes, in the order of the tree.

  >>> from jaxopt_compress.analysis.structure import structure as structure_lib
  >>> f = lambda p, x: (x @ p['a']) @ p['b']
  >>> p = {'a': np.ones((1, 3)), 'b': np.ones((3, 1))}
  >>> found = structure_lib.structure(f)(p, np.ones((1, 1)))
  >>> (record,) = groups(plan_lib.Plan(found, {'a:-1': [0, 2]}))
  >>> record.before, record.after, record.kept
  (3, 2, (1.0, 0.0, 1.0))
  """
  found = []
  for name, group in plan.structure.groups.items():
    if name not in plan.sources or plan.sizes[name] == group.size:
      continue
    source = plan.sources[name]
    found.append(
      records.GroupRecord(
        name,
        before=group.size,
        after=plan.sizes[name],
        kept=tuple(_kept(source, group.size).tolist()),
        asked=plan.asked.get(name),
        leaves=len(plan.structure.members(name)),
        inexact=group.inexact,
      )
    )
  return found


def strip(kept: Sequence[float], width: int = 32) -> str:
  """Channels as shades: '█' where all of a stretch stay, '·' where none does.

  Args:
    kept: of each channel, how much of it stays.
    width: the most characters; of more channels several share one.

  >>> strip([1, 0, 1, 1]), strip([1, 0, 1, 1], width=2)
  ('█·██', '▒█')
  """
  shares = [
    np.mean(part) for part in np.array_split(kept, min(len(kept), width))
  ]
  # Shades between the outer two are for what is neither none nor all.
  inner = len(_SHADES) - 2
  return ''.join(
    _SHADES[0]
    if share == 0
    else _SHADES[-1]
    if share == 1
    else _SHADES[1 + min(int(share * inner), inner - 1)]
    for share in shares
  )


def _kept(source, size) -> np.ndarray:
  """float [size]: where a group lies within others, for how many of these it stays."""
  rows = source.reshape(-1, source.shape[-1])
  kept = np.zeros(size)
  for row in rows:
    kept[np.unique(row)] += 1
  return kept / len(rows)
