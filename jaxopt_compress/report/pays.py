"""What paid off and what did not, in plain words: the first lines of a report."""

from collections.abc import Mapping
from collections.abc import Sequence
import math

from jaxopt_compress.report import findings
from jaxopt_compress.report import records
from jaxopt_compress.report import table

WITHIN = 0.01  # of the reference's metric: what still counts as equally good
_FEWER = 1.05  # times fewer bytes count as fewer
_ZEROS = 0.2


def bar(reference: records.StageRecord) -> float | None:
  """The metric that a stage needs, to be within `WITHIN` of the reference.

  >>> bar(records.StageRecord('teacher', 0.9))
  0.891
  """
  if reference.value is None or not math.isfinite(reference.value):
    return None
  side = -1 if reference.higher_is_better else 1
  return reference.value + side * WITHIN * abs(reference.value)


def smallest(
  stages: Sequence[records.StageRecord], reference: str = ''
) -> tuple[records.StageRecord | None, records.StageRecord | None]:
  """The smallest stage that is about as good as the reference, and the reference.

  Args:
    stages: rows of the first table.
    reference: the name of the stage to compare with; '': the first.

  Returns:
    None for what there is not. The smallest has fewer bytes than the reference.
  """
  rows = _comparable(stages, reference)
  ref = rows[0] if rows else None
  good = [r for r in rows[1:] if _worse(r, ref) <= WITHIN * abs(ref.value)]
  good = [r for r in good if ref.bytes_memory > _FEWER * r.bytes_memory]
  found = min(
    good, key=lambda r: (r.bytes_memory, _worse(r, ref)), default=None
  )
  return found, ref


def best(stages: Sequence[records.StageRecord], reference: str = '') -> str:
  """The verdict, a sentence: see `smallest`. '' where nothing can be compared."""
  _, *others = _comparable(stages, reference) or [None]
  if not others:
    return ''
  found, ref = smallest(stages, reference)
  if found is not None:
    return (
      f'{found.name} is the smallest stage within {WITHIN:.0%} of {ref.name}:'
      f' {ref.bytes_memory / found.bytes_memory:.3g}x smaller'
      f' ({table.quantity(found.bytes_memory, "B")} instead of'
      f' {table.quantity(ref.bytes_memory, "B")}), {found.metric}'
      f' {_value(found)} instead of {_value(ref)}.'
    )
  said = (
    f'No stage is smaller than {ref.name} and within {WITHIN:.0%} of its'
    f' {ref.metric}, {_value(ref)}.'
  )
  smaller = [r for r in others if ref.bytes_memory > _FEWER * r.bytes_memory]
  top = min(others, key=lambda r: _worse(r, ref))
  if not smaller and -_worse(top, ref) > WITHIN * abs(ref.value):
    # Nothing was to become smaller: networks that grow, or rival losses.
    return (
      f'{top.name} has the best {ref.metric}, {_value(top)}; {ref.name} has'
      f' {_value(ref)}.'
    )
  if smaller:
    near = min(smaller, key=lambda r: _worse(r, ref))
    said += (
      f' The closest, {near.name}, is'
      f' {ref.bytes_memory / near.bytes_memory:.3g}x smaller and has'
      f' {_value(near)}.'
    )
  return said


def unpaid(
  stages: Sequence[records.StageRecord],
  coverage: Mapping[str, Sequence[records.LeafRecord]],
  reference: str = '',
) -> dict[str, list[str]]:
  """`{stage: what did not pay there}`, for the stages of which that can be said."""
  rows = _comparable(stages, reference)
  ref = rows[0] if rows else None
  found = {}
  for stage in stages:
    said = _not_finite(stage)
    if ref is not None and stage in rows[1:]:
      said += _lost(stage, ref) + _masked(stage, ref)
    said += _slow(stage, stages) + _dense(coverage.get(stage.name, ()))
    if said:
      found[stage.name] = said
  return found


def _comparable(stages, reference):
  """The reference, then the stages that have its metric, and bytes."""
  known = [
    r
    for r in stages
    if r.value is not None and math.isfinite(r.value) and r.bytes_memory
  ]
  asked = [r for r in known if r.name == reference] or known[:1]
  if reference and asked and asked[0].name != reference:
    return []
  same = [r for r in known if asked and r.metric == asked[0].metric]
  return asked + [r for r in same if r is not asked[0]]


def _worse(stage, other) -> float:
  """By how much a stage is worse than another; below 0 it is better."""
  side = 1 if other.higher_is_better else -1
  return side * (other.value - stage.value)


def _value(stage) -> str:
  return table.number(stage.value, stage.spec)


def _not_finite(stage):
  if stage.value is None or math.isfinite(stage.value):
    return []
  return [f'its {stage.metric} is {table.number(stage.value, "")}']


def _lost(stage, ref):
  if _worse(stage, ref) <= WITHIN * abs(ref.value):
    return []
  return [
    f'its {stage.metric} is {_value(stage)}, that of {ref.name} {_value(ref)}'
  ]


def _masked(stage, ref):
  """Zeros that take as many bytes as other numbers."""
  more = (stage.sparsity or 0.0) - (ref.sparsity or 0.0)
  if more < _ZEROS or ref.bytes_memory > _FEWER * stage.bytes_memory:
    return []
  said = (
    f'{stage.sparsity:.0%} of its weights are zero and take memory all the same'
  )
  if stage.bytes_disk and ref.bytes_disk:
    ratio = ref.bytes_disk / stage.bytes_disk
    if ratio > _FEWER:
      said += f' (its file is {ratio:.3g}x smaller)'
  return [said]


def _slow(stage, others):
  """Where it is not faster than a stage of more bytes, or of fewer zeros."""
  by_name = {r.name: r for r in others}
  timed = {
    batch: t
    for batch, t in sorted(stage.latency.items())
    if t.speed is not None
    and math.isfinite(t.speed)
    and t.against != stage.name
    and _compressed(stage, by_name.get(t.against))
  }
  said = []
  for word, tells in (
    ('slower', 'it is slower than {}'),
    ('same', 'its speed is that of {}, within the noise'),
  ):
    at = {b: t for b, t in timed.items() if findings.verdict(t) == word}
    if at:
      against = next(iter(at.values())).against
      listed = ', '.join(f'{t.speed:.2f}x at batch {b}' for b, t in at.items())
      said.append(f'{tells.format(against)}: {listed}')
  return said


def _compressed(stage, other) -> bool:
  """Whether less is there than of another, so that speed was to be hoped for."""
  if other is None or not stage.bytes_memory or not other.bytes_memory:
    return True
  zeros = (stage.sparsity or 0.0) - (other.sparsity or 0.0)
  return other.bytes_memory > _FEWER * stage.bytes_memory or zeros >= _ZEROS


def _dense(leaves):
  seen = [r for r in leaves if r.native is not None]
  dense = [r for r in seen if not r.native]
  if not dense:
    return []
  return [
    f'{len(dense)} of its {len(seen)} compressed leaves are made dense before use,'
    ' and save storage only'
  ]
