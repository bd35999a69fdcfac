"""The examples of a plan: files of a text, sizes, what a stage asks for."""

from absl.testing import absltest
import numpy as np

from jaxopt_compress.data import text
from jaxopt_compress.train import examples
from jaxopt_compress.train import options


def _stage(name='s', **asked):
  return options.Stage(name=name, model='m', **asked)


class ArraysTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    data = options.Data(
      name='digits', test='validation', eval_batch_size=64, limit=100
    )
    cls.loaded = examples.load(data, seed=0)

  def test_sizes(self):
    self.assertEndsWith(self.loaded.description, ', 100 held out')
    self.assertEqual(self.loaded.example.shape, (64, 8, 8, 1))
    self.assertEqual(sum(b['mask'].sum() for b in self.loaded.test), 100)

  def test_each_stage_has_an_order_of_its_own(self):
    a, again, b = (
      self.loaded.batches(_stage(name, batch_size=16))[0]['image']
      for name in ('a', 'a', 'b')
    )
    self.assertEqual(a.shape, (16, 8, 8, 1))
    np.testing.assert_array_equal(a, again)
    self.assertTrue((a != b).any())

  def test_images_are_moved_where_a_stage_asks(self):
    plain, moved = (
      self.loaded.batches(_stage(batch_size=16, augment=augment))[0]
      for augment in (False, True)
    )
    np.testing.assert_array_equal(plain['label'], moved['label'])
    self.assertTrue((plain['image'] != moved['image']).any())

  def test_no_such_data(self):
    for name in ('digts', 'batches'):
      with self.assertRaisesRegex(ValueError, f"config.data.name is '{name}'"):
        examples.load(options.Data(name=name), seed=0)


class FilesTest(absltest.TestCase):
  def test_stages_read_files_of_their_own(self):
    data = options.Data(
      name='text', input='tokens', window=16, files=r'json/.*', test='train'
    )
    loaded = examples.load(data, seed=0)

    def reading(files):
      return options.Stage(name='s', model='m', files=files, batch_size=1)

    json_text = text.load('train', only=r'json/.*').tobytes()
    csv_text = text.load('train', only=r'csv\.py').tobytes()
    self.assertLess(len(csv_text), len(json_text))
    for stage, want, other in (
      (reading(''), json_text, csv_text),
      (reading(r'csv\.py'), csv_text, json_text),
    ):
      batch = loaded.batches(stage)[0]
      window = bytes(batch['tokens'][0, 1:].astype(np.uint8))
      self.assertIn(window, want)
      self.assertNotIn(window, other)

  def test_no_such_files(self):
    with self.assertRaisesRegex(ValueError, "that match 'jsn/.*' falls into"):
      text.load('train', only=r'jsn/.*')

  def test_data_without_files(self):
    with self.assertRaisesRegex(ValueError, 'chooses files of a text'):
      examples.load(options.Data(name='digits', files='x.*'), seed=0)


if __name__ == '__main__':
  absltest.main()
