"""Every public function that takes a tree, given one with compressed leaves.

It counts them for what they stand for, or refuses and names the leaf. A function that
is added and has a row in none of the tables fails the first test.
"""

import dataclasses
import functools

from absl.testing import parameterized
import contract_leaves
import contract_others
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc
from jaxopt_compress import report
from jaxopt_compress.calibration import trials
from jaxopt_compress.distillation import matching
from jaxopt_compress.distillation import on_policy
from jaxopt_compress.distillation import penalties
from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation import teachers
from jaxopt_compress.distillation.growth import depth as layers_lib
from jaxopt_compress.distillation.growth import layers_above
from jaxopt_compress.distillation.growth import warm_start
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.parallel import step as step_lib
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning import measure
from jaxopt_compress.pruning import scoring
from jaxopt_compress.pruning.structured import depth
from jaxopt_compress.pruning.structured import experts
from jaxopt_compress.report import records
from jaxopt_compress.train import evaluate
from jaxopt_compress.train.step import finite
from jaxopt_compress.train.step import loss as loss_lib
from jaxopt_compress.train.step import state as state_lib
from jaxopt_compress.train.step import train_step as train_step_lib

KEY = jax.random.key(0)
DENSE = {
  'a': {'bias': jnp.ones((1, 4)), 'kernel': jax.random.normal(KEY, (4, 4))},
  'b': {'kernel': jnp.arange(8.0).reshape(4, 2) - 3.3},
}
X = jnp.ones((2, 4))
LABELS = jnp.zeros(2, jnp.int32)


def apply(params, x):
  h = jax.nn.relu(x @ params['a']['kernel'] + params['a']['bias'])
  return h @ params['b']['kernel']


def rules(value):
  return [(r'.*/kernel', value), (r'.*', None)]


USES = jc.uses(apply)(DENSE, X)
# A training leaf, with NaN behind its mask, and a stored one.
KEPT = DENSE['a']['kernel'] > 0
TREE = {
  'a': {
    'bias': DENSE['a']['bias'],
    'kernel': jc.pruning.Masked(
      jnp.where(KEPT, DENSE['a']['kernel'], jnp.nan), KEPT
    ),
  },
  'b': jc.quantize(DENSE, rules('int8'), USES)['b'],
}
MESH = mesh_lib.data_mesh(1)
FREEDOMS = jc.analysis.rescalings(apply)(DENSE, X)
NOTHING = jc.chain()
SGD = optax.sgd(0.1)
STATE = state_lib.create(DENSE, {}, KEY, SGD)
ADAPTERS = jax.tree.map(
  lambda x: x + 0.1, jc.adapters.add_lora(DENSE, rules(1), USES, key=KEY)
)
PRUNE = jc.methods.gradual(rules(jc.Sparsity(0.5, end=9)), USES)
FAKE = jc.fake_quantize(rules('int8'), USES)


def one_step(tree):
  """A step of a model that is distilled from `tree`."""

  def model(params, variables, x, **mode):
    return apply(params, x), {}, variables

  def loss(seen):
    [(said, _)] = seen.teachers
    distance = matching.squared_distance(seen.outputs[0], said)
    return {'distance': loss_lib.Part(distance, X[0, 0])}

  step = train_step_lib.train_step(
    model, loss, SGD, inputs='x', teachers=[model]
  )
  return step(STATE, {'x': X}, step_lib.Replicas(), ((tree, {}),))[0].params


def two_layers(params, x):
  for layer in params:
    x = jax.nn.relu(x @ layer['kernel'] + layer['bias'])
  return x.sum()


LAYERS = jc.structure(two_layers)([DENSE['a'], DENSE['a']], X)


DEEPER = jc.Plan(LAYERS, layers_lib.sources(LAYERS, 2))


def layered(score, tree):
  return score(LAYERS, two_layers, [tree['a'], tree['a']], [X])


def mixture(params, x):
  """The router may be compressed; of 4 experts one is chosen."""
  logits = x @ params['a']['kernel'] + params['a']['bias']
  chosen = jax.nn.one_hot(jnp.argmax(logits, -1), 4)
  return jnp.einsum('bd,edf,be->bf', x, params['experts'], chosen)


EXPERTS = {'a': DENSE['a'], 'experts': jnp.ones((4, 4, 4))}
MIXED = jc.structure(mixture)(EXPERTS, X)


def mixed(score, tree):
  return score(MIXED, mixture, {**EXPERTS, 'a': tree['a']}, [X])


def unreachable(tree):
  plan = jc.Plan(MIXED, {'a/bias:-1': [0, 2]})
  return experts.unreachable(plan, mixture, {**EXPERTS, 'a': tree['a']}, X)


def evaluated(tree):
  forward = evaluate.forward(lambda p, v, x: (apply(p, x),))
  batch = {'x': X, 'label': LABELS, 'mask': LABELS == 0}
  found = evaluate.evaluate(
    forward, tree, {}, [batch], inputs='x', targets='label'
  )
  return found.loss, found.logits


def compensated(tree):
  plan = jc.Plan(jc.structure(apply)(DENSE, X), {'a/bias:-1': [0, 2]})
  _, stats = jc.observe(apply, {'b/kernel': jc.statistics.gram()})(DENSE, X)
  return jc.pruning.compensate(plan, tree, stats, USES)


def corrected(tree):
  stats = jc.observe(apply, {'a/kernel': jc.statistics.sums()})(DENSE, X)[1]
  error = trials.output_error(apply, DENSE, [X])
  biases = {'a/kernel': 'a/bias'}
  return jc.calibration.correct_bias(DENSE, tree, stats, biases, USES, error)[0]


def replaced(tree):
  """An operation of a lifted function is done by another."""
  handler = lambda primitive, operands, params: primitive.bind(
    *operands, **params
  )
  return jc.lift(jc.analysis.at_scopes(apply, [('dot_general', handler)]))(
    tree, X
  )


def rounded(tree):
  rules = [('dot_general', 'int8'), ('.*', None)]
  return jc.lift(jc.quantization.quantize_activations(apply, rules))(tree, X)


# The result for compressed leaves is that for the arrays that they stand for.
def first_masks(name, tree):
  spec = jc.Sparsity(0.5, end=4)
  return getattr(jc.methods, name)(rules(spec)).init(tree).masks


COUNTS = {
  'adapters.lora.add_lora': lambda t: jc.adapters.add_lora(
    t, rules(1), USES, key=KEY
  ),
  'adapters.lora.with_lora': lambda t: jc.adapters.with_lora(t, ADAPTERS, USES),
  'adapters.merge.merge_lora': lambda t: jc.adapters.merge_lora(
    jc.adapters.with_lora(t, ADAPTERS, USES), rules('int4'), USES
  )[0],
  'analysis.added.biases': lambda t: sorted(jc.analysis.biases(apply)(t, X)),
  'analysis.plan.fold_sizes.fold_sizes': lambda t: jc.analysis.fold_sizes(
    apply, jc.Plan(jc.structure(apply)(t, X), {})
  )(t, X)[0],
  'analysis.features.feature_names': lambda t: list(
    jc.analysis.feature_names(apply)(t, X)
  ),
  'analysis.features.features': lambda t: jc.features(
    apply, [('./kernel', ...)]
  )(t, X),
  'analysis.hoist.hoist.hoist': lambda t: jc.hoist(apply)(t, X)[1],
  'analysis.hoist.hoist.hoisted': lambda t: sorted(
    jc.analysis.hoisted(apply)(t, X)
  ),
  'analysis.observe.observe': lambda t: jc.observe(
    apply, {'a/kernel': jc.statistics.absmax()}
  )(t, X),
  'analysis.scopes.at_scopes': replaced,
  'analysis.structure.structure.structure': lambda t: str(
    jc.structure(apply)(t, X)
  ),
  'analysis.uses.uses': lambda t: sorted(jc.uses(apply)(t, X)),
  'calibration.bias.correct_bias': corrected,
  'calibration.ranges.calibrate': lambda t: jc.calibrate(
    apply, t, rules('int8, int8 tensor static'), [X], USES, 'minmax'
  ),
  'calibration.trials.output_error': lambda t: trials.output_error(
    apply, DENSE, [X]
  )(t),
  'core.lift.lift': lambda t: jc.lift(apply)(t, X),
  'core.operators.cast': lambda t: jc.cast(t, jnp.bfloat16),
  'distillation.growth.depth.start': lambda t: layers_lib.start(
    DEEPER, DEEPER.apply([t['a'], t['a']]), 'gated'
  ),
  'distillation.growth.grow.grow': lambda t: jc.grow(
    jc.widen(jc.structure(apply)(DENSE, X), factor=2), t, key=KEY
  ),
  'distillation.growth.layers_above.of': lambda t: layers_above.of(
    jc.structure(apply)(DENSE, X), jc.materialize(t)
  ),
  'distillation.growth.warm_start.warm_start': lambda t: (
    warm_start.warm_start(DENSE, t),
    warm_start.warm_start(t, DENSE),
  ),
  'distillation.matching.regularized': lambda t: matching.regularized(
    lambda p: jnp.float32(1), penalties.l2, jnp.float32(0.5)
  )(t),
  'distillation.matching.squared_distance': lambda t: matching.squared_distance(
    DENSE, t
  ),
  'distillation.penalties.by_path': penalties.by_path(rules(penalties.l1)),
  'distillation.penalties.group_lasso': penalties.by_path(
    rules(penalties.group_lasso(-1))
  ),
  'distillation.penalties.l1': penalties.l1,
  'distillation.penalties.l2': penalties.l2,
  'distillation.penalties.l2_sp': lambda t: penalties.l2_sp(t)(DENSE),
  'distillation.penalties.towards': lambda t: penalties.towards(t)(DENSE),
  'distillation.on_policy.sample': lambda t: on_policy.sample(
    jc.lift(lambda t, x, cache: (apply(t, X)[:, None], cache)),
    t,
    LABELS[:, None],
    (),
    length=3,
    key=KEY,
  ),
  'distillation.positions.gated': lambda t: positions.gated(
    jnp.float32(0.5), lambda p: jc.lift(apply)(p, X), t
  ),
  'distillation.positions.term': lambda t: positions.term(
    jnp.float32(0.5), penalties.l1, t
  ),
  'distillation.teachers.frozen': lambda t: teachers.frozen(jc.lift(apply))(
    t, X
  ),
  'distillation.teachers.moving_average': lambda t: (
    teachers.moving_average(t, DENSE, 0.5),
    teachers.moving_average(DENSE, t, 0.5),
  ),
  'parallel.step.data_parallel': lambda t: step_lib.data_parallel(
    lambda s, batch, replicas: (s, replicas(jc.lift(apply)(s, batch))),
    mesh=MESH,
  )(t, np.asarray(X)),
  'pruning.measure.sparsity': measure.sparsity,
  'pruning.methods.gradual.gradual': lambda t: PRUNE.init(t).masks,
  **{
    f'pruning.methods.{name}.{name}': functools.partial(first_masks, name)
    for name in jc.methods.__all__
    if name != 'gradual'  # prune itself
  },
  'quantization.agreement.compare': lambda t: dataclasses.astuple(
    jc.quantization.compare(apply, t, jax.tree.map(lambda x: x / 2, DENSE), [X])
  ),
  'quantization.sensitivity.sensitivity': lambda t: [
    (row.path, row.part, row.error)
    for row in jc.sensitivity(apply, t, rules('int4'), [X], uses=USES).rows
  ],
  'quantization.quantize.quantize': lambda t: jc.quantize(
    t, rules('int4'), USES
  ),
  'quantization.scoped.quantize_activations': rounded,
  'quantization.training.fake_quantize': lambda t: FAKE.apply(t, FAKE.init(t)),
  'report.leaves.coverage': lambda t: [
    r.error_db for r in report.coverage(DENSE, t)
  ],
  'report.records.numbers': lambda t: [
    (path, jc.materialize(x)) for path, x in records.numbers(t)
  ],
  'report.records.parameters': records.parameters,
  'report.records.sparsity': records.sparsity,
  'report.records.stage': lambda t: records.stage('', t).sparsity,
  'train.evaluate.evaluate': evaluated,
  'train.step.finite.is_finite': finite.is_finite,
  'train.step.train_step.train_step': one_step,
  'pruning.structured.activations.activations': lambda t: (
    jc.pruning.activations(jc.structure(apply)(DENSE, X), apply, t, [X])
  ),
  'pruning.structured.depth.angular': lambda t: layered(depth.angular, t),
  'pruning.structured.depth.cosine': lambda t: layered(depth.cosine, t),
  'pruning.structured.depth.loss': lambda t: layered(depth.loss, t),
  'pruning.structured.depth.score': lambda t: depth.score(
    LAYERS, [t['a'], t['a']]
  ),
  'pruning.structured.experts.frequency': lambda t: mixed(experts.frequency, t),
  'pruning.structured.experts.mass': lambda t: mixed(experts.mass, t),
  'pruning.structured.experts.reap': lambda t: mixed(experts.reap, t),
  'pruning.structured.gradients.fisher': lambda t: jc.pruning.fisher(
    lambda p, x: jnp.mean(jc.lift(apply)(p, x)), t, [X]
  ),
  'pruning.structured.gradients.gradients': lambda t: jc.pruning.gradients(
    lambda p, x: jnp.mean(jc.lift(apply)(p, x)), t, [X]
  ),
  'pruning.structured.importance.importance': lambda t: jc.importance(
    jc.structure(apply)(DENSE, X), t
  ),
  'pruning.scoring.scores': lambda t: scoring.scores(
    jc.Sparsity(0.5), {'w': t['a']['kernel']}, {'w': None}, {}
  ),
  'pruning.masking.compute': lambda t: masking.compute(
    jc.Sparsity(0.5), {'w': t['a']['kernel']}
  ),
}


# Leaves go through as one, and stand for what they stood for.
KEEPS = {
  'export.shrunk.save_shrunk': contract_leaves.rebuilt,
  'export.trees.load': lambda t: contract_leaves.loaded(t, like=t),
  'export.trees.save': contract_leaves.loaded,
  'analysis.plan.plan.shrink': lambda t: jc.shrink(
    jc.Plan(jc.structure(apply)(t, X), {}), t
  ),
  'core.lift.materialize': jc.materialize,
  'core.compression.by_path': lambda t: jc.rules.by_path(
    [('.*', NOTHING)]
  ).apply(t, {'0': ()}),
  'core.compression.chain': lambda t: jc.chain(NOTHING).apply(t, ((),)),
  'core.compression.freeze': jc.freeze,
  'core.compression.merge_learned': lambda t: jc.core.merge_learned(
    *jc.core.split_learned(t)
  ),
  'core.compression.split_learned': lambda t: jc.core.split_learned(t)[1],
  'core.rules.map_named': lambda t: jc.rules.map_named(lambda path, x: x, t),
  'kernels.pack.pack': jc.pack,
  'kernels.pack.unpack': jc.unpack,
  'parallel.mesh.local': mesh_lib.local,
  'parallel.mesh.replicate': lambda t: mesh_lib.replicate(t, MESH),
  'parallel.placing.device_put': lambda t: jc.parallel.device_put(
    t, MESH, jax.sharding.PartitionSpec()
  ),
  'pruning.storage.sparsify.with_zeros': lambda t: (
    jc.pruning.sparsify.with_zeros(jc.sparsify(t)[0])
  ),
  'pruning.storage.sparsify.sparsify': lambda t: jc.sparsify(t)[0],
  'train.step.state.compressed': lambda t: state_lib.compressed(
    dataclasses.replace(STATE, params=t), NOTHING
  ),
}
# What would count codes says which leaf it is.
REFUSES = {
  'distillation.accumulation.accumulated': lambda t: (
    jc.distillation.accumulated(lambda t, x: (apply(t, x).sum(), 1.0))(
      t, X[None]
    )
  ),
  'pruning.structured.experts.unreachable': unreachable,
  'pruning.structured.compensate.compensate': compensated,
  'calibration.equalization.equalize': lambda t: jc.calibration.equalize(
    t, FREEDOMS
  ),
  'calibration.equalization.fold_norms': lambda t: jc.calibration.fold_norms(
    t, FREEDOMS
  ),
  'parallel.mesh.check_batch': lambda t: mesh_lib.check_batch(t, 1),
  'parallel.mesh.check_plain': lambda t: mesh_lib.check_plain(t, 'this'),
  'parallel.mesh.shard': lambda t: mesh_lib.shard(t, MESH),
  'parallel.mesh.share': mesh_lib.share,
  'parallel.step.data_parallel': lambda t: step_lib.data_parallel(
    lambda s, batch, replicas: (replicas(s), {}), mesh=MESH
  )(t, np.asarray(X)),
  'parallel.step.data_parallel: pmap': lambda t: step_lib.data_parallel(
    lambda s, batch, replicas: (s, {}), 'pmap', MESH
  )(X, t),
  'pruning.masking.apply_masks': lambda t: masking.apply_masks(
    t, PRUNE.init(DENSE).masks
  ),
  'pruning.prune.prune': lambda t: jc.prune(t, rules(jc.Sparsity(0.5))),
  'pruning.optimizer.masked': lambda t: jc.pruning.masked(t, PRUNE.init(DENSE)),
  'pruning.optimizer.sparse': lambda t: jc.pruning.sparse(SGD, PRUNE).init(t),
  'train.step.state.create': lambda t: state_lib.create(t, {}, KEY, SGD),
}


def check_equal(got, want):
  def check(a, b):
    if isinstance(a, str):
      assert a == b, (a, b)
    else:
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

  jax.tree.map(check, jc.materialize(got), jc.materialize(want))


class TreesTest(parameterized.TestCase):
  def test_each_has_a_row(self):
    rows = {name.partition(':')[0] for name in (*COUNTS, *KEEPS, *REFUSES)}
    self.assertEqual(
      contract_others.takes_trees(),
      rows | contract_others.OTHERS,
      'Add a row, or drop one.',
    )

  @parameterized.named_parameters(*zip(COUNTS, COUNTS, strict=True))
  def test_counts_leaves_for_what_they_stand_for(self, name):
    f = COUNTS[name]
    check_equal(f(TREE), f(jc.materialize(TREE)))

  @parameterized.named_parameters(*zip(KEEPS, KEEPS, strict=True))
  def test_keeps_what_leaves_stand_for(self, name):
    check_equal(KEEPS[name](TREE), TREE)

  @parameterized.named_parameters(*zip(REFUSES, REFUSES, strict=True))
  def test_refuses_and_names_the_leaf(self, name):
    with self.assertRaisesRegex(
      ValueError, '(?s)(a|b)/kernel.*(masked|int8).*jc'
    ):
      REFUSES[name](TREE)
