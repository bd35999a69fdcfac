"""What a config may say of a stage: the flags that its users write."""

from absl.testing import absltest
from absl.testing import parameterized

from jaxopt_compress.train import fields
from jaxopt_compress.train import options

# Checkpoints are of one config if these agree, so a key that is renamed makes
# those of before useless.
STAGE = """
  name model init init_map steps batch_size accumulate augment files label_smoothing mixup
  optimizer learning_rate warmup decay weight_decay clip learned_rate
  eval_every keep metric patience min_delta
  teacher loss alpha temperature standardize ensemble ema_decay on_policy prompt
  teacher_dtype
  features layer_map connector
  penalty penalty_weight
  cache
  shrink grow
  prune prune_score prune_scope prune_k prune_span prune_every
  prune_method prune_schedule prune_allocation prune_masks prune_drop prune_threshold prune_penalty
  prune_decay prune_batches prune_seed
  quantize calibrate calibrate_batches
  lora lora_alpha lora_rank_stabilized
""".split()


# What a config must say of each record.
LEAST = {
  options.Data: dict(name='d'),
  options.Stage: dict(name='s', model='m', steps=1),
  options.Report: {},
  options.Run: {},
  options.Shrink: {},
  options.Grow: {},
}
OUTSIDE = {
  options.Data: dict(
    limit=(-140, 1.5, True), eval_batch_size=(0,), window=(0,)
  ),
  options.Run: dict(devices=(-1,), log_every=(0,), tensorboard=(2,)),
  options.Report: dict(
    batches=((1, 0), (1.5,), 1, ('1',)), seconds=(-0.1, float('inf'))
  ),
  options.Stage: dict(
    steps=(-1, 2**31),
    batch_size=(0,),
    accumulate=(0, 1.5),
    clip=(-1.0, -1, float('nan'), float('inf')),
    learning_rate=(-0.01, float('nan'), float('inf')),
    weight_decay=(-1.0,),
    warmup=(-0.1, 1.0),
    label_smoothing=(-0.1, 1.0),
    learned_rate=(-0.1,),
    eval_every=(-1, 2.5),
    patience=(-1,),
    min_delta=(-0.1, float('nan')),
    alpha=(-0.1, 1.1),
    ema_decay=(-0.1, 1.0),
    on_policy=(-0.1, 1.1),
    prompt=(0,),
    mixup=(-1.0,),
    temperature=(0.0, -1.0),
    prune_span=((0.0, 1.1), (-0.1, 0.5)),
    prune_every=(0,),
    prune_k=(-1.0,),
    prune_seed=(-2,),
    prune_batches=(0,),
    lora_alpha=(0.0,),
    calibrate_batches=(0,),
  ),
  options.Grow: dict(
    factor=(-1.0, float('inf')), depth=(-0.5,), multiple=(0, 1.5)
  ),
  options.Shrink: dict(
    keep=(-0.1, 1.1),
    flops=(-1.0, float('nan')),
    multiple=(0,),
    batches=(0,),
  ),
}
PRUNE = (('.*', 0.5),)


class RangesTest(parameterized.TestCase):
  @parameterized.parameters(*LEAST)
  def test_every_number_has_one(self, cls):
    for key, said in fields.keys_of(cls).items():
      some = said.default
      first = some[:1] if isinstance(some, tuple) else [some]
      number = any(type(x) in (int, float) for x in first)
      self.assertEqual(number, bool(said.within), key)
      if number:
        fields.number(key, some, some, said.within)

  @parameterized.parameters(
    (cls, key, value)
    for cls, keys in OUTSIDE.items()
    for key, values in keys.items()
    for value in values
  )
  def test_outside(self, cls, key, value):
    with self.assertRaisesRegex(ValueError, rf'^c\.{key} is .* expected\.$'):
      fields.read(cls, 'c', LEAST[cls] | {key: value})

  @parameterized.parameters(
    ('prune', dict(prune_score='soft_threshold')),
    ('prune', dict(prune_scope='global')),
    ('prune', dict(prune_k=1.0)),
    ('prune_score=soft_threshold', dict(prune_k=1.0, prune=PRUNE)),
    ('prune', dict(prune_span=(0.0, 0.5))),
    ('steps', dict(prune_span=(0.0, 0.5), prune=PRUNE, steps=0)),
    ('steps', dict(prune_every=3, prune=PRUNE, steps=0)),
    ('teacher', dict(alpha=0.5)),
    ('teacher', dict(temperature=1.0)),
    ('teacher', dict(alpha='linear 0 -> 1')),
    ('teacher', dict(loss='mse')),
    ('teacher', dict(ensemble=True)),
    ('teacher', dict(standardize=True)),
    ('teacher', dict(ema_decay=0.9)),
    ('teacher', dict(on_policy=0.5)),
    ('on_policy', dict(prompt=4, teacher='t')),
    ('teacher', dict(teacher_dtype='bfloat16')),
    ('teacher', dict(features=(('a', 'b', 'hint', 1.0),))),
    ('features', dict(layer_map='last', teacher='t')),
    ('features', dict(connector='identity', teacher='t')),
    ('steps', dict(mixup=1.0, steps=0)),
    ('steps', dict(teacher='t', steps=0)),
    ('penalty', dict(penalty_weight=1.0, steps=1)),
    ('steps', dict(penalty=(('.*', 'l2'),), penalty_weight=1.0, steps=0)),
    ('lora', dict(lora_alpha=1.0)),
    ('lora', dict(lora_rank_stabilized=True)),
    ('steps', dict(optimizer='sgd', steps=0)),
    ('steps', dict(eval_every=2, steps=0)),
    ('eval_every', dict(keep='best')),
    ('eval_every', dict(metric='loss')),
    ('eval_every', dict(patience=2)),
    ('patience', dict(min_delta=0.1, eval_every=2)),
    ('steps', dict(learning_rate=1.0, steps=0)),
    ('steps', dict(clip=1.0, steps=0)),
    ('steps', dict(augment=True, steps=0)),
    ('steps', dict(accumulate=2, steps=0)),
    ('steps', dict(label_smoothing=0.1, steps=0)),
  )
  def test_without_effect(self, need, said):
    message = (
      rf'^c\.{next(iter(said))} is .* no effect without {need}\. Leave it'
    )
    with self.assertRaisesRegex(ValueError, message):
      fields.read(options.Stage, 'c', LEAST[options.Stage] | said)


class StageTest(absltest.TestCase):
  def test_a_word_alone_is_no_rule(self):
    with self.assertRaisesRegex(ValueError, r"quantize is 'W8A9'.*dict\(dot="):
      fields.read(
        options.Stage, 'c', dict(name='s', model='m', quantize='W8A9')
      )

  def test_keys(self):
    self.assertEqual(list(fields.defaults_of(options.Stage)), STAGE)

  def test_where_they_go(self):
    values = {'name': 's', 'model': 'm', 'optimizer': 'sgd', 'teacher': 't'}
    values['steps'] = 1
    values |= {'prune': (('.*', 0.5),), 'prune_span': (0.0, 0.5)}
    values |= {'lora': (('.*', 8),), 'lora_alpha': 4}
    stage = fields.read(options.Stage, 'config.stage.s', values)
    self.assertEqual(stage.optimizer, options.Optimizer(name='sgd'))
    self.assertEqual(stage.distil, options.Distil(teacher='t'))
    self.assertEqual(
      stage.prune, options.Prune(rules=(('.*', 0.5),), span=(0.0, 0.5))
    )
    self.assertEqual(
      stage.adapters, options.Adapters(rules=(('.*', 8),), alpha=4.0)
    )

  def test_compresses(self):
    plain = options.Stage(name='s', model='m')
    self.assertFalse(plain.compresses)
    rules = (('.*', None),)
    for part in (
      dict(prune=options.Prune(rules=rules)),
      dict(quantize=options.Quantize(rules=rules)),
      dict(adapters=options.Adapters(rules=rules)),
    ):
      stage = options.Stage(name='s', model='m', **part)
      self.assertTrue(stage.compresses)


if __name__ == '__main__':
  absltest.main()
