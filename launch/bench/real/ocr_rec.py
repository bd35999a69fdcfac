"""PP-OCR v4, what a line of text says: see `ocr`."""

from launch.bench.real import files
from launch.bench.real import measure
from launch.bench.real import ocr

PACKAGE = ocr.PACKAGE


def load(folder: str, make: files.Maker) -> measure.Model:
  """The recogniser of the package in `folder`, and files for rivals."""
  x = ocr.lines(32).reshape(4, 8, 3, 48, 320)
  how = dict(cells=(1, 8), judge=ocr.read, bars={'argmax': None, 'text': None})
  return ocr.load('rec', folder, make, x, **how)
