"""A shrunk network on disk, and the model of it in a fresh process."""

import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax import linen as nn
from flax import nnx
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

KEY, X = jax.random.key(0), jnp.ones((2, 5))
CONFIG = {'hidden': 8, 'heads': 4}

# The model of both processes.
MODEL = """
from flax import nnx
import jax.numpy as jnp

class Model(nnx.Module):
  def __init__(self, hidden, heads, rngs):
    self.up = nnx.Linear(5, hidden, rngs=rngs)
    self.attend = nnx.MultiHeadAttention(
      heads, hidden, 6 * heads, decode=False, rngs=rngs
    )
    self.down = nnx.Linear(hidden, 3, rngs=rngs)

  def __call__(self, x):
    return self.down(self.attend(nnx.relu(self.up(x))))

def build(config):
  return nnx.split(Model(**config, rngs=nnx.Rngs(0)))
"""
exec(MODEL)  # Model, build


class Mlp(nn.Module):
  hidden: int = 8

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(self.hidden)(x))
    x = nn.BatchNorm(use_running_average=True)(x)
    return nn.Dense(3, param_dtype=jnp.bfloat16)(x)


def build_linen(model):
  return model, model.init(KEY, X)


def _planned(build, config, apply, size, n):
  model, params = build(config)
  found = jc.structure(apply(model))(params, X)
  names = [name for name, g in found.free.items() if g.size == size]
  plan = jc.Plan(found, {name: np.arange(n) for name in names[:1]})
  return apply(model), params, plan


def _apply_nnx(graphdef):
  return lambda state, x: nnx.merge(graphdef, state)(x)


class RebuildTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / 'small.safetensors'

  def fresh(self, script):
    """What a process prints that knows only the model and the file."""
    path = f'PATH, X = {str(self.path)!r}, jnp.ones((2, 5))\n'
    out = subprocess.run(
      [sys.executable, '-c', MODEL + path + textwrap.dedent(script)],
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(out.returncode, 0, out.stderr)
    return np.array(eval(out.stdout.strip().splitlines()[-1]))

  def test_fresh_process(self):
    fun, params, plan = _planned(build, CONFIG, _apply_nnx, 4, 2)  # noqa: F821
    small = jc.shrink(plan, params)
    jc.export.save_shrunk(self.path, plan, small)
    got = self.fresh(f"""
      import jaxopt_compress as jc

      found = jc.export.rebuild(build, {CONFIG!r}, PATH)
      assert found.config == {{'hidden': 8, 'heads': 2}}, found.config
      model = nnx.merge(found.model, found.params)
      assert model.attend.num_heads == 2
      print(model(X).tolist())
    """)
    want = fun(plan.mask(params), X)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

  def test_compressed_in_a_fresh_process(self):
    fun, params, plan = _planned(build_linen, Mlp(), lambda m: m.apply, 8, 6)
    rules = [('.*/Dense_0/kernel', jc.W8A8), ('.*', None)]
    small = jc.quantize(jc.shrink(plan, params), rules, uses=in_out.IN_OUT)
    jc.export.save_shrunk(self.path, plan, small)
    got = self.fresh("""
      import jaxopt_compress as jc

      shapes = {'params': {
        'Dense_0': {'kernel': (5, 6), 'bias': (6,)},
        'Dense_1': {'kernel': (6, 3), 'bias': (3,)},
        'BatchNorm_0': {'scale': (6,), 'bias': (6,)},
      }, 'batch_stats': {'BatchNorm_0': {'mean': (6,), 'var': (6,)}}}
      import jax

      def linen(c):
        at = lambda n: {5: 5, 3: 3, 6: c['hidden']}[n]
        made = lambda s: jnp.ones(tuple(map(at, s)))
        is_shape = lambda s: type(s) is tuple
        return None, jax.tree.map(made, shapes, is_leaf=is_shape)

      params = jc.export.rebuild(linen, {'hidden': 8}, PATH).params
      leaf = params['params']['Dense_0']['kernel']
      print(jc.lift(jnp.dot)(X, leaf).tolist())
    """)
    want = jc.lift(jnp.dot)(X, small['params']['Dense_0']['kernel'])
    np.testing.assert_array_equal(got, want)

  def test_damaged(self):
    _, params, plan = _planned(build_linen, Mlp(), lambda m: m.apply, 8, 3)
    jc.export.save_shrunk(self.path, plan, jc.shrink(plan, params))
    content = self.path.read_bytes()
    dot = content.index(b'structure')
    for i, message in (
      (len(content) - 1, 'the numbers of .*/.* are not'),
      (dot, 'its header is not'),
    ):
      flipped = bytearray(content)
      flipped[i] ^= 1
      self.path.write_bytes(flipped)
      with self.assertRaisesRegex(ValueError, f'damaged: {message}'):
        jc.export.rebuild(build_linen, Mlp(), self.path)
    self.path.write_bytes(content.replace(b'tree/1', b'tree/9'))
    with self.assertRaisesRegex(ValueError, "format '.*tree/9', and"):
      jc.export.rebuild(build_linen, Mlp(), self.path)

  def test_linen(self):
    fun, params, plan = _planned(build_linen, Mlp(), lambda m: m.apply, 8, 3)
    small = jc.shrink(plan, params)
    jc.export.save_shrunk(self.path, plan, small)
    model, loaded, config = jc.export.rebuild(build_linen, Mlp(), self.path)
    self.assertEqual((model.hidden, config.hidden), (3, 3))
    chex.assert_trees_all_equal(loaded, small)
    chex.assert_trees_all_equal_dtypes(loaded, small)
    np.testing.assert_allclose(
      model.apply(loaded, X), fun(plan.mask(params), X), rtol=1e-2
    )
    again = jc.export.load_plan(self.path)
    self.assertEqual(again.structure, plan.structure)
    with self.assertRaisesRegex(
      ValueError, r'other parameters: .* has shape \(9,'
    ):
      jc.export.rebuild(build_linen, Mlp(hidden=9), self.path)

  def test_refused(self):
    _, params, plan = _planned(build_linen, Mlp(), lambda m: m.apply, 8, 3)
    small = jc.shrink(plan, params)
    for tree, message in (
      (params, r'has shape \(.*8.*the plan makes .*jc.shrink'),
      ({}, 'batch_stats/BatchNorm_0/mean of the plan is not among .* Save all'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        jc.export.save_shrunk(self.path, plan, tree)
    jc.save(self.path, {'a': np.ones(2)})
    with self.assertRaisesRegex(ValueError, 'no plan in its header'):
      jc.export.rebuild(build_linen, Mlp(), self.path)
    jc.export.save_shrunk(self.path, plan, small)

    def more(config):
      model, params = build_linen(config)
      return model, {**params, 'rngs': jnp.ones(2)}

    with self.assertRaisesRegex(ValueError, 'rngs of the model is not in'):
      jc.export.rebuild(more, Mlp(), self.path)

  def test_a_network_that_has_grown(self):
    def build(config):
      shapes = {'w': (2, config['n']), 'v': (config['n'], 2)}
      return None, {name: jnp.ones(shape) for name, shape in shapes.items()}

    fun = lambda p, x: jnp.tanh(x @ p['w']) @ p['v']
    params, x = build({'n': 4})[1], jnp.ones((1, 2))
    plan = jc.widen(jc.structure(fun)(params, x), factor=2)
    jc.export.save_shrunk(self.path, plan, jc.grow(plan, params))
    _, large, config = jc.export.rebuild(build, {'n': 4}, self.path)
    self.assertEqual(config, {'n': 8})
    np.testing.assert_allclose(fun(large, x), fun(params, x), rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
