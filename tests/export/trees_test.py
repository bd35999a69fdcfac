"""Any tree goes through one file and comes back; a damaged file names what is wrong."""

import collections
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import contract_leaves
from flax import nnx
from flax.core import freeze
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from safetensors import numpy as safetensors

import jaxopt_compress as jc
from jaxopt_compress.disk import tensors

W = jax.random.normal(jax.random.key(0), (32, 16))
X = jnp.ones((2, 32))


def apply(p, x):
  return x @ p['w']


USES = jc.uses(apply)({'w': W}, X)
Pair = collections.namedtuple('Pair', 'left right')


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
  x: jax.Array
  value: dict
  note: str = dataclasses.field(default='', metadata={'static': True})


def quantized(words):
  return jc.quantize({'w': W}, [('w', words)], USES)['w']


# What comes back as it was.
TREES = {
  'containers': lambda: {
    'a': [W, (W + 1, {}), []],
    'b': {},
    'c': (),
    'd': None,
  },
  'an array': lambda: W,
  'a leaf': lambda: quantized('int8'),
  'nothing': lambda: None,
  'whole numbers as keys': lambda: {0: W, 10: {2: W + 1}},
  'a word of the format': lambda: {'__metadata__': W, 'w': 1 + W},
  'keys with slashes': lambda: {'a/b': {'c': W}, 'a': {'b/c': 1 + W}},
  'keys of all kinds': lambda: {'': W, ' ': {'': -W}, 'é"\\': {'.': 2 * W}},
  'python': lambda: [1, True, False, 'word', None, -0.5, 2**70, 1.0, 0, 0.0],
  'not finite': lambda: [float('inf'), -float('inf')],
  'random keys': lambda: {
    'a': jax.random.key(3),
    'b': jax.random.split(jax.random.key(1, impl='rbg'), (2, 3)),
  },
  'types': lambda: [
    jnp.arange(-8, 7).astype(t)
    for t in ('int4', 'int8', 'bfloat16', 'float8_e5m2', 'float4_e2m1fn')
  ],
  'sizes': lambda: [jnp.zeros((0, 3)), jnp.ones(()), jnp.ones((1, 1, 1))],
  'nan': lambda: jnp.array([jnp.nan, -jnp.nan, -0.0]),
  'groups': lambda: quantized('int4 g16 asym'),
  'odd codes': lambda: jc.quantize({'w': W[:13]}, [('w', 'int3 g5')], USES),
  'static': lambda: quantized(jc.W8A8),
  'two levels': lambda: {'a': quantized('NVFP4'), 'b': quantized('nf4 g16 dq')},
  'a cache': lambda: jc.quantization.quantize_cache(
    {'k': X, 'length': jnp.int32(1)}, [('k', 'int8'), ('.*', None)]
  ),
  'bits': lambda: jc.sparsify({'w': jnp.where(W > 1, W, 0)})[0],
}
# What comes back as plain dicts, and with `like` as it was.
NODES = {
  'NamedTuple': (lambda: Pair(W, [1]), lambda: {'left': W, 'right': [1]}),
  'dataclass': (
    lambda: {'r': Record(W, {'a': 2}, 'kept')},
    lambda: {'r': {'x': W, 'value': {'a': 2}}},
  ),
  'FrozenDict': (lambda: freeze({'a': {'b': W}}), lambda: {'a': {'b': W}}),
  'nnx.State': (
    lambda: nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))),
    lambda: {'bias': jnp.zeros(3), 'kernel': nnx.Linear(2, 3, rngs=nnx.Rngs(0)).kernel[...]},
  ),
  'optax': (
    lambda: optax.adam(0.1).init({'w': W}),
    lambda: (
      {'count': jnp.int32(0), 'mu': {'w': jnp.zeros_like(W)}, 'nu': {'w': jnp.zeros_like(W)}},
      {},
    ),
  ),
}  # fmt: skip


def check_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    if not hasattr(b, 'dtype'):
      assert type(a) is type(b) and a == b, (a, b)
      continue
    assert isinstance(a, jax.Array)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


class TreesTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.path = tmp_path / 'net'

  def there_and_back(self, tree, **options):
    jc.save(self.path, tree)
    return jc.load(self.path, **options)

  @parameterized.parameters(*TREES)
  def test_comes_back(self, name):
    tree = TREES[name]()
    check_same(self.there_and_back(tree), tree)
    if name == 'keys with slashes':
      with self.assertRaisesRegex(ValueError, "Two leaves .*'a/b/c'"):
        jc.load(self.path, like=tree)
      return
    check_same(jc.load(str(self.path), like=tree), tree)

  @parameterized.parameters(*contract_leaves.LEAVES)
  def test_every_leaf_comes_back(self, name):
    tree = contract_leaves.LEAVES[name].compress({'w': W}, USES)
    got = self.there_and_back(tree)
    # What is laid out for this machine comes back for any.
    check_same(got, jc.unpack(tree))
    want = jax.jit(jc.lift(apply))(jc.unpack(tree), X)
    np.testing.assert_array_equal(jax.jit(jc.lift(apply))(got, X), want)

  @parameterized.parameters(*NODES)
  def test_nodes_that_a_header_cannot_say(self, name):
    tree, plain = (make() for make in NODES[name])
    check_same(self.there_and_back(tree), plain)
    check_same(jc.load(self.path, like=tree), tree)
    check_same(jc.load(self.path, like=jax.eval_shape(lambda: tree)), tree)

  def test_arrays_have_the_names_of_their_paths(self):
    jc.save(self.path, {'a': [quantized(jc.W8A8), W], 'n': 2})
    found = safetensors.load_file(self.path)
    self.assertEqual(
      set(found), {'a/0.weight.qvalue', 'a/0.weight.scale', 'a/1'}
    )
    np.testing.assert_array_equal(found['a/1'], W)

  def test_what_is_at_two_places_is_stored_once(self):
    q = quantized('int8')
    tree = {'a': W, 'b': [W, q], 'c': q}
    got = self.there_and_back(tree)
    check_same(got, tree)
    self.assertIs(got['a'], got['b'][0])
    self.assertIs(got['c'].qvalue, got['b'][1].qvalue)
    self.assertEqual(
      set(safetensors.load_file(self.path)),
      {'a', 'b/1.qvalue', 'b/1.scale'},
    )

  def test_numbers_of_64_bits_are_not_cut(self):
    tree = {
      'n': np.array([2**40]),
      'x': np.float64(1 / 3),
      'y': np.ones(2, 'f4'),
    }
    got = self.there_and_back(tree)
    self.assertIsInstance(got['n'], np.ndarray)
    np.testing.assert_array_equal(got['n'], tree['n'])
    self.assertEqual(float(got['x']), 1 / 3)
    self.assertIsInstance(got['y'], jax.Array)
    with jax.enable_x64(True):
      check_same(jc.load(self.path), jax.tree.map(jnp.asarray, tree))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    with self.assertRaisesRegex(ValueError, 'n is int64.*jax_enable_x64'):
      jc.load(self.path, sharding=place)

  def test_only_a_part(self):
    tree = {'a': {'w': W, 'q': quantized('int8')}, 'b': [W + 1, 3]}
    jc.save(self.path, tree)
    with mock.patch.object(
      tensors.File, 'read', autospec=True, side_effect=tensors.File.read
    ) as read:
      got = jc.load(self.path, where=[('a/q', True), ('.*', None)])
    self.assertEqual(read.call_count, 2)
    want = {'a': {'w': None, 'q': tree['a']['q']}, 'b': [None, None]}
    check_same(got, want)
    with self.assertRaisesRegex(ValueError, 'matches no path'):
      jc.load(self.path, where=[('c', True), ('.*', None)])
    with self.assertRaisesRegex(ValueError, 'True or None of a path, not 0.5'):
      jc.load(self.path, where=[('.*', 0.5)])

  def test_onto_a_mesh(self):
    mesh = jax.make_mesh((4,), ('d',))
    rows, columns, whole = (
      jax.NamedSharding(mesh, jax.P(*s)) for s in (('d',), (None, 'd'), ())
    )
    packed = jc.pack({'w': quantized('int8')}, USES, target='cpu')['w']
    tree = {
      'w': W, 'q': quantized('int4 g16'), 'f8': W.astype('float8_e4m3fn'),
      'i4': W.astype('int4'), 'key': jax.random.key(0), 'n': 3,
      'empty': jnp.zeros((0, 4)), 'packed': packed,
    }  # fmt: skip
    jc.save(self.path, tree)
    rules = [('w|f8', rows), ('q|packed|i4', columns), ('key', whole)]
    got = jc.load(self.path, sharding=[*rules, ('.*', None)])
    check_same(got, jc.unpack(tree))
    for name, shape in (('w', (8, 16)), ('f8', (8, 16)), ('i4', (32, 4))):
      shard = got[name].addressable_shards[1]
      self.assertEqual(shard.data.shape, shape)
    self.assertEqual(got['q'].qvalue.addressable_shards[0].data.shape, (16, 4))
    self.assertEqual(got['key'].sharding.num_devices, 4)
    again = jc.load(self.path, sharding=whole)
    self.assertTrue(again['q'].scale.sharding.is_fully_replicated)
    # From a mesh, too.
    check_same(self.there_and_back(got), jc.unpack(tree))
    for path, place, message in (
      ('q', rows, 'q, of .* cannot be placed.*int4 g16 .*cannot be cut'),
      (
        'w',
        jax.NamedSharding(mesh, jax.P(None, None, 'd')),
        'w, .*cannot be pl',
      ),
    ):
      with self.assertRaisesRegex(ValueError, f'(?s){message}'):
        jc.load(self.path, sharding=[(path, place), ('.*', None)])

  def test_a_part_on_each_device_is_checked(self):
    place = jax.NamedSharding(jax.make_mesh((4,), ('d',)), jax.P('d'))
    jc.save(self.path, {'w': W})
    content = bytearray(self.path.read_bytes())
    content[-1] ^= 4
    self.path.write_bytes(content)
    for options in ({}, {'sharding': place}):
      with self.assertRaisesRegex(ValueError, 'damaged: the numbers of w are'):
        jc.load(self.path, **options)

  @parameterized.named_parameters(
    ('missing', {'w': W, 'v': W}, "'v' of like is not in"),
    ('more', {}, "'w' of .*net is not in like"),
    ('shape', {'w': W.T}, r'w of like is float32\[16, 32\].*float32\[32, 16\]'),
    ('dtype', {'w': W.astype('bfloat16')}, r'bfloat16\[32, 16\].*jc.cast'),
    ('scalar', {'w': 3.0}, r'w of like is \[\], and .*\[32, 16\]'),
  )
  def test_like_another(self, like, message):
    jc.save(self.path, {'w': quantized('int8')})
    with self.assertRaisesRegex(ValueError, message):
      jc.load(self.path, like=like)

  def test_modules_as_they_are(self):
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(32, 16, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    model = nnx.Sequential(*layers)
    uses = jc.uses(lambda m, x: m(x))(model, X)
    model = jc.quantize(model, jc.rules_for(uses, dot='int8', at_least=1), uses)
    jc.save(self.path, model)
    leaf = jc.load(self.path)['layers']['0']['kernel']
    np.testing.assert_array_equal(leaf.qvalue, model.layers[0].kernel.qvalue)
    again = jc.load(self.path, like=model)
    model.eval(), again.eval()
    np.testing.assert_array_equal(again(X), model(X))

  def test_leaves_go_where_like_has_arrays(self):
    q = quantized('int4 g16')
    jc.save(self.path, {'p': {'w': q}})
    model = {'p': Pair(left=None, right=None)}
    got = jc.load(self.path, like=freeze({'p': {'w': W}}))
    check_same(got, freeze({'p': {'w': q}}))
    with self.assertRaisesRegex(ValueError, "'p/w' of .*net is not in like"):
      jc.load(self.path, like=model)

  @parameterized.named_parameters(
    ('object', {'a': {'b': object()}}, 'a/b is <object.*of type object, which'),
    ('complex', [1j], '0 is 1j, of type complex'),
    ('function', {'f': print}, 'f is <built-in function print>'),
    ('key', {'a': {(1, 2): W}}, r'a has the key \(1, 2\)'),
    ('keys of two kinds', {1: W, '1': W}, r"keys \[1, '1'\].*of one kind only"),
    ('six bits', [np.ones(2, ml_dtypes.float6_e2m3fn)], 'which no file says'),
    ('abstract', {'w': jax.ShapeDtypeStruct((2,), 'f4')}, 'w is ShapeDtype'),
    ('parts that were cast', {'w': jax.tree.map(
      lambda x: x.astype(jnp.bfloat16), quantized('int8'))}, 'qvalue is bfloat16'),
  )  # fmt: skip
  def test_refused(self, tree, message):
    with self.assertRaisesRegex(ValueError, message):
      jc.save(self.path, tree)
    self.assertEqual(os.listdir(self.path.parent), [])

  def test_places(self):
    folder = self.path.parent
    for path, message in (
      (folder, 'is a folder'),
      (folder / 'no' / 'net', 'in a folder that is not there'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        jc.save(path, {'w': W})
    # Of a link, what it points to is replaced.
    jc.save(folder / 'other', {})
    (folder / 'link').symlink_to(folder / 'other')
    jc.save(folder / 'link', {'w': W})
    check_same(jc.load(folder / 'other'), {'w': W})
    self.assertTrue((folder / 'link').is_symlink())
    with mock.patch.object(os, 'fsync', side_effect=OSError('disk full')):
      with self.assertRaisesRegex(OSError, 'disk full'):
        jc.save(folder / 'other', {'v': W})
    check_same(jc.load(folder / 'other'), {'w': W})
    self.assertEqual(sorted(os.listdir(folder)), ['link', 'other'])


# Saves one tree after the other, of 4 MB, and says when it has begun.
SAVES = """
  import sys
  import numpy as np
  import jaxopt_compress as jc
  n = 0
  while True:
    n += 1
    jc.save(sys.argv[1], {'n': n, 'x': np.full(1 << 20, n, np.float32)})
    print(n, flush=True)
"""


class KilledTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.path = tmp_path / 'net'

  def test_a_killed_save_leaves_one_of_the_two(self):
    path = self.path
    process = subprocess.Popen(
      [sys.executable, '-c', textwrap.dedent(SAVES), str(path)],
      stdout=subprocess.PIPE,
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    with process:
      try:
        self.assertEqual(process.stdout.readline(), b'1\n')
        for _ in range(3):  # read while it is replaced again and again
          tree = jc.load(path)
          self.assertTrue((tree['x'] == tree['n']).all())
      finally:
        process.send_signal(signal.SIGKILL)
      done = int((process.stdout.read().split() or [b'1'])[-1])
    tree = jc.load(path)
    self.assertTrue((tree['x'] == tree['n']).all())
    self.assertIn(tree['n'], (done, done + 1))
    # What it left, if only now, is removed by the next one; no other file is.
    for name in ('.net.abcdefgh.partial', '.other.abcdefgh.partial'):
      path.with_name(name).touch()
    jc.save(path, {})
    left = sorted(p.name for p in path.parent.iterdir())
    self.assertEqual(left, ['.other.abcdefgh.partial', 'net'])


if __name__ == '__main__':
  absltest.main()
