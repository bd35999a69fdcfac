"""Whatever makes a tree of parameters gives arrays of JAX, whatever it was given.

Arrays of numpy would be copied in each call of a program that takes them, and so slowly
where they lie unaligned, as those of files do, that it takes longer than the program.
"""

import inspect
import tempfile

from absl.testing import parameterized
import contract_leaves
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import distillation
from jaxopt_compress.export import weights

RULES = [('w', jc.W8A8), ('.*', None)]
HALF = [('w', jc.Sparsity(0.5)), ('.*', None)]
X = np.float32([[1.0, -2.0, 3.0, 4.0]])


def apply(p, x):
  return jax.nn.relu(x @ p['w'] + p['b']) @ p['v']


def masked(p, x):
  return apply(p | {'w': p['w'] * (p['w'] > 0)}, x)


def on_host(tree):
  return jax.tree.map(np.array, tree)


RNG = np.random.default_rng(0)
PARAMS = {
  'w': RNG.standard_normal((4, 8), np.float32),
  'b': np.zeros((1, 8), np.float32),
  'v': RNG.standard_normal((8, 4), np.float32),
  'scale': np.float32(2.0),
}
USES = jc.uses(apply)(PARAMS, X)
QUANTISED = on_host(jc.quantize(PARAMS, RULES, USES))
ADAPTERS = on_host(
  jc.adapters.add_lora(
    PARAMS, [('w', 2), ('.*', None)], USES, key=jax.random.key(0)
  )
)
ADAPTED = jc.adapters.with_lora(PARAMS, ADAPTERS, USES)


def applied(comp):
  return comp.apply(PARAMS, on_host(comp.init(PARAMS)))


def corrected():
  _, stats = jc.observe(apply, {'w': jc.statistics.sums()})(PARAMS, X)
  error = jc.calibration.output_error(apply, PARAMS, [X])
  given = PARAMS, QUANTISED, stats, {'w': 'b'}, USES, error
  return jc.calibration.correct_bias(*given)[0]


def compensated():
  plan = jc.Plan(jc.structure(apply)(PARAMS, X), {'b:-1': [1, 3]})
  _, stats = jc.observe(apply, {'v': jc.statistics.gram()})(PARAMS, X)
  return jc.pruning.compensate(plan, PARAMS, stats, USES)[0]


def rescaled(how):
  return how(PARAMS, jc.analysis.rescalings(apply)(PARAMS, X))


def gained():
  p = {k: np.full((1, 1), 2.0, np.float32) for k in ('w', 'gain', 'other')}
  freedoms = jc.analysis.rescalings(lambda p, x: (x @ p['w']) * p['gain'])
  return jc.calibration.fold_norms(p, freedoms(p, X[:, :1]))[0]


def mean_output(p, x):
  return jnp.mean(apply(p, x))


def rebuilt():
  arrays, rebuild = weights.flatten(QUANTISED)
  return rebuild(arrays)


def rebuilt_model():
  def build(n):
    return None, {'w': np.ones((2, n['n'])), 'v': np.ones((n['n'], 2))}

  structure = jc.structure(lambda p, x: x @ p['w'] @ p['v'])
  plan = jc.Plan(structure(build({'n': 4})[1], np.ones((1, 2))), {'v:-2': [0]})
  with tempfile.TemporaryDirectory() as folder:
    path = f'{folder}/small.safetensors'
    jc.export.save_shrunk(path, plan, build({'n': 1})[1])
    return jc.export.rebuild(build, {'n': 4}, path).params


def folded():
  plan = jc.Plan(jc.structure(apply)(PARAMS, X), {'b:-1': [1, 3]})
  small = on_host(jc.shrink(plan, PARAMS))
  return jc.analysis.fold_sizes(apply, plan)(small, X)[0]


TRANSFORMS = {
  'add_lora': lambda: jc.adapters.add_lora(
    PARAMS, [('w', 2), ('.*', None)], USES, key=jax.random.key(0)
  ),
  'with_lora': lambda: ADAPTED,
  'merge_lora': lambda: jc.adapters.merge_lora(on_host(ADAPTED))[0],
  'by_path': lambda: applied(
    jc.rules.by_path([('w', jc.methods.gradual(HALF[:1], USES)), ('.*', None)])
  ),
  'calibrate': lambda: jc.calibrate(
    apply, PARAMS, [('w', jc.FP8), ('.*', None)], [X], USES
  ),
  'cast': lambda: jc.cast(QUANTISED, jnp.bfloat16),
  'chain': lambda: applied(
    jc.chain(jc.methods.gradual(HALF, USES), jc.fake_quantize(RULES, USES))
  ),
  'compensate': compensated,
  'correct_bias': corrected,
  'equalize': lambda: rescaled(jc.calibration.equalize),
  'fake_quantize': lambda: applied(jc.fake_quantize(RULES, USES)),
  'fold_norms': gained,
  'fisher': lambda: jc.pruning.fisher(mean_output, PARAMS, [X], per='example'),
  'fold_sizes': folded,
  'freeze': lambda: jc.freeze(on_host(applied(jc.methods.gradual(HALF, USES)))),
  'grow': lambda: jc.grow(
    jc.widen(jc.structure(apply)(PARAMS, X), factor=2), PARAMS
  ),
  'hoist': lambda: jc.hoist(masked)(PARAMS, X)[1],
  'gradients': lambda: jc.pruning.gradients(mean_output, PARAMS, [X]),
  'load': lambda: contract_leaves.loaded(PARAMS | QUANTISED),
  'map_named': lambda: jc.rules.map_named(lambda path, x: x, PARAMS),
  'masked': lambda: jc.pruning.masked(
    PARAMS, jc.methods.gradual(HALF, USES).init(PARAMS)
  ),
  'materialize': lambda: jc.materialize(QUANTISED),
  'merge_learned': lambda: jc.core.merge_learned(
    {'a': X}, {'a': jc.core.Learned(None), 'b': X}
  ),
  'pack': lambda: jc.pack(QUANTISED, USES, target='cpu'),
  'prune': lambda: jc.prune(PARAMS, HALF, USES),
  'gradual': lambda: applied(jc.methods.gradual(HALF, USES)),
  'quantize': lambda: jc.quantize(PARAMS, RULES, USES),
  'quantize_cache': lambda: jc.quantization.quantize_cache(
    {'k': X, 'length': np.int32(1)}, [('k', 'int8'), ('.*', None)]
  ),
  'rebuild': rebuilt_model,
  'shrink': lambda: jc.shrink(
    jc.Plan(jc.structure(apply)(PARAMS, X), {'b:-1': [1, 3]}), QUANTISED
  ),
  'tune': lambda: jc.kernels.tune(QUANTISED, USES, rows=(1,), seconds=1e-4),
  'unpack': lambda: jc.unpack(on_host(jc.pack(QUANTISED, USES, target='cpu'))),
  'sparsify': lambda: jc.sparsify(PARAMS | {'w': np.diag(PARAMS['b'][0] + 1)})[
    0
  ],
  'moving_average': lambda: distillation.teachers.moving_average(
    PARAMS, PARAMS, 0.5
  ),
  'warm_start': lambda: distillation.warm_start(PARAMS, PARAMS),
  'weights.flatten': rebuilt,
}
# Public functions that make no tree of parameters, or take apart what is no longer
# one. `device_put` says in its name where to.
OTHERS = """
  rules_for absmax activations at_scopes attention biases check_seen compare
  config_delta data_mesh data_parallel device_put explain feature_names features
  gram hoisted importance is_compressed lift load_plan match merge_stats minmax
  moments named_leaves nbytes observe output_error packable quantize_activations
  readers rescalings rule save save_shrunk select sensitivity sort sparse
  sparsity split_learned structure sum_abs sum_squares sums total
  trim_vocabulary uses widen
""".split()


class OnDeviceTest(parameterized.TestCase):
  @parameterized.parameters(*TRANSFORMS)
  def test_arrays_are_of_jax(self, name):
    given = [PARAMS['w'].copy(), QUANTISED['w'].weight.codes.copy()]
    for path, x in jc.rules.named_leaves(TRANSFORMS[name]()):
      for part in jax.tree.leaves(x):
        self.assertIsInstance(part, jax.Array | float, path)
    # What was given is as it was.
    np.testing.assert_array_equal(given[0], PARAMS['w'])
    np.testing.assert_array_equal(given[1], QUANTISED['w'].weight.codes)

  def test_every_public_function_is_here(self):
    rooms = 'adapters analysis calibration core export kernels parallel pruning'
    rooms = [
      getattr(jc, room) for room in f'{rooms} quantization rules'.split()
    ]
    public = {
      name
      for room in (jc, jc.statistics, *rooms)
      for name, f in vars(room).items()
      if inspect.isfunction(f)
      and f.__module__.startswith('jaxopt_compress.')
      and not name.startswith('_')
    }
    self.assertEqual(public - set(TRANSFORMS), set(OTHERS))

  def test_arrays_of_the_user_may_change_later(self):
    params = {'w': PARAMS['w'].copy(), 'b': np.ones(64, np.float32)}
    q = jc.quantize(params, RULES, uses=in_out.IN_OUT)
    params['b'][:] = 0
    self.assertEqual(float(q['b'].sum()), 64)

  def test_donated_arrays_of_numpy_stay(self):
    params = {'w': jnp.asarray(PARAMS['w']), 'v': PARAMS['v'].copy()}
    rules = [('[wv]', 'int8')]
    jc.quantize(params, rules, donate=True, uses=in_out.IN_OUT)
    self.assertTrue(params['w'].is_deleted())
    np.testing.assert_array_equal(params['v'], PARAMS['v'])
    # Of arrays that are traced there is nothing to delete.
    jax.jit(lambda p: jc.quantize(p, rules, donate=True, uses=in_out.IN_OUT))(
      {'w': PARAMS['w']}
    )


if __name__ == '__main__':
  parameterized.absltest.main()
