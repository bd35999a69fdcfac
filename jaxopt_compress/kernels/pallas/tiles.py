"""Blocks of a product, from its shape and the device it runs on.

    rows x columns of the result for each program, and the part of k it sums at once

GPU: a program sums all of k, or one of several splits of it when there are too few
tiles to keep every processor busy (few rows: decoding). TPU: the splits come one
after the other and are summed in VMEM, each as large as VMEM holds.

Those of GPUs follow a sweep on an H100 with bfloat16 activations, of single shapes;
those of TPUs are what the memories allow, and not measured.
`matmul` of every kernel takes others.
"""

import dataclasses

import jax

# Programs that keep a large GPU busy (132 processors, two each).
_BUSY = 264
# Bytes of VMEM for the blocks of one step, of the 16 MiB that a program may use;
# they are there twice, while the next ones arrive.
_VMEM = 3 * 2**20


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Blocks of a product.

  Attributes:
    rows, columns: of the result, for each program.
    steps: bundles of pieces along k that a program sums at once.
    warps, stages: of Triton: threads / 32, and loads under way.
  """

  rows: int
  columns: int
  steps: int
  warps: int = 4
  stages: int = 2


def on(platform: str | None, interpret: bool) -> str:
  """'gpu' or 'tpu'; where it runs now, if nothing is said."""
  names = {'gpu': 'gpu', 'cuda': 'gpu', 'rocm': 'gpu', 'tpu': 'tpu'}
  if platform is None:
    platform = jax.default_backend()
    if platform == 'cpu' and interpret:
      return 'gpu'
  if platform not in names:
    raise ValueError(
      f'No kernel for platform {platform!r}. Choose from {sorted(names)}; to try a'
      ' kernel on a CPU, slowly, pass interpret=True as well.'
    )
  return names[platform]


def rows_of(m: int, platform: str, *, smallest: int = 16) -> int:
  """Rows of a block: a power of two for few rows, then as many as pay.

  >>> rows_of(1, 'gpu'), rows_of(40, 'gpu'), rows_of(512, 'tpu')
  (16, 64, 256)
  """
  largest = 64 if platform == 'gpu' else 256
  return max(smallest, min(largest, 1 << (m - 1).bit_length()))


def check(t: Tiles, m: int, n: int) -> None:
  """Raises ValueError unless tiles cover a result of m x n exactly."""
  if m % t.rows or n % t.columns or t.steps < 1:
    raise ValueError(
      f'{t} do not divide a result of {m} x {n}, as it is padded. Choose powers of'
      ' two: rows from 16, columns up to 128, and at least one step.'
    )


def choose(
  m: int,
  n: int,
  bundles: int,
  row_bytes: int,
  column_bytes: int,
  size: int,
  per: int,
  platform: str,
) -> Tiles:
  """Tiles for a product.

  Args:
    m: rows.
    n: columns, a multiple of 128.
    bundles: steps along k there are.
    row_bytes: what one row takes in one bundle.
    column_bytes: what one column takes in one bundle.
    size: bytes of one number as it is multiplied.
    per: pieces in a bundle: two for codes of 4 bits.
    platform: 'gpu' or 'tpu'.

  >>> choose(16, 4096, 32, 256, 128, 2, 1, 'gpu')
  Tiles(rows=16, columns=128, steps=4, warps=4, stages=3)
  """
  rows = rows_of(m, platform)
  if platform == 'gpu':
    # float32 in half as many columns: within 99 KiB of shared memory.
    columns = 128 if rows == 16 and size <= 2 and per == 1 else 64
    stages = 3 if rows == 16 else 2 if per > 1 else 4
    steps = split(m, n, rows, columns, bundles)
    return Tiles(rows, columns, steps, stages=stages)
  columns = next(c for c in (512, 256, 128) if n % c == 0)
  step = rows * row_bytes + columns * column_bytes
  return Tiles(rows, columns, max(1, min(bundles, _VMEM // step)))


def split(m: int, n: int, rows: int, columns: int, bundles: int) -> int:
  """Steps of a program where splits of k keep a GPU busy.

  >>> split(1, 4096, 16, 128, 32), split(512, 4096, 64, 64, 32)
  (4, 32)
  """
  programs = -(-m // rows) * (n // columns)
  splits = min(16, bundles, -(-_BUSY // programs))
  return -(-bundles // splits)
