"""Text: split by file, windows by step, every held-out byte counted once."""

import gzip
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress.data import text


def as_text(data: bytes) -> np.ndarray:
  return np.frombuffer(data, np.uint8)


def as_bytes(tokens) -> bytes:
  return bytes(np.asarray(tokens, np.uint8))


class StandardLibraryTest(absltest.TestCase):
  def test_files_belong_to_one_split_each(self):
    names = text.files()
    self.assertEqual(names, sorted(set(names)))
    self.assertIn('argparse.py', names)
    self.assertIn('json/decoder.py', names)
    for part in ('site-packages/', '/test/', '/tests/', 'encodings/'):
      self.assertFalse([name for name in names if part in f'/{name}'])

  def test_splits_make_up_the_whole(self):
    parts = {s: text.load(s) for s in ('train', 'validation', 'test')}
    total = sum(map(len, parts.values()))
    self.assertLen(text.load('train+validation+test'), total)
    self.assertBetween(len(parts['train']) / total, 0.8, 0.97)
    self.assertEqual(parts['test'].dtype, np.uint8)
    self.assertIn(b'class ArgumentParser', parts['test'].tobytes())
    self.assertNotIn(b'class ArgumentParser', parts['train'].tobytes())

  def test_the_same_at_every_reading(self):
    np.testing.assert_array_equal(text.load('test'), text.load('test'))

  # A changed hash would move held-out files into the training set.
  def test_splits_never_change(self):
    got = {
      name: text.split_of(name)
      for name in ('argparse.py', 'ast.py', 'fractions.py', 'tarfile.py')
    }
    self.assertEqual(
      got,
      {
        'argparse.py': 'test',
        'ast.py': 'train',
        'fractions.py': 'test',
        'tarfile.py': 'validation',
      },
    )


class UsersFilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    self.root = pathlib.Path(directory.name)

  def write(self, name, data):
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path

  def test_read_ends_each_file_with_nul(self):
    paths = [
      self.write('b.txt', b'two'),
      self.write('empty.txt', b''),
      self.write('a.txt', 'é'.encode()),
    ]
    self.assertEqual(text.read(paths).tobytes(), b'two\0\xc3\xa9\0')

  def test_files_are_found_by_suffix_and_sorted(self):
    for name in ('b.txt', 'a/z.txt', 'c.md', 'skipped/d.txt', 'skip_me.txt'):
      self.write(name, b'x')
    found = text.files(self.root, suffixes=('.txt',), skip=('skip*',))
    self.assertEqual(found, ['a/z.txt', 'b.txt'])

  def test_hidden_files_are_nobodys_data(self):
    """A copy of a file would be in another split than the file."""
    for name in ('a.py', '.ipynb_checkpoints/a-checkpoint.py', '._a.py'):
      self.write(name, b'x')
    self.assertEqual(text.files(self.root), ['a.py'])

  def test_load_takes_the_files_of_the_split(self):
    for i in range(60):
      self.write(f'{i}.txt', f'{i} '.encode())
    for split in ('train', 'validation', 'test'):
      want = b''.join(
        f'{name[:-4]} '.encode() + b'\0'
        for name in sorted(f'{i}.txt' for i in range(60))
        if text.split_of(name) == split
      )
      got = text.load(split, self.root, suffixes=('.txt',))
      self.assertEqual(got.tobytes(), want)

  def test_mistakes_are_told(self):
    with self.assertRaisesRegex(ValueError, 'no directory .*/nowhere'):
      text.load('train', self.root / 'nowhere')
    with self.assertRaisesRegex(ValueError, "No file .* with one of .'.py'"):
      text.load('train', self.root)
    with self.assertRaisesRegex(ValueError, "No split 'tests'; there are"):
      text.load('tests')
    with self.assertRaisesRegex(ValueError, 'no file .*/missing.txt'):
      text.read([self.root / 'missing.txt'])
    with self.assertRaisesRegex(ValueError, 'NUL at byte 1'):
      text.read([self.write('binary.txt', b'a\0b')])
    with self.assertRaisesRegex(ValueError, 'no text: no files, or empty'):
      text.read([self.write('empty.txt', b'')])
    self.write('ast.py', b'x')
    with self.assertRaisesRegex(ValueError, "falls into 'test': there are too"):
      text.load('test', self.root)


class WindowsTest(parameterized.TestCase):
  def test_label_is_the_byte_after_the_token(self):
    stream = text.windows(
      as_text(bytes(range(1, 101))), batch_size=3, length=8, seed=0
    )
    for step in range(10):
      batch = stream[step]
      self.assertEqual(batch['tokens'].shape, (3, 8))
      self.assertEqual(batch['tokens'].dtype, np.int32)
      np.testing.assert_array_equal(batch['label'], batch['tokens'] + 1)

  def test_resume_is_asking_for_a_later_step(self):
    data = as_text(bytes(range(256)))
    make = lambda: text.windows(  # noqa: E731
      data, batch_size=4, length=8, seed=1
    )
    first = make()
    want = [first[step] for step in range(20)]
    again = make()
    for step in (19, 13, 0):
      np.testing.assert_array_equal(again[step]['label'], want[step]['label'])
    self.assertFalse(np.array_equal(want[0]['label'], want[8]['label']))

  def test_every_byte_is_trained_on(self):
    data = as_text(bytes(range(50)))
    stream = text.windows(data, batch_size=6, length=8, seed=0)
    seen = {x for step in range(60) for x in stream[step]['label'].flat}
    self.assertEqual(seen, set(range(50)))

  @parameterized.parameters(
    # n, length, context, batch_size
    (100, 10, 5, 4),
    (100, 10, 0, 3),
    (101, 10, 9, 7),
    (10, 10, 3, 4),
    (11, 10, None, 1),
    (37, 8, 6, 100),
  )
  def test_every_held_out_byte_counts_once(self, n, length, context, size):
    data = as_text(bytes(range(1, n + 1)))
    batches = text.eval_windows(
      data, batch_size=size, length=length, context=context
    )
    counted = [b['label'][b['mask']] for b in batches]
    self.assertEqual(as_bytes(np.concatenate(counted)), data.tobytes())
    least = length // 2 if context is None else context
    for batch in batches:
      self.assertEqual(batch['label'].shape, (size, length))
      np.testing.assert_array_equal(
        batch['label'][batch['mask']], batch['tokens'][batch['mask']] + 1
      )
      for label, mask in zip(batch['label'], batch['mask'], strict=True):
        if mask.any() and label[0] != 1:
          self.assertGreaterEqual(int(mask.argmax()), least)

  def test_windows_by_eye(self):
    batches = text.eval_windows(
      as_text(b'abcdefgh'), batch_size=3, length=4, context=2
    )
    drawn = [
      (as_bytes(t), as_bytes(y), ''.join('.#'[int(m)] for m in mask))
      for b in batches
      for t, y, mask in zip(b['tokens'], b['label'], b['mask'], strict=True)
    ]
    self.assertEqual(
      drawn,
      [
        (b'\0abc', b'abcd', '####'),
        (b'bcde', b'cdef', '..##'),
        (b'defg', b'efgh', '..##'),
      ],
    )

  def test_mistakes_are_told(self):
    data = as_text(b'abc')
    with self.assertRaisesRegex(ValueError, '3 bytes, and a window has 4'):
      text.windows(data, batch_size=1, length=4, seed=0)
    with self.assertRaisesRegex(ValueError, '3 bytes, and a window has 4'):
      text.eval_windows(data, batch_size=1, length=4)
    with self.assertRaisesRegex(ValueError, r'context=3 .* length - 1 = 2'):
      text.eval_windows(data, batch_size=1, length=3, context=3)
    with self.assertRaisesRegex(ValueError, 'Choose a batch size from 1 to 1'):
      text.windows(data, batch_size=2, length=3, seed=0)


class GzipTest(absltest.TestCase):
  def test_the_better_of_alone_and_together(self):
    same = b'the same words, and again the same words. ' * 3 + b'\0'
    files = same * 4
    together = len(gzip.compress(files, 9))
    self.assertEqual(
      text.gzip_bits_per_byte(as_text(files)), 8 * together / len(files)
    )
    # Deflate looks back 32 KiB only, so what is far apart is coded twice; each
    # file alone saves its NUL, together they save a header.
    one = b'x'
    self.assertEqual(
      text.gzip_bits_per_byte(as_text(one + b'\0')),
      8 * min(len(gzip.compress(one, 9)), len(gzip.compress(b'x\0', 9))) / 2,
    )

  def test_random_bytes_do_not_shrink(self):
    noise = np.random.default_rng(0).integers(1, 256, 4096).astype(np.uint8)
    self.assertBetween(text.gzip_bits_per_byte(noise), 7.9, 8.2)

  def test_nothing_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'no text to compress'):
      text.gzip_bits_per_byte(np.zeros(0, np.uint8))


if __name__ == '__main__':
  absltest.main()
