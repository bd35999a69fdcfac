"""Imports point one way: an AST walk over the package and its launch scripts."""

import ast
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

_ROOT = pathlib.Path(__file__).parent.parent
_PACKAGE = 'jaxopt_compress'

# What each room may import of the others, as drawn in CONTRIBUTING.md. Siblings do
# not know each other; only `calibration` may read the formats of two of them.
_SIBLINGS = ('quantization', 'pruning', 'distillation', 'parallel')
_MAY = {
  'core': set(),
  'analysis': {'core'},
  **{room: {'core', 'analysis'} for room in _SIBLINGS},
  'adapters': {'core', 'analysis'},
  'calibration': {'core', 'analysis', 'quantization', 'pruning'},
  'kernels': {'core', 'analysis', 'quantization', 'pruning'},
  'export': {'core', 'analysis'},
  'models': {'core', 'analysis'},
  'data': {'core', 'analysis'},
  'report': {'core', 'analysis'},
}
_MAY['train'] = set(_MAY)

# Outside packages that the inner rooms do without.
_INNER = (
  'core',
  'analysis',
  'quantization',
  'adapters',
  'pruning',
  'distillation',
  'calibration',
  'kernels',
)
_NOT_INSIDE = {'flax', 'optax', 'sklearn', 'ml_collections', 'orbax', 'absl'}


def _imports(path):
  """The modules that a file imports, as dotted names."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      for alias in node.names:
        yield f'{node.module}.{alias.name}'


def _files(folder):
  return sorted((_ROOT / folder).rglob('*.py'))


def _room(path):
  parts = path.relative_to(_ROOT / _PACKAGE).parts
  return parts[0] if len(parts) > 1 else None


class LayeringTest(parameterized.TestCase):
  def test_walks_something(self):
    rooms = {_room(p) for p in _files(_PACKAGE)} - {None}
    self.assertLessEqual(rooms, set(_MAY))
    self.assertIn(
      'jaxopt_compress.core.array',
      set(_imports(_ROOT / _PACKAGE / 'core' / 'lift.py')),
    )

  def test_rooms_import_only_what_they_may(self):
    wrong = []
    for path in _files(_PACKAGE):
      room = _room(path)
      if room is None:
        continue
      for name in _imports(path):
        parts = name.split('.')
        if parts[0] != _PACKAGE:
          continue
        other = parts[1] if len(parts) > 1 else ''
        if other != room and other not in _MAY[room]:
          wrong.append(f'{path.relative_to(_ROOT)} imports {name}')
    self.assertEqual(wrong, [])

  def test_inner_rooms_do_without_frameworks(self):
    wrong = [
      f'{path.relative_to(_ROOT)} imports {name}'
      for room in _INNER
      for path in _files(f'{_PACKAGE}/{room}')
      for name in _imports(path)
      if name.split('.')[0] in _NOT_INSIDE
    ]
    self.assertEqual(wrong, [])

  def test_only_jaxprs_meets_jax_extend(self):
    meets = {
      str(path.relative_to(_ROOT))
      for path in _files(_PACKAGE)
      for name in _imports(path)
      if name.startswith('jax.extend')
    }
    self.assertEqual(meets, {'jaxopt_compress/core/jaxprs.py'})

  def test_no_private_jax(self):
    wrong = [
      f'{path.relative_to(_ROOT)} imports {name}'
      for folder in (_PACKAGE, 'launch', 'configs', 'tests')
      for path in _files(folder)
      for name in _imports(path)
      if name.startswith('jax._src') or name.startswith('jax.core')
    ]
    self.assertEqual(wrong, [])

  def test_the_library_does_not_import_what_runs_it(self):
    wrong = [
      f'{path.relative_to(_ROOT)} imports {name}'
      for path in _files(_PACKAGE)
      for name in _imports(path)
      if name.split('.')[0] in ('launch', 'configs', 'tests')
    ]
    self.assertEqual(wrong, [])

  def test_no_drawers_without_a_name(self):
    drawers = {'utils', 'util', 'helpers', 'helper', 'common', 'misc'}
    wrong = [
      str(path.relative_to(_ROOT))
      for path in _files(_PACKAGE)
      if drawers & {path.stem, *path.relative_to(_ROOT).parts}
    ]
    self.assertEqual(wrong, [])


if __name__ == '__main__':
  absltest.main()
