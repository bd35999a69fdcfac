"""Exports finished stages, and has each checked by a process that knows only it.

The fresh process loads the directory, computes the first held-out batch, and what
it says is compared with what was evaluated. Equal is expected to the last bit but
not required: a program that is compiled for any batch size may add in another order.
It runs on the CPU, for which each program is exported beside this platform: an
accelerator may belong to this process alone.
"""

from collections.abc import Mapping
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
from jax import export as jax_export
import numpy as np

from jaxopt_compress.export import stablehlo

# Of the largest output. Integer activations round: where a float differs in its
# last bit, a code may be another one, and outputs move by a fraction of a step.
TOLERANCE = 1e-2


def export_and_check(
  directory: pathlib.Path,
  programs: Mapping[str, tuple[Any, Any]],
  batch: Mapping[str, np.ndarray],
  inputs: str,
  expected: Mapping[str, np.ndarray],
  classes: bool = True,
  facts: Mapping[str, Any] | None = None,
) -> dict[str, str]:
  """Exports programs and checks them, each in a process of its own.

  Args:
    directory: gets one directory for each program.
    programs: `{name: (fun, params)}`, `fun(params, x)` as it was evaluated.
    batch: a held-out batch, with 'mask'.
    inputs: the name of `x` in it.
    expected: `{name: outputs of the evaluation for that batch}`.
    classes: whether the last axis of outputs is of classes.
    facts: for the manifests, what whoever serves them has to know.

  Returns:
    `{name: a sentence}` for the report.

  Raises:
    RuntimeError: a reloaded program does not run, or says something else.
  """
  x = batch[inputs]
  directory.mkdir(parents=True, exist_ok=True)
  lengths = {
    name: _save(directory / name, *program, x, facts)
    for name, program in programs.items()
  }
  with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    np.savez(scratch / 'inputs.npz', **{'0': x})
    running = {
      name: _start(directory / name, scratch, name) for name in programs
    }
    return {
      name: _compare(
        name, process, scratch, batch['mask'], expected[name], classes
      )
      + lengths[name]
      for name, process in running.items()
    }


def served_by(directory: pathlib.Path, facts: Mapping[str, Any]) -> str:
  """Lines that serve an export.

  >>> print(served_by(pathlib.Path('/tmp/run/export/int8'), {}))
  To serve it (its manifest.json says more):
    import jaxopt_compress as jc
    serve = jc.export.load('/tmp/run/export/int8')
    y = serve(x)
  """
  form = facts.get('input')
  said = f'  # x: {form["axes"]}; values in {form["values"]}' if form else ''
  return (
    'To serve it (its manifest.json says more):\n  import jaxopt_compress as jc\n'
    f'  serve = jc.export.load({str(directory)!r})\n  y = serve(x){said}'
  )


def _save(directory, fun, params, x, facts) -> str:
  """Exports one program, for any number of examples if it can be had.

  Returns:
    What is said of that number; '' where it may be any.
  """
  like = jax.ShapeDtypeStruct(x.shape, x.dtype)
  save = functools.partial(
    stablehlo.save,
    directory,
    fun,
    params,
    like,
    platforms=sorted({'cpu', jax_export.default_export_platform()}),
    facts=facts,
  )
  try:
    save()
  except ValueError as e:
    if 'polymorphic=False' not in str(e):
      raise
    save(polymorphic=False)
    return (
      f'; it takes {len(x)} examples at a time and no other number, as the network'
      ' asks for their number (x.shape[0] in place of len(x) helps, or -1 in a'
      ' reshape)'
    )
  return ''


def _start(directory, scratch, name):
  return subprocess.Popen(
    [
      sys.executable,
      *('-m', 'jaxopt_compress.export.run'),
      *(directory, scratch / 'inputs.npz', scratch / f'{name}.npz'),
    ],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _compare(name, process, scratch, mask, expected, classes):
  output, _ = process.communicate()
  if process.returncode:
    raise RuntimeError(
      f'The export of {name!r} does not run in a fresh process:\n{output}'
    )
  with np.load(scratch / f'{name}.npz') as f:
    found = f['output']
  # A mask of targets [b, t] marks those; one of examples [b] marks whole rows.
  found, expected = found[mask], np.asarray(expected)[mask]
  difference = float(np.max(np.abs(found - expected)))
  # Numbers may all be far from 0: what counts is how far they are apart.
  centre = 0.0 if classes else expected.mean(0)
  largest = float(np.max(np.abs(expected - centre)))
  if difference > TOLERANCE * largest:
    raise RuntimeError(
      f'The export of {name!r} says something else in a fresh process: outputs'
      f' differ by up to {difference:.3g}, of {largest:.3g}.'
    )
  said = f'outputs differ by at most {difference:.2g}'
  if classes:
    same = found.argmax(-1) == expected.argmax(-1)
    said = f'{same.sum()} of {same.size} answers are the same, {said}'
  return f'reloaded in a fresh process: {said}'
