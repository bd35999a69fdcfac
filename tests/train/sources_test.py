"""Where examples come from: keywords of `load`, parts of splits, a user's function."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress.train import options
from jaxopt_compress.train import sources


def load(split, size=8, *, shift=0.0):
  x = np.arange(2.0 * size).reshape(size, 2) + shift
  return {'x': x, 'y': np.arange(size) % 2, 'split': split}


def augment(batch, rng):
  del rng
  return batch


def broken(split):
  return {'train': 1}[split]


def needs(split, path):
  return load(split) if path else None


NOT = 3
HERE = f'{__name__}:'


def data(name, **said):
  own = {k: said.pop(k) for k in list(said) if k in ('size', 'shift', 'path')}
  said = dict(input='x', target='y') | said
  return options.Data(name=HERE + name, keywords=own, **said)


class OwnTest(parameterized.TestCase):
  def test_arrays(self):
    source = sources.of_arrays(data('load', size=4, shift=1.0))
    found = source.load('train')
    np.testing.assert_array_equal(found['x'], np.arange(8.0).reshape(4, 2) + 1)
    self.assertCountEqual(found, ['x', 'y'])
    self.assertIs(source.augment, augment)
    self.assertTrue(source.own)

  def test_parts(self):
    source = sources.of_arrays(data('load'))
    a, b = (source.load(f'train[{x}]')['x'] for x in (':75%', '75%:'))
    self.assertEqual([len(a), len(b)], [6, 2])
    rows = np.concatenate([a, b])[:, 0]
    self.assertCountEqual(rows, np.arange(0, 16, 2))

  @parameterized.parameters(
    ('load', dict(siez=4), "config.data has no 'siez'. Did you mean 'size'"),
    ('load', dict(eval_batch=4), "Did you mean 'eval_batch_size'"),
    ('needs', {}, "config.data needs 'path'"),
    ('NOT', {}, 'of type int; a function load.split. is expected'),
    ('lod', {}, "defines no 'lod'. Did you mean 'load'"),
  )
  def test_mistakes(self, name, own, message):
    asked = options.Data(name=HERE + name, keywords=own)
    with self.assertRaisesRegex(ValueError, message):
      sources.module_of(asked)

  def test_what_a_function_raises(self):
    source = sources.of_arrays(data('broken'))
    with self.assertRaisesRegex(
      ValueError, r"load\('test'\) fails: KeyError: .*sources_test.py:\d+.*80%"
    ):
      source.load('test')


class ShippedTest(parameterized.TestCase):
  def test_parts_of_digits(self):
    source = sources.of_arrays(options.Data(name='digits'))
    half = source.load('train[:50%]')['label']
    self.assertLen(half, 629)
    np.testing.assert_allclose(np.bincount(half), 63, atol=3)

  def test_keywords(self):
    sources.module_of(options.Data(name='text', keywords={'root': '/x'}))
    for name, key in (('text', 'roto'), ('digits', 'root'), ('text', 'only')):
      with self.assertRaisesRegex(ValueError, f"config.data has no '{key}'"):
        sources.module_of(options.Data(name=name, keywords={key: 1}))

  def test_apart(self):
    with self.assertRaisesRegex(ValueError, 'train and config.data.test have'):
      sources.check_apart(
        options.Data(name='digits', train='train', test='train[80%:]')
      )


if __name__ == '__main__':
  absltest.main()
