"""Latency, measured so that programs can be compared.

Programs run interleaved, A B C A B C ..., so that other load on the machine slows all
of them alike. A speed is the median over rounds of the ratio within one round. Quick
programs run several calls in a burst, so that neither the resolution of the clock nor
caches left by the program before decide. Weights are arguments: as constants, XLA on
CPU would fold int8 back to float32 before the first call.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from jaxopt_compress.report import records

Programs = Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]]


def measure(
  programs: Programs,
  *,
  against: str | None = None,
  warmup: int = 3,
  repeats: int = 20,
  burst: float = 2e-3,
  seconds: float = 0.5,
  max_repeats: int = 1000,
  clock: Callable[[], float] = time.perf_counter,
) -> dict[str, records.Timing]:
  """Times each `jit(fun)(*args)`, all of them in one run.

  Args:
    programs: `{name: (fun, args)}`; parameters belong in `args`.
    against: the name of the float program that speeds are relative to.
    warmup: uncounted calls of each program, after the one that compiles.
    repeats: the least number of rounds.
    burst: about how many seconds a turn of one program lasts; at least one call.
    seconds: rounds go on for this long, but no more than `max_repeats` of them.
    clock: returns the time in seconds.

  Returns:
    `{name: Timing}`.
  """
  if against is not None and against not in programs:
    raise ValueError(
      f'No program {against!r} to compare with. Programs: {sorted(programs)}.'
    )
  turns = {}
  for name, (fun, args) in programs.items():
    call = _call(fun, args)
    # The first call compiles, so the quickest says how many fit into a burst.
    quickest = min(_time(call, 1, clock) for _ in range(1 + max(warmup, 1)))
    turns[name] = call, max(1, round(burst / max(quickest, 1e-6)))
  rounds = {name: [] for name in turns}
  begin = clock()
  for i in range(max(repeats, max_repeats)):
    if i >= repeats and clock() - begin >= seconds:
      break
    for name, (call, calls) in turns.items():
      rounds[name].append(_time(call, calls, clock))
  reference = rounds.get(against)
  return {n: _timing(took, reference, against) for n, took in rounds.items()}


def by_batch(
  programs: Callable[[int], Programs],
  batches: tuple[int, ...] = (1, 256),
  **kwargs,
) -> dict[str, dict[int, records.Timing]]:
  """`measure` at several batch sizes: `{name: {batch: Timing}}`.

  Args:
    programs: a function of the batch size; see `measure`.
    batches: batch sizes.
    **kwargs: passed to `measure`.
  """
  out = {}
  for batch in batches:
    for name, timing in measure(programs(batch), **kwargs).items():
      out.setdefault(name, {})[batch] = timing
  return out


def _call(fun, args):
  jitted = jax.jit(fun)
  args = jax.device_put(args)
  return lambda: jax.block_until_ready(jitted(*args))


def _time(call, calls, clock) -> float:
  """Seconds of one call, the mean over a burst."""
  start = clock()
  for _ in range(calls):
    call()
  return (clock() - start) / calls


def _timing(took, reference, against) -> records.Timing:
  low, median, high = (1e3 * t for t in _quartiles(took))
  timing = records.Timing(median, low, high, repeats=len(took))
  if reference is None:
    return timing
  # A clock too coarse to measure a call must not cause a division by zero.
  own = np.maximum(took, 1e-9)
  speed_low, speed, speed_high = _quartiles(np.maximum(reference, 1e-9) / own)
  return dataclasses.replace(
    timing,
    against=against,
    speed=speed,
    speed_low=speed_low,
    speed_high=speed_high,
  )


def _quartiles(x) -> list[float]:
  return [float(q) for q in np.percentile(np.asarray(x), [25, 50, 75])]
