"""Remarks beside the tables, computed from the records.

Compression that saves bytes is easily mistaken for compression that saves time. So
each measured stage gets a sentence that says which of the two it does on the machine
where it ran.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math

from jaxopt_compress.report import records

# Speeds closer to 1 than this count as equal, whatever their quartiles say.
_SAME = 0.05
_MANY_ZEROS = 0.2
_MOSTLY_ZEROS = 0.5
_NOISY_DB = 10.0


def remarks(
  stages: Sequence[records.StageRecord],
  coverage: Mapping[str, Sequence[records.LeafRecord]] | None = None,
  backend: str = 'unknown backend',
) -> list[str]:
  """Sentences on speed, zeros, densified leaves and doubtful numbers.

  Args:
    stages: rows of the first table.
    coverage: `{stage name: rows of its coverage table}`.
    backend: where latencies were measured, such as 'cpu'.
  """
  by_name = {s.name: s for s in stages}
  sentences = []
  for stage in stages:
    leaves = (coverage or {}).get(stage.name, ())
    sentences += _speed(stage, by_name, backend)
    sentences += _native(stage.name, leaves)
    sentences += _doubtful(stage, leaves)
  return sentences


def verdict(timing: records.Timing) -> str:
  """Whether it is 'faster', 'slower' or the 'same' as the program it ran against.

  The middle half of the rounds must agree, and the median differ by more than 5%.
  """
  # A timing without quartiles is judged by its median alone.
  low = timing.speed_low if timing.speed_low is not None else timing.speed
  high = timing.speed_high if timing.speed_high is not None else timing.speed
  if low > 1 and timing.speed > 1 + _SAME:
    return 'faster'
  if high < 1 and timing.speed < 1 - _SAME:
    return 'slower'
  return 'same'


def _speed(stage, by_name, backend):
  timed = {
    batch: t
    for batch, t in sorted(stage.latency.items())
    if t.speed is not None
    and math.isfinite(t.speed)
    and t.against != stage.name
  }
  if not timed:
    return []
  against = next(iter(timed.values())).against
  first, *others = [f'at batch {b}' for b in timed]
  speed, *speeds = [f'{t.speed:.2f}x' for t in timed.values()]
  more = ''.join(f', {s} {b}' for s, b in zip(speeds, others, strict=True))
  return [
    f'{stage.name}: {speed} the speed of {against} {first}{more} on this backend'
    f' ({backend}). {_conclusion(timed)}'
    + _bytes(stage, by_name.get(against))
    + _zeros(stage, by_name.get(against), timed)
  ]


def _conclusion(timed) -> str:
  verdicts = {str(batch): verdict(t) for batch, t in timed.items()}
  faster = [b for b, v in verdicts.items() if v == 'faster']
  slower = [b for b, v in verdicts.items() if v == 'slower']
  if len(faster) == len(timed):
    return 'It is faster.'
  if faster:
    return f'It is faster at batch {" and ".join(faster)} only.'
  if len(slower) == len(timed):
    return 'No speed-up: it is slower.'
  if slower:
    return f'No speed-up: it is slower at batch {" and ".join(slower)}.'
  return 'No speed-up: the difference is within the noise.'


def _bytes(stage, other) -> str:
  if other is None or not stage.bytes_memory or not other.bytes_memory:
    return ''
  ratio = other.bytes_memory / stage.bytes_memory
  if ratio > 1 + _SAME:
    return f' It occupies {ratio:.3g} times fewer bytes in memory.'
  if ratio < 1 - _SAME:
    return f' It occupies {1 / ratio:.3g} times more bytes in memory.'
  said = ' It occupies as many bytes in memory'
  disk = (other.bytes_disk or 0) / (stage.bytes_disk or math.inf)
  if disk > 1 + _SAME:  # zeros are left out there
    return f'{said}, and {disk:.3g} times fewer on disk.'
  return f'{said}.'


def _zeros(stage, other, timed) -> str:
  # Zeros that the other program has too explain no difference between them.
  before = (other.sparsity if other else None) or 0.0
  if stage.sparsity is None or stage.sparsity < before + _MANY_ZEROS:
    return ''
  if all(verdict(t) == 'faster' for t in timed.values()):
    return ''
  return (
    f' {stage.sparsity:.0%} of its parameters are zero, and the dense program'
    ' multiplies zeros like any number.'
  )


def _native(name, leaves):
  seen = [r for r in leaves if r.native is not None]
  dense = [r for r in seen if not r.native]
  if not seen:
    return []
  if not dense:
    return [f'{name}: all {len(seen)} compressed leaves run in their own form.']
  worst = max(dense, key=lambda r: math.prod(r.shape))
  return [
    f'{name}: {len(dense)} of {len(seen)} compressed leaves are turned into'
    f' dense arrays before use; the largest is {worst.path} ({worst.reason}).'
    ' Such a leaf saves storage only.'
  ]


def _doubtful(stage, leaves):
  sentences = []
  if stage.value is not None and not math.isfinite(stage.value):
    sentences.append(f'{stage.name}: {stage.metric} is {stage.value}.')
  # Leaves that were pruned on purpose differ from their originals by design. The
  # comparison is negated so that nan counts as noisy.
  noisy = [
    r
    for r in leaves
    if r.error_db is not None
    and not r.error_db >= _NOISY_DB
    and not (r.sparsity or 0) >= _MOSTLY_ZEROS
  ]
  if noisy:
    listed = ', '.join(f'{r.path} ({r.error_db:.1f} dB)' for r in noisy[:4])
    more = f' and {len(noisy) - 4} more' if len(noisy) > 4 else ''
    sentences.append(
      f'{stage.name}: less than {_NOISY_DB:.0f} dB are left of {listed}{more}.'
    )
  # `native` is None for every leaf if nobody asked which operations meet them.
  unused = [r.path for r in leaves if r.compressed and r.native is None]
  unused = unused if any(r.native is not None for r in leaves) else []
  if unused:
    sentences.append(f'{stage.name}: no operation meets {", ".join(unused)}.')
  return sentences
