"""Whole or absent, of this config or refused."""

import dataclasses
import gc
import json
import os
import pathlib
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_compress.core import array
from jaxopt_compress.disk import sealed
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.train import checkpoint

# A read that Orbax gives up leaves coroutines that complain when collected.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)

CONFIG = {'seed': 0, 'model.widths': (8, 16)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pair(array.CompressedArray):
  """A leaf of two arrays."""

  codes: jax.Array
  scale: jax.Array
  axis: int = dataclasses.field(default=-1, metadata={'static': True})

  shape = property(lambda self: self.codes.shape)
  dtype = property(lambda self: self.scale.dtype)

  def materialize(self):
    return self.codes * self.scale


def _tree(value=1.0):
  return {
    'params': {
      'a/b': {'kernel': jnp.full((8, 3), value, jnp.float32)},
      'q': Pair(jnp.arange(6, dtype=jnp.int8).reshape(2, 3), jnp.ones((1, 3))),
    },
    'rng': jax.random.key(7),
    'step': jnp.int32(3),
    'half': jnp.full((5,), value, jnp.bfloat16),
    'noise': jax.random.normal(jax.random.key(0), (64, 64)),
    'empty': jnp.zeros((0, 4)),
    'nothing': None,
    'pair': (jnp.uint8(1), [jnp.bool_(True)]),
  }


def _same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def _payload(path):
  """The largest file of a checkpoint, which holds the arrays."""
  files = [p for p in pathlib.Path(path).rglob('*') if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


class CheckpointsTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.dir = tmp_path / 'checkpoints'
    yield
    gc.collect()  # now, where the mark above is in force

  def _saved(self, steps=(10, 20), config=CONFIG):
    with checkpoint.Checkpoints(self.dir, config=config) as saver:
      for step in steps:
        saver.save(step, _tree(step))

  def _restore(self, template=None, config=CONFIG):
    with checkpoint.Checkpoints(self.dir, config=config) as saver:
      return saver.restore(_tree() if template is None else template)

  def test_round_trip_keeps_every_bit_and_type(self):
    self._saved()
    step, tree = self._restore(jax.eval_shape(_tree))
    self.assertEqual(step, 20)
    _same(tree, _tree(20))

  def test_keeps_the_latest(self):
    self._saved(steps=(1, 2, 3, 4))
    with checkpoint.Checkpoints(self.dir, config=CONFIG) as saver:
      self.assertEqual(saver.steps, [3, 4])

  def test_keeps_what_the_latest_need(self):
    x = {'x': jnp.ones(3)}
    with checkpoint.Checkpoints(self.dir, config=CONFIG) as saver:
      for step, needs in ((1, ()), (2, (1,)), (3, (1,)), (4, (3,))):
        saver.save(step, x, {'seen': [step, 0.1]}, needs)
      saver.wait()
      self.assertEqual(saver.steps, [1, 3, 4])
    # Known from the disk as well, but for one that is damaged.
    with checkpoint.Checkpoints(self.dir, config=CONFIG) as saver:
      self.assertEqual(saver.record(4), {'seen': [4, 0.1]})
      _same(saver.restore_step(3, x), x)
      saver.save(5, x)
      saver.wait()
      self.assertEqual(saver.steps, [3, 4, 5])
      os.remove(self.dir / '4' / '_CHECKPOINT_METADATA')
    with checkpoint.Checkpoints(self.dir, config=CONFIG) as saver:
      saver.save(6, x)
      saver.wait()
      self.assertEqual(saver.steps, [5, 6])
      with pytest.raises(checkpoint.CorruptCheckpoint, match='start again'):
        saver.restore_step(4, x)

  def test_another_config_that_will_do(self):
    self._saved()

    def accepts(saved, now):
      return saved['seed'] < now['seed']

    for seed in (0, 1):
      with checkpoint.Checkpoints(
        self.dir, config={**CONFIG, 'seed': seed}, accepts=accepts
      ) as saver:
        self.assertEqual(saver.restore(_tree())[0], 20)
    with checkpoint.Checkpoints(
      self.dir, config={**CONFIG, 'seed': -1}, accepts=accepts
    ) as saver:
      with pytest.raises(ValueError, match='seed was 0, is -1'):
        saver.restore(_tree())

  def test_nothing_to_restore(self):
    self.assertIsNone(self._restore())

  def test_onto_other_shardings(self):
    self._saved()
    mesh = mesh_lib.data_mesh(4)
    template = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=mesh_lib.replicated(mesh)
      ),
      jax.eval_shape(_tree),
    )
    kernel = template['params']['a/b']['kernel']
    template['params']['a/b']['kernel'] = jax.ShapeDtypeStruct(
      kernel.shape, kernel.dtype, sharding=mesh_lib.sharded(mesh)
    )
    _, tree = self._restore(template)
    restored = tree['params']['a/b']['kernel']
    self.assertEqual(restored.sharding, mesh_lib.sharded(mesh))
    self.assertLen(tree['rng'].sharding.device_set, 4)
    _same(jax.device_get(tree['params']), jax.device_get(_tree(20)['params']))

  def test_save_is_a_snapshot(self):
    with checkpoint.Checkpoints(self.dir, config=CONFIG) as saver:
      x = np.zeros(100_000, np.float32)
      saver.save(1, {'x': x})
      x[:] = 1.0
    _, tree = self._restore({'x': jnp.zeros(100_000)})
    self.assertEqual(float(tree['x'].sum()), 0.0)

  def test_the_same_step_is_written_once(self):
    with checkpoint.Checkpoints(self.dir, config=CONFIG) as saver:
      saver.save(1, _tree(1.0))
      saver.save(1, _tree(2.0))
    _same(self._restore()[1], _tree(1.0))

  @parameterized.parameters('config', 'leaves')
  def test_a_manifest_that_lacks_something(self, key):
    self._saved()
    manifest = checkpoint.read_manifest(self.dir / '20')
    path = self.dir / '20' / '_CHECKPOINT_METADATA'
    text = json.loads(path.read_text())
    rest = {k: x for k, x in manifest.items() if k not in (key, 'sha256')}
    text['custom_metadata'] = sealed.seal(rest)
    path.write_text(json.dumps(text))
    with self.assertRaisesRegex(checkpoint.CorruptCheckpoint, f'lacks {key}'):
      checkpoint.read_manifest(self.dir / '20')

  @parameterized.parameters(
    'flip', 'truncate', 'remove', 'manifest', 'config', 'leaves', 'metadata'
  )
  def test_damage_falls_back_to_the_one_before(self, damage):
    self._saved()
    path = _payload(self.dir / '20')
    data = bytearray(path.read_bytes())
    if damage == 'flip':
      data[len(data) // 2] ^= 1  # in 'noise', which does not compress
      path.write_bytes(data)
    elif damage == 'truncate':
      path.write_bytes(data[: len(data) // 2])
    elif damage == 'remove':
      os.remove(path)
    elif damage == 'manifest':
      os.remove(self.dir / '20' / '_CHECKPOINT_METADATA')
    else:
      before, after = {
        'config': ('"seed": 0', '"seed": 1'),
        'leaves': ('"bfloat16"', '"cfloat16"'),
        'metadata': ('"metrics"', '"letrics"'),  # an entry that is Orbax's
      }[damage]
      path = self.dir / '20' / '_CHECKPOINT_METADATA'
      text = path.read_text()
      self.assertEqual(text.count(before), 1)
      path.write_text(text.replace(before, after))
    with self.assertLogs('absl', 'ERROR') as logs:
      step, tree = self._restore()
    self.assertEqual(step, 10)
    self.assertIn('Falling back', logs.output[0])
    _same(tree, _tree(10))
    self._saved(steps=(20,))  # the damaged one is replaced
    self.assertEqual(self._restore()[0], 20)

  def test_all_damaged(self):
    self._saved()
    for step in ('10', '20'):
      os.remove(_payload(self.dir / step))
    with pytest.raises(checkpoint.CorruptCheckpoint, match='is whole.*Remove'):
      self._restore()

  def test_killed_save_leaves_the_last_one(self):
    self._saved()
    # What a kill leaves behind: a temporary directory, never renamed.
    shutil.copytree(
      self.dir / '20', self.dir / '30.orbax-checkpoint-tmp-1700000000000'
    )
    self.assertEqual(self._restore()[0], 20)

  def test_failed_save_is_raised_and_leaves_the_last_one(self):
    self._saved()
    saver = checkpoint.Checkpoints(self.dir, config=CONFIG)
    with pytest.raises(Exception):  # noqa: B017 an unsavable type
      saver.save(30, {'x': object()})
    self.assertEqual(self._restore()[0], 20)

  @parameterized.named_parameters(
    ('value', {'seed': 1}, 'seed was 0, is 1'),
    ('tuple', {'model.widths': (8,)}, r'widths was \[8, 16\], is \[8\]'),
    ('new', {'lr': 0.1}, "lr was 'absent', is 0.1"),
  )
  def test_another_config(self, change, message):
    self._saved()
    with pytest.raises(ValueError, match=f'another config: .*{message}'):
      self._restore(config={**CONFIG, **change})

  @parameterized.named_parameters(
    ('missing', {'more': jnp.zeros(2)}, 'more is missing'),
    (
      'shape',
      {'half': jnp.zeros(4)},
      r'half is bfloat16\[5\], expected float32',
    ),
  )
  def test_another_model(self, change, message):
    self._saved()
    with pytest.raises(ValueError, match=f'another model: .*{message}'):
      self._restore({**_tree(), **change})

  def test_leaf_that_is_not_expected(self):
    self._saved()
    template = _tree()
    del template['step']
    with pytest.raises(ValueError, match='step is not expected'):
      self._restore(template)

  def test_single(self):
    checkpoint.save(self.dir / 'final', _tree(2.0), CONFIG)
    tree = checkpoint.restore(self.dir / 'final', jax.eval_shape(_tree), CONFIG)
    _same(tree, _tree(2.0))
    with pytest.raises(ValueError, match='seed was 0, is 1'):
      checkpoint.restore(self.dir / 'final', _tree(), {**CONFIG, 'seed': 1})


if __name__ == '__main__':
  absltest.main()
