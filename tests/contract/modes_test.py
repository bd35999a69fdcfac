"""JAX's modes change how a program runs, not what the library gives.

Every verb runs once as usual and once in each mode; `jax_debug_nans` finds what is
NaN on the way, too.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.distillation import losses

_RNG = np.random.default_rng(0)


def _rand(*shape):
  return jnp.asarray(_RNG.normal(size=shape), jnp.float32)


X, INDEX = _rand(6, 16), np.arange(6, dtype=np.int32)
PARAMS = {
  'dense': {'bias': _rand(8), 'kernel': _rand(16, 8)},
  'layers': _rand(2, 8, 8),
  'out': _rand(8, 4),
  'table': _rand(6, 8),
}


def apply(p, x):
  h = jax.nn.relu(x @ p['dense']['kernel'] + p['dense']['bias'][None])
  h = h + jnp.take(p['table'], INDEX, axis=0)
  h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p['layers'])[0]
  return h @ p['out']


USES = jc.uses(apply)(PARAMS, X)


def _rules(value, where='dense/kernel|layers|out|table'):
  return [(where, value), ('.*', None)]


def _quantized(scheme, params=PARAMS):
  key = jax.random.key(0)
  return jc.quantize(params, _rules(scheme), USES, key=key)


def _lifted(params):
  return jax.jit(jc.lift(apply))(params, X)


def _trained(comp):
  state = comp.init(PARAMS)

  def loss(p):
    return jnp.square(jc.lift(apply)(comp.apply(p, state), X)).mean()

  grads = jax.jit(jax.grad(loss))(PARAMS)
  state = comp.update(state, PARAMS, jc.Info(1, grads))
  return grads, jc.materialize(jc.freeze(comp.apply(PARAMS, state)))


def _losses():
  student, teacher, labels = X[:, :4], X[:, 4:8], jnp.array([0, 1, 2, 3, 0, -1])
  how = dict(alpha=0.5, temperature=2.0)
  return [
    losses.distill(student, teacher, labels, **how, mask=labels >= 0),
    losses.cross_entropy(student, labels, mask=labels >= 0),
    losses.topk_kl(student, *losses.tail.compress(teacher, 2)),
    jax.value_and_grad(_in_blocks)(student, teacher),
  ]


def _in_blocks(hidden, teacher):
  logits = losses.Logits(hidden, X[:4, 8:12])
  return losses.chunked(losses.kl, chunk=4)(logits, teacher)[0]


def _calibrated():
  rules = _rules('int8, int8 tensor static', 'dense/kernel|layers|out')
  ranges = jc.calibrate(apply, PARAMS, rules, [X, 2 * X], USES)
  return _lifted(jc.quantize(PARAMS, rules, USES, ranges=ranges))


def _observed():
  statistics = {
    'dense/kernel|layers': jc.statistics.gram(),
    'out': jc.statistics.sum_abs(),
  }
  _, found = jc.observe(apply, statistics)(_quantized('W8A8'), X)
  return [seen.state for seen in found.values()]


def _zeros():
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  return _lifted(jc.pack(_quantized('W8A8', zeros), USES))


def _pruned(**how):
  return _trained(
    jc.methods.gradual(_rules(jc.Sparsity(**how), 'layers|out'), USES)
  )


VERBS = {
  'integers': lambda: _lifted(_quantized('W8A8')),
  'stochastic': lambda: jc.materialize(_quantized('int4 asym g4 stochastic')),
  'floats': lambda: _lifted(_quantized('NVFP4')),
  'tables': lambda: _lifted(_quantized('nf4 g4 dq')),
  'packed': lambda: _lifted(jc.pack(_quantized('W4A16'), USES)),
  'packed zeros': _zeros,
  'calibrated': _calibrated,
  'observed': _observed,
  'trained': lambda: _trained(
    jc.fake_quantize(_rules('int8, int8, int8'), USES)
  ),
  'pruned': lambda: _pruned(target=0.5, end=4, every=3),
  'pruned in groups': lambda: _pruned(kind='n_m', n=2, m=4),
  'losses': _losses,
  'cast': lambda: jc.materialize(jc.cast(_quantized('W8A8'), jnp.bfloat16)),
}

# Without jit each operation is compiled by itself: what has loops or choices.
EAGER = ('integers', 'packed zeros', 'observed', 'pruned', 'losses')

MODES = {
  'strict': ('jax_numpy_dtype_promotion', 'strict'),
  'x64': ('jax_enable_x64', True),
  'nans': ('jax_debug_nans', True),
  'eager': ('jax_disable_jit', True),
}


@functools.cache
def _as_usual():
  return {name: jax.tree.leaves(verb()) for name, verb in VERBS.items()}


class ModesTest(parameterized.TestCase):
  @parameterized.parameters(*MODES)
  def test_every_verb_gives_the_same(self, mode):
    usual, (flag, value) = _as_usual(), MODES[mode]
    before = getattr(jax.config, flag)
    self.addCleanup(jax.config.update, flag, before)
    jax.config.update(flag, value)
    for name in EAGER if mode == 'eager' else VERBS:
      with self.subTest(name):
        got = jax.tree.leaves(VERBS[name]())
        self.assertEqual([x.dtype for x in got], [x.dtype for x in usual[name]])
        for x, want in zip(got, usual[name], strict=True):
          np.testing.assert_allclose(
            np.float32(x), np.float32(want), rtol=0.02, atol=0.02
          )


if __name__ == '__main__':
  absltest.main()
