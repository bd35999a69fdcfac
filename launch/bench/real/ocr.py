"""PP-OCR v4: where text is in a picture, and what a line of it says.

Pictures are drawn with Pillow's own font: paragraphs of the standard library's docstrings,
dark on light with some noise, for the recogniser a line each.
"""

from collections.abc import Sequence
import pathlib

import numpy as np

from launch.bench import real_distill
from launch.bench.real import files
from launch.bench.real import measure
from launch.bench.real import onnx_program

PACKAGE = 'rapidocr_onnxruntime'
_LINE = 48, 320
_PAGE = 320, 320


def drawn(lines: Sequence[str], shape: tuple[int, int], size: int, seed: int):
  """float32 [3, height, width] between -1 and 1."""
  from PIL import Image
  from PIL import ImageDraw
  from PIL import ImageFont

  rng = np.random.default_rng(seed)
  paper, ink = rng.integers(180, 256), rng.integers(0, 90)
  image = Image.new('L', shape[::-1], int(paper))
  pen, font = ImageDraw.Draw(image), ImageFont.load_default(size)
  top = max((shape[0] - len(lines) * size * 1.5) / 2, 0)
  for i, line in enumerate(lines):
    pen.text((6, top + 1.5 * size * i), line, int(ink), font)
  y = np.asarray(image, np.float32) / 255 + 0.02 * rng.standard_normal(shape)
  return np.float32(np.broadcast_to(2 * y - 1, (3, *shape)))


def read(found: np.ndarray, want: np.ndarray) -> dict[str, float]:
  """Of probabilities [..., places, letters]: the same at a place; the same text."""
  one, other = found.argmax(-1), want.argmax(-1)
  rows = zip(one.reshape(-1, one.shape[-1]), other.reshape(-1, one.shape[-1]))
  far, total = 0, 0
  for a, b in rows:
    a, b = spelled(a), spelled(b)
    far, total = far + distance(a, b), total + max(len(b), 1)
  return {'argmax': float((one == other).mean()), 'text': 1 - far / total}


def spelled(places: np.ndarray) -> list[int]:
  """A letter of several places in a row is one; 0 is none."""
  last = np.concatenate([[0], places[:-1]])
  return places[(places != last) & (places != 0)].tolist()


def distance(a: Sequence[int], b: Sequence[int]) -> int:
  """Letters to put in, leave out or change (Levenshtein 1966)."""
  row = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    before, row[0] = row[0], i
    for j, y in enumerate(b, 1):
      before, row[j] = (
        row[j],
        min(row[j] + 1, row[j - 1] + 1, before + (x != y)),
      )
  return row[-1]


def overlap(found: np.ndarray, want: np.ndarray) -> dict[str, float]:
  """Of probabilities [..., height, width], at 0.3: pixels of text."""
  a, b = found > 0.3, want > 0.3
  return {
    'pixels': float((a == b).mean()),
    'overlap': float((a & b).sum() / max((a | b).sum(), 1)),
    'text': float(b.mean()),
  }


def lines(count: int, split: str = 'test') -> np.ndarray:
  """[count, 3, 48, 320]: some sixteen letters each."""
  texts = real_distill.paragraphs(split)[:count]
  return np.stack([drawn([t[:16]], _LINE, 36, i) for i, t in enumerate(texts)])


def pages(count: int, split: str = 'test') -> np.ndarray:
  """[count, 3, 320, 320]: six lines each."""
  texts = real_distill.paragraphs(split)[: 6 * count]
  parts = [[t[:30] for t in texts[6 * i : 6 * i + 6]] for i in range(count)]
  return np.stack([drawn(p, _PAGE, 18, i) for i, p in enumerate(parts)])


def load(name, folder, make, x, cells, judge, **rest) -> measure.Model:
  """A model of the package in `folder`, judged by `x` [batches, batch, ...].

  `rest` is what else a `Model` has.
  """
  source = pathlib.Path(folder) / 'models' / f'ch_PP-OCRv4_{name}_infer.onnx'
  run, params, weights = onnx_program.load(
    make('onnx_dump', f'ocr_{name}.npz', source=str(source))
  )
  every = x.reshape(-1, *x.shape[2:])
  made = {'x': x}
  return measure.Model(
    name=f'PP-OCR {name}',
    apply=run,
    params=params,
    inputs=('x',),
    carry={},
    where=files.pattern(weights),
    cells={
      f'{n}x{"x".join(map(str, x.shape[3:]))}': (every[:n],) for n in cells
    },
    judged=(x,),
    judge=judge,
    files=lambda cell: files.onnx_files(make, str(source), f'ocr_{name}', made),
    judged_cell=f'{cells[0]}x{"x".join(map(str, x.shape[3:]))}',
    **rest,
  )
