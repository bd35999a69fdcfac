"""The examples of a plan: files of a text, sizes, what a stage asks for."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

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

  def test_fewer_and_wrong_labels(self):
    data = options.Data(name='digits', labels=0.05, label_noise=0.2)
    found = examples.load(data, seed=0)
    self.assertIn('60 to train, 359 held out; 20%', found.description)
    plain = examples.load(options.Data(name='digits'), seed=0)
    # What a network is judged by stays as it is.
    np.testing.assert_array_equal(
      found.test[0]['label'], plain.test[0]['label']
    )

  def test_examples_without_a_label_are_for_stages_with_a_teacher(self):
    data = options.Data(name='digits', labels=0.1, unlabelled=True)
    loaded = examples.load(data, seed=0)
    taught = options.Distil(teacher='t')
    alone, both = (
      loaded.batches(_stage(batch_size=100, **asked))[0]['label']
      for asked in ({}, {'distil': taught})
    )
    self.assertTrue((alone >= 0).all())
    self.assertBetween((both < 0).mean(), 0.8, 0.99)
    for said, message in (
      (dict(unlabelled=True), 'no effect without labels below 1'),
      (dict(labels=0.5, unlabelled=True, label_noise=0.1), 'has both'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        examples.load(options.Data(name='digits', **said), seed=0)

  def test_no_such_data(self):
    for name in ('digts', 'batches'):
      with self.assertRaisesRegex(ValueError, f"config.data.name is '{name}'"):
        examples.load(options.Data(name=name), seed=0)


class ChecksTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(directory)

  def npz(self, name, size=4, labels=(0, 1, 2)):
    image = np.zeros((len(labels), size, size), np.uint8)
    np.savez(self.root / name, image=image, label=labels)
    return f'npz@{self.root / name}.npz'

  def folder(self, name):
    (self.root / name).mkdir(parents=True)
    Image.new('L', (4, 4)).save(self.root / name / '0.png')

  def load(self, train, test, **said):
    data = options.Data(
      name='images', train=train, test=test, eval_batch_size=2, **said
    )
    return examples.load(data, seed=0)

  def refuses(self, message, *args, **said):
    with self.assertRaisesRegex(ValueError, message):
      self.load(*args, **said)

  def test_shapes_of_targets(self):
    x, y = np.zeros((3, 2), 'f'), np.zeros(3, 'f')
    train, test = dict(image=x, label=y), dict(image=x, label=x)
    with self.assertRaisesRegex(
      ValueError, r'Targets to train on are \[\], and'
    ):
      examples._check_alike(options.Data(name='digits'), train, test)

  def test_shapes(self):
    self.refuses(
      r'train on are \[4, 4, 1\], and held-out ones are \[5, 5, 1\]',
      *(self.npz('a'), self.npz('b', size=5)),
    )

  def test_names(self):
    splits = self.npz('a'), self.npz('b')
    self.refuses(
      "config.data.input is 'imag'; choose one of .'image', 'label'",
      *splits,
      input='imag',
    )
    self.refuses(
      r"target is 'image', which are float32\[3, 4, 4, 1\]; whole numbers",
      *splits,
      target='image',
    )
    self.refuses(
      "and config.data.target are both 'label'", *splits, input='label'
    )
    data = options.Data(name='text', files=r'json/.*', test='train')
    with self.assertRaisesRegex(ValueError, "input is 'image'.*'tokens'"):
      examples.load(data, seed=0)

  def test_classes_are_told(self):
    for name in (
      'train/ape',
      'train/cat',
      'test/cat',
      'test/dog',
      'pictures/bat',
    ):
      self.folder(name)
    for path in ('train/b/0.jfif', 'train/cat/1.jfif', 'test/read.me'):
      (self.root / path).parent.mkdir(exist_ok=True)
      (self.root / path).touch()
    found = self.load(f'folder:train@{self.root}', f'folder:test@{self.root}')
    self.assertEndsWith(
      found.description,
      '; 3 classes: ape, cat, dog; nothing to train on of dog; nothing to be'
      ' judged by of ape; not read, as no images of a class: test/read.me,'
      ' train/b/0.jfif, train/cat/1.jfif',
    )
    self.assertEqual(found.classes(_stage()), 3)
    form = dict(axes='batch, height, width, channels', values=[0, 1])
    form |= dict(size=[4, 4], channels=1)
    names = ['ape', 'cat', 'dog']
    self.assertEqual(found.served, {'input': form, 'classes': names})
    self.refuses(
      r"train has the classes \['ape', 'cat'\], .*test \['cat', 'dog'\]",
      *(f'folder@{self.root / name}' for name in ('train', 'test')),
    )

  @parameterized.parameters(
    ((2, 3), ''),
    ((2, 9), ''),
    ((2, 2), 'config.models.m tells 2 classes, and there is a label 2'),
    ((3, 3), r'answers \[3, 3\] where labels are \[2\]'),
    ((2, 4, 3), r'answers \[2, 4, 3\] where'),
  )
  def test_answers(self, shape, message):
    found = self.load(self.npz('a', labels=(0, 1, 2)), self.npz('b'))
    answers = jax.ShapeDtypeStruct(shape, jnp.float32)
    if not message:
      examples.check_answers(found, _stage(), answers, 'label')
      return
    with self.assertRaisesRegex(ValueError, message):
      examples.check_answers(found, _stage(), answers, 'label')


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
      self.assertEqual(loaded.classes(stage), 1 + max(want + json_text))

  def test_bytes_to_be_filled_in(self):
    data = options.Data(
      name='masked_text',
      input='tokens',
      window=16,
      files=r'json/.*',
      test='train',
      limit=5000,
    )
    loaded = examples.load(data, seed=0)
    for batch in (loaded.test[0], loaded.batches(_stage(batch_size=4))[0]):
      shown = batch['tokens'] == batch['label']
      self.assertTrue(shown[~batch['mask']].all())
      self.assertTrue((~shown).any())
    self.assertEqual(loaded.classes(_stage()), 256)
    # What gzip needs is for the next byte, and no rival of this.
    self.assertEqual(list(loaded.facts), ['held-out bytes'])

  def test_no_such_files(self):
    with self.assertRaisesRegex(ValueError, "that match 'jsn/.*' falls into"):
      text.load('train', only=r'jsn/.*')
    with self.assertRaisesRegex(
      ValueError, "'[*].py', .* is not a regular expr"
    ):
      text.load('train', only='*.py')

  def test_data_without_files(self):
    with self.assertRaisesRegex(ValueError, 'has no effect without a text'):
      examples.load(options.Data(name='digits', files='x.*'), seed=0)
    with self.assertRaisesRegex(ValueError, 'config.data.window is 8, which'):
      examples.load(options.Data(name='digits', window=8), seed=0)
    digits = examples.load(options.Data(name='digits'), seed=0)
    with self.assertRaisesRegex(
      ValueError, 'stage.s.files is .*without a text'
    ):
      digits.batches(_stage(files='x.*'))

  def test_texts_are_not_moved(self):
    data = options.Data(
      name='text', input='tokens', window=16, files=r'json/.*', test='train'
    )
    with self.assertRaisesRegex(
      ValueError, 'augment is True, .*without images'
    ):
      examples.load(data, seed=0).batches(_stage(augment=True))


if __name__ == '__main__':
  absltest.main()
