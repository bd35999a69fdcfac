"""Sequences that a student draws: of a table of next tokens, and of a decoder."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import on_policy
from jaxopt_compress.distillation import sequences

KEY = jax.random.key(0)


def markov(table, tokens, cache):
  """A model whose next token depends on the last alone; it counts what it reads."""
  return table[tokens], cache + tokens.shape[1]


def counting(tokens_until_wrap):
  """A table that says, nearly surely, one more."""
  n = tokens_until_wrap
  return 200.0 * jnp.roll(jnp.eye(n), 1, axis=1)


class SampleTest(parameterized.TestCase):
  def test_distribution(self):
    table = jnp.log(
      jnp.array([[0.0, 0.7, 0.3], [0.5, 0.0, 0.5], [0.1, 0.1, 0.8]])
    )
    prompts = jnp.zeros((5000, 1), jnp.int32)
    tokens, mask = jax.jit(
      lambda key: on_policy.sample(
        markov, table, prompts, jnp.int32(0), length=3, key=key
      )
    )(KEY)
    self.assertEqual(mask.tolist(), [[False, True, True, True]] * 5000)
    want = np.array([1.0, 0, 0])
    for at in range(1, 4):
      want = want @ np.exp(table)
      got = np.bincount(tokens[:, at], minlength=3) / 5000
      np.testing.assert_allclose(got, want, atol=5 * 0.5 / 5000**0.5)

  @parameterized.parameters(
    # lengths, end, what is drawn after '12', '30': # a prompt of one token is '1' or '3'
    (None, None, ['12 3401', '30 1234']),
    (None, 4, ['12 34__', '30 1234']),
    (None, 0, ['12 340_', '30 1234']),
    ([1, 2], None, ['1 23401', '30 1234']),
    ([2, 1], 0, ['12 340_', '3 40___']),
  )
  def test_ends(self, lengths, end, expected):
    prompts = jnp.array([[1, 2], [3, 0]])
    tokens, mask = on_policy.sample(
      markov,
      counting(5),
      prompts,
      jnp.int32(0),
      length=4,
      key=KEY,
      lengths=None if lengths is None else jnp.array(lengths),
      end=end,
      padding=9,
    )
    drawn = []
    for row, is_drawn in zip(tokens.tolist(), mask.tolist(), strict=True):
      begin = is_drawn.index(True)
      text = ''.join('_' if x == 9 else str(x) for x in row)
      drawn.append(f'{text[:begin]} {text[begin:]}')
      self.assertEqual(sum(is_drawn), len(text[begin:].rstrip('_')))
    self.assertEqual(drawn, expected)

  @parameterized.parameters(dict(lookback=0), dict(lookback=2, scan=False))
  def test_decoder_through_its_cache(self, **how):
    sizes = dict(vocab=11, width=8, depth=2, heads=2, max_length=7)
    module = models.build('decoder', **sizes, **how)
    model, cache = models.functional(module), module.init_cache(3)

    def step(params, tokens, cache):
      logits, out, _ = model.apply(params, model.variables, (tokens, cache))
      return logits, out['cache']

    prompts = jax.random.randint(KEY, (3, 3), 0, 11)

    @jax.jit
    def drawn(params, lengths):
      tokens, mask = on_policy.sample(
        step,
        params,
        prompts,
        cache,
        length=5,
        key=KEY,
        lengths=lengths,
        temperature=0,
      )
      says, *_ = model.apply(params, model.variables, tokens[:, :-1])
      return tokens, mask, jnp.argmax(says, -1)

    # Read at once, and token by token: the same as without a cache.
    for lengths in (None, jnp.array([3, 1, 2])):
      tokens, mask, says = drawn(model.params, lengths)
      self.assertEqual(mask.sum(), 15 if lengths is None else 18)
      np.testing.assert_array_equal(
        tokens[:, 1:][mask[:, 1:]], says[mask[:, 1:]]
      )

  def test_compressed_leaves(self):
    table = jax.random.normal(KEY, (8, 8))
    rules = [(r'.*', 'int8')]
    apply = lambda p, x: jax.nn.one_hot(x, 8) @ p['table']
    params = {'table': table}
    q = jc.quantize(params, rules, jc.uses(apply)(params, jnp.zeros(3, int)))

    def step(params, tokens, cache):
      return apply(params, tokens), cache

    draw = lambda step, params: on_policy.sample(
      step, params, jnp.zeros((6, 1), jnp.int32), (), length=5, key=KEY
    )
    got = draw(jc.lift(step), q)
    want = draw(step, jc.materialize(q))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    self.assertGreater(len(set(got.tokens.ravel().tolist())), 3)

  def test_devices_draw_the_same(self):
    mesh = jax.make_mesh((4,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
    table = jax.random.normal(KEY, (8, 8))
    prompts = jnp.arange(8).reshape(8, 1)
    f = jax.jit(
      lambda prompts: on_policy.sample(
        markov, table, prompts, jnp.int32(0), length=4, key=KEY
      )
    )
    sharded = jax.device_put(prompts, NamedSharding(mesh, P('x')))
    got = f(sharded)
    jax.tree.map(np.testing.assert_array_equal, got, f(prompts))
    self.assertTrue(got.tokens.sharding.is_equivalent_to(sharded.sharding, 2))

  def test_no_gradient(self):
    def loss(table):
      drawn = on_policy.sample(
        markov, table, jnp.zeros((2, 1), int), 0.0, length=2, key=KEY
      )
      return jnp.sum(drawn.tokens * 1.0)

    self.assertFalse(jax.grad(loss)(jax.random.normal(KEY, (3, 3))).any())

  def test_a_model_that_says_nan_shows(self):
    table = counting(4).at[2].set(jnp.nan)
    tokens, _ = on_policy.sample(
      markov, table, jnp.array([[0]]), jnp.int32(0), length=3, key=KEY
    )
    self.assertEqual(tokens.tolist(), [[0, 1, 2, -1]])

  @parameterized.parameters(
    (jnp.zeros(3, int), 1, r'not int32\[3\]'),
    (jnp.zeros((1, 3)), 1, r'not float32\[1, 3\]'),
    (jnp.zeros((1, 0), int), 1, '0 tokens of prompt'),
    (jnp.zeros((1, 1), int), 0, 'length=0'),
  )
  def test_errors(self, prompts, length, message):
    with self.assertRaisesRegex(ValueError, message):
      on_policy.sample(
        markov, counting(3), prompts, jnp.int32(0), length=length, key=KEY
      )


class MixedTest(parameterized.TestCase):
  DATA = on_policy.Drawn(jnp.full((2, 3), 7), jnp.ones((2, 3)))

  def draw(self, key):
    del key
    return on_policy.Drawn(jnp.ones((2, 3), jnp.int32), jnp.zeros((2, 3), bool))

  @parameterized.parameters(0.0, 0.3, 1.0)
  def test_ratio(self, ratio):
    f = jax.jit(
      jax.vmap(lambda key: on_policy.mixed(key, ratio, self.draw, self.DATA))
    )
    tokens, mask = f(jax.random.split(KEY, 400))
    own = (tokens == 1).all((1, 2))
    self.assertTrue((own | (tokens == 7).all((1, 2))).all())
    np.testing.assert_array_equal(mask[:, 0, 0], ~own)
    np.testing.assert_allclose(
      own.mean(), ratio, atol=0.1 if 0 < ratio < 1 else 0
    )

  def test_the_ratio_may_be_a_schedule(self):
    f = jax.jit(
      lambda step: on_policy.mixed(
        KEY, jnp.where(step < 5, 0.0, 1.0), self.draw, self.DATA
      )
    )
    self.assertEqual([int(f(i).tokens[0, 0]) for i in (0, 4, 5)], [7, 7, 1])

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, 'ratio=1.5'):
      on_policy.mixed(KEY, 1.5, self.draw, self.DATA)
    data = on_policy.Drawn(jnp.ones((2, 4)), jnp.ones((2, 4)))
    with self.assertRaisesRegex(
      ValueError, r'draws .*\(2, 3\).* have .*\(2, 4\)'
    ):
      on_policy.mixed(KEY, 0.5, self.draw, data)


class LearnsTest(absltest.TestCase):
  def test_a_student_learns_on_its_own_samples(self):
    teacher = 2 * jax.random.normal(KEY, (6, 6))
    data = on_policy.Drawn(jnp.zeros((16, 9), int), jnp.ones((16, 9)))

    def draw(student, key):
      prompts = jnp.zeros((16, 1), jnp.int32)
      return on_policy.sample(
        markov, student, prompts, jnp.int32(0), length=8, key=key
      )

    def divergence(student, drawn):
      asked = sequences.next_tokens(drawn.tokens, weights=drawn.mask)
      return losses.reverse_kl(
        student[asked.inputs], teacher[asked.inputs], mask=asked.weights
      )

    @jax.jit
    def step(student, i):
      key = jax.random.fold_in(KEY, i)
      ratio = jnp.minimum(i / 20, 1.0)

      def loss(student):
        drawn = on_policy.mixed(key, ratio, lambda k: draw(student, k), data)
        return losses.mean(*divergence(student, drawn))

      return student - 4.0 * jax.grad(loss)(student)

    student = jnp.zeros((6, 6))
    measured = lambda s: float(losses.mean(*divergence(s, draw(s, KEY))))
    before = measured(student)
    for i in range(60):
      student = step(student, i)
    self.assertGreater(before, 0.8)
    self.assertLess(measured(student), 0.1 * before)


if __name__ == '__main__':
  absltest.main()
