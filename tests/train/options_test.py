"""What a config may say of a stage: the flags that its users write."""

from absl.testing import absltest

from jaxopt_compress.train import fields
from jaxopt_compress.train import options

# Checkpoints are of one config if these agree, so a key that is renamed makes
# those of before useless.
STAGE = """
  name model init steps batch_size augment files label_smoothing
  optimizer learning_rate warmup decay weight_decay clip learned_rate
  teacher alpha temperature
  prune prune_score prune_scope prune_k prune_span prune_every
  quantize calibrate calibrate_batches
  lora lora_alpha lora_rank_stabilized
""".split()


class StageTest(absltest.TestCase):
  def test_keys(self):
    self.assertEqual(list(fields.defaults_of(options.Stage)), STAGE)

  def test_where_they_go(self):
    values = {'name': 's', 'model': 'm', 'optimizer': 'sgd', 'teacher': 't'}
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
