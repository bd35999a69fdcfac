"""ONNX graphs as JAX functions, against numpy."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from launch.bench.real import onnx_operators as ops
from launch.bench.real import onnx_program


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _graph(nodes, inputs=('x',), outputs=('y',)):
  return {'inputs': list(inputs), 'outputs': list(outputs), 'nodes': nodes}


def _lstm(x, w, r, b, h, c):
  """Gate after gate, as the operator's page has it: i, o, f, c."""
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  n, found = h.shape[-1], []
  for row in x:
    gates = row @ w[0].T + h[0] @ r[0].T + b[0, : 4 * n] + b[0, 4 * n :]
    i, o, f = (sigmoid(gates[:, n * j : n * (j + 1)]) for j in range(3))
    c = f * c + i * np.tanh(gates[:, 3 * n :])
    h = o * np.tanh(c)
    found.append(h)
  return np.stack(found), h, c


class OnnxProgramTest(parameterized.TestCase):
  def test_a_small_network(self):
    graph = _graph(
      [
        ['Conv', ['x', 'w', 'b'], ['c'], {'pads': [1, 1, 1, 1]}],
        ['HardSwish', ['c'], ['s'], {}],
        ['GlobalAveragePool', ['s'], ['g'], {}],
        ['Shape', ['g'], ['shape'], {}],
        ['Slice', ['shape', 'zero', 'two'], ['front'], {}],
        ['Reshape', ['g', 'front'], ['r'], {}],
        ['Gemm', ['r', 'd', 'e'], ['y'], {'transB': 1}],
      ]
    )
    arrays = dict(w=_normal(4, 3, 3, 3), b=_normal(4), d=_normal(5, 4))
    arrays |= dict(e=_normal(5), zero=np.array([0]), two=np.array([2]))
    apply, params, weights = onnx_program.program(graph, arrays)
    self.assertCountEqual(params, ['w', 'b', 'd', 'e'])
    self.assertEqual(weights, ['w', 'd'])
    x = _normal(2, 3, 6, 6)
    [y] = jax.jit(apply)(params, x)
    wide = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    views = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (2, 3))
    c = np.einsum('nchwij,ocij->nohw', views, arrays['w'])
    c += arrays['b'][:, None, None]
    s = c * np.clip(c / 6 + 0.5, 0, 1)
    want = s.mean((2, 3)) @ arrays['d'].T + arrays['e']
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)

  def test_its_weights_can_be_rounded(self):
    nodes = [['MatMul', ['x', 'w'], ['y'], {}]]
    apply, params, _ = onnx_program.program(
      _graph(nodes), {'w': _normal(64, 32)}
    )
    x = _normal(3, 64)
    q = jc.quantize(params, [('w', jc.W8A8)], jc.uses(apply)(params, x))
    [y], [want] = jc.lift(apply)(q, x), apply(params, x)
    self.assertLess(np.abs(y - want).max() / np.abs(want).max(), 0.02)

  def test_what_parameters_alone_decide_is_computed_once(self):
    nodes = [
      ['Slice', ['w', 'one', 'three'], ['part'], {}],
      ['Concat', ['part', 'w'], ['both'], {'axis': 0}],
      ['MatMul', ['x', 'both'], ['y'], {}],
    ]
    arrays = dict(w=_normal(3, 4), one=np.array([1]), three=np.array([3]))
    apply, params, weights = onnx_program.program(_graph(nodes), arrays)
    self.assertEqual(weights, ['both'])
    self.assertCountEqual(params, ['both'])
    x = _normal(2, 5)
    both = np.concatenate([arrays['w'][1:3], arrays['w']])
    np.testing.assert_allclose(apply(params, x)[0], x @ both, rtol=1e-5)
    self.assertNotIn('concatenate', str(jax.make_jaxpr(apply)(params, x)))

  def test_a_branch_is_chosen_by_what_is_known(self):
    inner = _graph([['Mul', ['x', 'three'], ['z'], {}]], (), ('z',))
    other = _graph([['Identity', ['x'], ['z'], {}]], (), ('z',))
    branches = {'then_branch': inner, 'else_branch': other}
    nodes = [
      ['Shape', ['x'], ['n'], {}],
      ['Equal', ['n', 'two'], ['same'], {}],
      ['If', ['same'], ['y'], branches],
    ]
    arrays = {'two': np.array([2]), 'three': np.float32(3)}
    apply, params, _ = onnx_program.program(_graph(nodes), arrays)
    self.assertEmpty(params)
    self.assertEqual(apply({}, jnp.ones(2))[0].tolist(), [3, 3])
    self.assertEqual(apply({}, jnp.ones(3))[0].tolist(), [1, 1, 1])
    nodes = [['If', ['x'], ['y'], branches]]
    apply, *_ = onnx_program.program(_graph(nodes), arrays)
    with self.assertRaisesRegex(ValueError, 'depends on data'):
      apply({}, jnp.bool_(True))

  def test_unknown_operators_are_named(self):
    apply, *_ = onnx_program.program(_graph([['Magic', ['x'], ['y'], {}]]), {})
    with self.assertRaisesRegex(ValueError, 'Magic'):
      apply({}, jnp.ones(2))

  @parameterized.parameters(1, 4)
  def test_lstm(self, time):
    x, n = _normal(time, 2, 5), 3
    w, r, b = _normal(1, 4 * n, 5), _normal(1, 4 * n, n), _normal(1, 8 * n)
    h, c = _normal(1, 2, n, seed=1), _normal(1, 2, n, seed=2)
    found = ops.LSTM(jnp, x, w, r, b, None, h, c, hidden_size=n)
    want = _lstm(x, w, r, b, h, c)
    for a, b in zip(found, want, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

  def test_transposed_convolutions(self):
    x, w = _normal(1, 2, 3, 4), _normal(2, 5, 2, 2)
    found = ops.ConvTranspose(jnp, x, w, _normal(5), strides=[2, 2])
    want = np.zeros((1, 5, 6, 8), np.float32)
    for i, j in np.ndindex(3, 4):
      at = np.s_[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
      want[at] += np.einsum('nc,coij->noij', x[:, :, i, j], w)
    want += _normal(5)[:, None, None]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)

  def test_resize_and_pools(self):
    x = _normal(1, 1, 2, 4)
    how = dict(coordinate_transformation_mode='asymmetric')
    how |= dict(nearest_mode='floor')
    y = ops.Resize(jnp, x, None, np.float32([1, 1, 2, 3]), **how)
    np.testing.assert_array_equal(y, x.repeat(2, 2).repeat(3, 3))
    with self.assertRaisesRegex(ValueError, 'whole factors'):
      ops.Resize(jnp, x, None, np.float32([1, 1, 1.5, 1]), **how)
    y = ops.AveragePool(jnp, x, [2, 2], [2, 2])
    want = x.reshape(1, 1, 1, 2, 2, 2).mean((3, 5))
    np.testing.assert_allclose(y, want, rtol=1e-5)
    y = ops.MaxPool(jnp, x, [1, 3], pads=[0, 1, 0, 1])
    self.assertEqual(y.shape, x.shape)
    self.assertEqual(y[0, 0, 0, 0], x[0, 0, 0, :2].max())

  def test_places(self):
    x = np.arange(12).reshape(3, 4)
    far = np.iinfo(np.int64).min
    y = ops.Slice(np, x, [-1], [far], [1], [-2])
    np.testing.assert_array_equal(y, x[:, ::-2])
    a, b = ops.Split(np, x, axis=1, num_outputs=2)
    np.testing.assert_array_equal(np.concatenate([a, b], 1), x)
    y = ops.Pad(np, np.float32(x), [0, 2], axes=[1], mode='reflect')
    self.assertEqual(y[0].tolist(), [0, 1, 2, 3, 2, 1])
    self.assertEqual(ops.Gather(np, x, np.array(1), 1).tolist(), [1, 5, 9])
    self.assertEqual(ops.Expand(np, x[:, :1], [3, 2]).shape, (3, 2))
    self.assertEqual(ops.Reshape(np, x, [0, 2, -1]).shape, (3, 2, 2))
    y = ops.ConstantOfShape(np, [2], value=[7])
    self.assertEqual((y.tolist(), y.dtype), ([7, 7], np.int64))

  def test_ranks_are_made_equal(self):
    y = ops.Add(jnp, _normal(2, 3), _normal(3))
    np.testing.assert_allclose(y, _normal(2, 3) + _normal(3), rtol=1e-6)
    self.assertEqual(ops.Div(np, np.array([7]), np.array([2])).tolist(), [3])


if __name__ == '__main__':
  absltest.main()
