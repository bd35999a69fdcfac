"""How the parts of a leaf are cut with the array that it stands for."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import sharding
from jaxopt_compress.quantization import qarray


def _mesh():
  return jax.make_mesh(
    (2, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


def _leaf(shape, format='int8', shared=(-2,), axis=-2, group=0):
  w = jax.random.normal(jax.random.key(0), shape)
  spec = jc.schemes.Spec(format, 'group' if group else 'channel', group)
  blocks = tuple(sorted((a, group if a == axis else 0) for a in shared))
  return qarray.quantize_array(w, spec, blocks, packed=axis)


class PartSpecTest(parameterized.TestCase):
  @parameterized.named_parameters(
    dict(
      testcase_name='whole', shape=(4, 6), spec=P('a', 'b'), want=P('a', 'b')
    ),
    dict(
      testcase_name='shared axis',
      shape=(1, 6),
      spec=P('a', 'b'),
      want=P(None, 'b'),
    ),
    dict(
      testcase_name='short spec', shape=(4, 6), spec=P('a'), want=P('a', None)
    ),
    dict(
      testcase_name='two mesh axes',
      shape=(4, 6),
      spec=P(('a', 'b')),
      want=P(('a', 'b'), None),
    ),
    dict(testcase_name='uneven', shape=(3, 6), spec=P('a'), want=None),
    dict(
      testcase_name='uneven over two',
      shape=(6, 6),
      spec=P(('a', 'b')),
      want=None,
    ),
    dict(testcase_name='lower rank', shape=(6,), spec=P('a', 'b'), want=P()),
    dict(
      testcase_name='nothing cut', shape=(3, 5), spec=P(), want=P(None, None)
    ),
  )
  def test_part_spec(self, shape, spec, want):
    self.assertEqual(sharding.part_spec(shape, 2, spec, _mesh()), want)


LEAVES = dict(
  channel=dict(shape=(8, 12)),
  int4=dict(shape=(8, 12), format='int4'),
  int4_two=dict(shape=(2, 12), format='int4'),
  groups_of_4=dict(shape=(8, 12), group=4),
  groups_of_3=dict(shape=(12, 12), group=3),
  ragged=dict(shape=(12, 12), group=8),
  int4_groups=dict(shape=(8, 12), format='int4', group=4),
)
FITS = dict(  # cut over two devices along -2, along -1
  channel=(True, True),
  int4=(True, True),
  int4_two=(False, True),
  groups_of_4=(True, True),
  groups_of_3=(True, True),
  ragged=(False, True),
  int4_groups=(True, True),
)
CELLS = [
  dict(
    testcase_name=f'{name} {axis}',
    name=name,
    spec=P('a') if axis == -2 else P(None, 'a'),
    fits=FITS[name][axis + 2],
  )
  for name in LEAVES
  for axis in (-2, -1)
]


class LeafSpecsTest(parameterized.TestCase):
  @parameterized.named_parameters(*CELLS)
  def test_a_cut_leaf_means_the_cut_array_or_is_refused(self, name, spec, fits):
    leaf = _leaf(**LEAVES[name])
    cuts = [2 if i < len(spec) and spec[i] else 1 for i in range(2)]
    local = tuple(n // c for n, c in zip(leaf.shape, cuts, strict=True))
    specs = sharding.leaf_specs(leaf, spec, _mesh(), local)
    self.assertEqual(specs is not None, fits)
    if not fits:
      return
    run = jax.shard_map(
      lambda leaf: leaf.materialize(),
      mesh=_mesh(),
      in_specs=(specs,),
      out_specs=spec,
    )
    np.testing.assert_array_equal(run(leaf), leaf.materialize())


if __name__ == '__main__':
  absltest.main()
