"""PP-OCR v4, where text is in a picture: see `ocr`."""

from launch.bench.real import files
from launch.bench.real import measure
from launch.bench.real import ocr

PACKAGE = ocr.PACKAGE


def load(folder: str, make: files.Maker) -> measure.Model:
  """The detector of the package in `folder`, and files for rivals."""
  x = ocr.pages(8)[:, None]
  how = dict(cells=(1,), judge=ocr.overlap, bars={'overlap': None})
  return ocr.load('det', folder, make, x, **how)
