"""Runs an export in a process of its own.

    python -m jaxopt_compress.export.run DIRECTORY inputs.npz outputs.npz

inputs.npz holds the inputs under the names in the manifest: '0' for the first
argument, '0/image' for an entry of it. outputs.npz gets each output under its path, or
'output' if there is only one. Dtypes that numpy cannot store, such as bfloat16, are
stored as float32, which holds them exactly.
"""

import os
import sys
import zipfile

import numpy as np

from jaxopt_compress.core import rules
from jaxopt_compress.export import program as program_lib


def run(
  directory: str | os.PathLike,
  inputs: str | os.PathLike,
  outputs: str | os.PathLike,
) -> None:
  """Loads the export, feeds it `inputs`, writes `outputs`; both .npz."""
  program = program_lib.load(directory)
  args = _arguments(program, inputs)
  result = {
    path or 'output': _plain(np.asarray(y))
    for path, y in rules.named_leaves(program(*args))
  }
  # Replaced whole at the end: whoever waits for the file never reads half of it.
  partial = f'{os.fspath(outputs)}.partial'
  with open(partial, 'wb') as f:
    np.savez(f, **result)
  os.replace(partial, outputs)


def _arguments(program, inputs):
  expected = program.manifest['signature']['inputs']
  try:
    # numpy leaves a file open that it cannot read.
    with open(inputs, 'rb') as f, np.load(f) as arrays:
      found = dict(arrays)
  except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as e:
    raise ValueError(
      f'{inputs} is no .npz file, or damaged ({e}). Write it with np.savez.'
    ) from e
  missing = [e['name'] for e in expected if e['name'] not in found]
  if missing:
    raise ValueError(
      f'{inputs} lacks {missing}; it holds {list(found)}. Save each input'
      ' under its name in the manifest.'
    )
  arrays = [_typed(found[e['name']], e['dtype']) for e in expected]
  # The program takes (weights, *inputs), flat: its tree gives the inputs their form.
  args, _ = program.exported.in_tree.unflatten([*program.weights, *arrays])
  return args[1:]


def _typed(x, dtype):
  """Casts back what was stored as float32 because numpy cannot store its dtype."""
  numpy_has_it = np.dtype(dtype).kind != 'V' and hasattr(np, dtype)
  return x if numpy_has_it else x.astype(dtype)


def _plain(y):
  return y if hasattr(np, str(y.dtype)) else y.astype(np.float32)


def main(argv: list[str]) -> int:
  if len(argv) != 4:
    print(__doc__, file=sys.stderr)
    return 2
  try:
    run(*argv[1:])
  except (ValueError, OSError) as e:
    print(e, file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
