"""Loading refuses what would go wrong later."""

import os

from absl.testing import absltest
from absl.testing import parameterized
import export_cases
import numpy as np

from jaxopt_compress import export
from jaxopt_compress.disk import sealed
from jaxopt_compress.export import layout


class RefusalTest(export_cases.ExportTestCase):
  def setUp(self):
    super().setUp()
    export.save(
      self.folder,
      export_cases.apply,
      export_cases.params(),
      export_cases.inputs(2),
    )

  def edit(self, **changes):
    path = self.folder / 'manifest.json'
    manifest = sealed.read(path) | changes
    del manifest['sha256']
    sealed.write(path, manifest)

  @parameterized.parameters('program.stablehlo', 'weights.safetensors')
  def test_a_changed_file(self, name):
    content = bytearray((self.folder / name).read_bytes())
    content[-1] ^= 1
    (self.folder / name).write_bytes(content)
    with self.assertRaisesRegex(ValueError, f'{name} is not the file that was'):
      export.load(self.folder)

  @parameterized.parameters('program.stablehlo', 'weights.safetensors')
  def test_a_missing_file(self, name):
    (self.folder / name).unlink()
    with self.assertRaisesRegex(ValueError, f'{name} is missing'):
      export.load(self.folder)

  def test_no_export(self):
    with self.assertRaisesRegex(ValueError, 'is no export'):
      export.load(self.root / 'nothing')

  @parameterized.parameters(
    lambda text: text[:20],
    lambda text: '',
    lambda text: text.replace('float32', 'float16', 1),
  )
  def test_a_damaged_manifest(self, damage):
    path = self.folder / 'manifest.json'
    path.write_text(damage(path.read_text()))
    message = 'is no export: .*manifest.json is damaged.*or export again'
    with self.assertRaisesRegex(ValueError, message):
      export.load(self.folder)

  def test_a_link_to_the_right_content(self):
    # As caches of downloads hold their files.
    for name in os.listdir(self.folder):
      (self.folder / name).rename(self.root / name)
      (self.folder / name).symlink_to(self.root / name)
    export.load(self.folder)
    (self.root / 'weights.safetensors').write_bytes(b'others')
    with self.assertRaisesRegex(ValueError, 'is not the file that was written'):
      export.load(self.folder)

  @parameterized.parameters(
    (dict(jax='99.1.0'), 'Upgrade with `pip install "jax>=99.1.0"`'),
    (dict(calling_convention=999), 'may not read it'),
    (dict(calling_convention=1), 'too long ago'),
    (dict(platforms=['tpu']), "exported for .'tpu'., and this is cpu"),
    (dict(format='other/1'), "format 'other/1'"),
    (dict(jax=None), 'manifest.json lacks jax. Export again'),
    (dict(weights=[], signature='x'), 'lacks signature, weights'),
    (dict(signature={}), 'lacks signature'),
    (dict(signature={'inputs': [{'name': '0'}]}), 'lacks signature'),
    (dict(weights={'w': 'float32'}), 'lacks weights'),
    (dict(files=dict.fromkeys(layout.FILES, 'x')), 'lacks files'),
    (dict(files=dict.fromkeys(layout.FILES, {})), 'lacks files'),
    (dict(files=None), 'lacks files'),
    (dict(files={}), r'lists the files \[\], expected .*weights'),
    (dict(files={'../../etc/passwd': {}}), 'lists the files .*passwd'),
  )
  def test_a_manifest_of_another_world(self, changes, message):
    self.edit(**changes)
    with self.assertRaisesRegex(ValueError, message):
      export.load(self.folder)

  @parameterized.parameters(
    ((np.ones((2, 255), np.float32),), r'float32\[2, 255\].*\[batch, 256\]'),
    ((np.ones((2, 256), np.int32),), r'int32\[2, 256\].*float32'),
    ((np.ones(256, np.float32),), r'float32\[256\]'),
    ((), r'Inputs are \[\].*0'),
  )
  def test_other_inputs(self, args, message):
    program = export.load(self.folder)
    with self.assertRaisesRegex(ValueError, message):
      program(*args)

  def test_prints_in_one_line(self):
    self.assertEqual(
      repr(export.load(self.folder)),
      'Program(0: float32[batch, 256] -> output: float32[batch, 5];'
      ' 33,536 bytes of weights)',
    )

  def test_batches_of_two_lengths(self):
    export.save(self.folder, lambda p, x, y: x + y, {}, np.ones(2), np.ones(2))
    with self.assertRaisesRegex(ValueError, r"with \{'batch': 3\}"):
      export.load(self.folder)(np.float32([1, 2, 3]), np.float32([1, 2]))


if __name__ == '__main__':
  absltest.main()
