"""Where arrays of a tree end up."""

from absl.testing import parameterized
import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from jaxopt_compress.parallel import mesh as mesh_lib


class MeshTest(parameterized.TestCase):
  @parameterized.parameters((1, 1), (2, 2), (None, 4))
  def test_size_and_axis_type(self, n, expected):
    mesh = mesh_lib.data_mesh(n)
    self.assertEqual(mesh.shape, {'data': expected})
    self.assertEqual(mesh.axis_types, (AxisType.Auto,))

  def test_more_devices_than_there_are(self):
    with pytest.raises(ValueError, match='mesh of 9 devices .* there are 4'):
      mesh_lib.data_mesh(9)

  def test_shard_and_replicate(self):
    mesh = mesh_lib.data_mesh(4)
    x = np.arange(8.0, dtype=np.float32)
    split = mesh_lib.shard({'x': x}, mesh)['x']
    whole = mesh_lib.replicate({'x': x, 'key': jax.random.key(0)}, mesh)
    self.assertEqual(split.sharding.spec, PartitionSpec('data'))
    self.assertEqual(split.addressable_shards[1].data.tolist(), [2.0, 3.0])
    self.assertEqual(whole['x'].sharding.spec, PartitionSpec())
    np.testing.assert_array_equal(split, x)
    np.testing.assert_array_equal(whole['x'], x)

  @parameterized.parameters(
    (lambda: jax.random.key(0),), (lambda: 1.0,), (lambda: np.float32(1),)
  )
  def test_what_has_no_axis_of_a_batch(self, make):
    batch = {'x': np.zeros(8), 'rest': make()}
    with pytest.raises(ValueError, match=r'^rest of a batch is .*the state or'):
      mesh_lib.shard(batch, mesh_lib.data_mesh(4))

  @parameterized.parameters((2,), (4,))
  def test_leaves_of_other_lengths(self, n):
    batch = {'x': np.zeros((8, 3)), 'y': np.zeros(n, np.uint32)}
    says = f"lengths {{'x': 8, 'y': {n}}}.*PRNG key"
    with pytest.raises(ValueError, match=says):
      mesh_lib.shard(batch, mesh_lib.data_mesh(2))

  def test_an_empty_batch(self):
    with pytest.raises(ValueError, match='batch of 0 does not divide over 4'):
      mesh_lib.shard(np.zeros((0, 3)), mesh_lib.data_mesh(4))

  def test_shard_of_what_does_not_divide(self):
    with pytest.raises(ValueError, match='batch of 6 does not divide over 4'):
      mesh_lib.shard(np.zeros(6), mesh_lib.data_mesh(4))
