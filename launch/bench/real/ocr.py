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
  """Of probabilities [..., places, letters]: the same letter, the same line."""
  same = found.argmax(-1) == want.argmax(-1)
  written = want.argmax(-1) != 0  # 0 is nothing
  return {
    'argmax': float(same.mean()),
    'letters': float(same[written].mean()),
    'lines': float(same.all(-1).mean()),
  }


def overlap(found: np.ndarray, want: np.ndarray) -> dict[str, float]:
  """Of probabilities [..., height, width], at 0.3: pixels of text."""
  a, b = found > 0.3, want > 0.3
  return {
    'pixels': float((a == b).mean()),
    'overlap': float((a & b).sum() / max((a | b).sum(), 1)),
    'text': float(b.mean()),
  }


def lines(count: int) -> np.ndarray:
  """[count, 3, 48, 320]: some thirty letters each."""
  texts = real_distill.paragraphs('test')[:count]
  return np.stack([drawn([t[:28]], _LINE, 22, i) for i, t in enumerate(texts)])


def pages(count: int) -> np.ndarray:
  """[count, 3, 320, 320]: six lines each."""
  texts = real_distill.paragraphs('test')[: 6 * count]
  parts = [[t[:30] for t in texts[6 * i : 6 * i + 6]] for i in range(count)]
  return np.stack([drawn(p, _PAGE, 18, i) for i, p in enumerate(parts)])


def load(name, folder, make, x, cells, judge, bars) -> measure.Model:
  """A model of the package in `folder`, judged by `x` [batches, batch, ...]."""
  source = pathlib.Path(folder) / 'models' / f'ch_PP-OCRv4_{name}_infer.onnx'
  graph, arrays = onnx_program.read(
    make('onnx_dump', f'ocr_{name}.npz', source=str(source))
  )
  run, params = onnx_program.program(graph, arrays)
  every = x.reshape(-1, *x.shape[2:])
  made = {'x': x}
  return measure.Model(
    name=f'PP-OCR {name}',
    apply=run,
    params=params,
    inputs=('x',),
    carry={},
    where=files.pattern(onnx_program.weights(graph, params)),
    cells={
      f'{n}x{"x".join(map(str, x.shape[3:]))}': (every[:n],) for n in cells
    },
    judged=(x,),
    judge=judge,
    files=lambda cell: files.onnx_files(make, str(source), f'ocr_{name}', made),
    judged_cell=f'{cells[0]}x{"x".join(map(str, x.shape[3:]))}',
    bars=bars,
  )
