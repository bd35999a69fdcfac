"""A config is checked before anything runs."""

import copy

from absl import flags
from absl.testing import parameterized
import ml_collections
from ml_collections import config_flags
import pytest

from jaxopt_compress.train import plan

CONFIG = {
  'seed': 3,
  'data': {'name': 'digits'},
  'models': {'big': {'name': 'mlp'}, 'small': {'name': 'mlp', 'widths': (8,)}},
  'stages': ('teacher', 'student', 'int8'),
  'stage': {
    'teacher': {'model': 'big', 'steps': 10},
    'student': {'model': 'small', 'steps': 20, 'teacher': 'teacher'},
    'int8': {
      'model': 'small',
      'init': 'student',
      'quantize': ((r'.*/kernel', 'W8A8'), (r'.*', None)),
    },
    'unused': {'model': 'big', 'steps': 1},
  },
}


def _with(path, value):
  config = copy.deepcopy(CONFIG)
  if path.endswith('prune_span'):
    config['stage']['teacher']['prune'] = (('.*', 0.5),)
  *parents, last = path.split('.')
  node = config
  for key in parents:
    node = node.setdefault(key, {})
  if value is None:
    del node[last]
  else:
    node[last] = value
  return config


class ParseTest(parameterized.TestCase):
  def test_values_and_order(self):
    p = plan.parse(ml_collections.ConfigDict(CONFIG))
    self.assertEqual([s.name for s in p.stages], ['teacher', 'student', 'int8'])
    self.assertEqual(p.stage('student').steps, 20)
    self.assertEqual(p.stage('int8').quantize.rules[1], (r'.*', None))
    self.assertEqual(p.models['small']['widths'], (8,))
    self.assertEqual(p.run.mode, 'shard_map')

  def test_int_passes_for_float(self):
    p = plan.parse(_with('stage.teacher.learning_rate', 1))
    self.assertEqual(p.stage('teacher').optimizer.learning_rate, 1.0)

  @parameterized.named_parameters(
    (
      'bits of another objective',
      'report.metric',
      'bits per masked byte',
      "choose one of ('accuracy', 'top 5', 'loss')",
    ),
    ('top', 'sede', 1, "config has no 'sede'. Did you mean 'seed'"),
    (
      'stage',
      'stage.teacher.stpes',
      1,
      "config.stage.teacher has no 'stpes'. Did you mean 'steps'",
    ),
    ('run', 'run.log_evry', 1, "Did you mean 'log_every'"),
    (
      'type',
      'stage.teacher.steps',
      '10',
      "config.stage.teacher.steps is '10', of type str; int, such as 0",
    ),
    ('no_data', 'data', None, 'The config has no data'),
    ('no_model', 'stage.teacher.model', None, "needs a 'model'"),
    (
      'model',
      'stage.teacher.model',
      'bg',
      "'bg'; choose one of ('big', 'small')",
    ),
    (
      'later_teacher',
      'stage.teacher.teacher',
      'student',
      "teacher is 'student'; a stage that runs before it is expected, of []",
    ),
    ('stages', 'stages', ('teachr',), "'teachr'. Did you mean 'teacher'"),
    ('nothing', 'stage.int8.quantize', (), 'nothing to compress'),
    ('from_nothing', 'stage.int8.init', '', 'starts from nothing'),
    ('export', 'report.export', ('int9',), "Did you mean 'int8'"),
    ('twice', 'stages', ('teacher', 'teacher'), "has 'teacher' twice"),
    ('word', 'stages', 'teacher', "config.stages is 'teacher'; a tuple"),
    ('path', 'stages', ('../teacher',), "'../teacher'; a name of letters"),
    ('renamed', 'stage.teacher.name', 'x', "teacher.name is 'x'; the name of"),
    (
      'no_dict',
      'stage.teacher',
      'big',
      "config.stage.teacher is 'big'; a dict",
    ),
    (
      'no_model_dict',
      'models.big',
      'mlp',
      "config.models.big is 'mlp'; a dict",
    ),
    ('no_data_dict', 'data', 'digits', "config.data is 'digits'; a dict"),
    ('seed', 'seed', -1, 'config.seed is -1; a number in [0, 2147483648) is'),
    (
      'seed_type',
      'seed',
      0.5,
      'config.seed is 0.5, of type float; int, such as 0',
    ),
    ('axis', 'models.big.axis_name', 'date', "Did you mean 'data'?"),
    ('batches', 'report.batches', (), 'at least one batch size'),
    ('span', 'stage.teacher.prune_span', (0.7, 0.0), 'the first not above'),
    ('spans', 'stage.teacher.prune_span', (0.7,), 'two fractions of the steps'),
    ('calibrate', 'stage.int8.calibrate', 'mes', "Did you mean 'mse'"),
    (
      'range',
      'stage.teacher.clip',
      -1,
      'clip is -1.0; a number in [0, inf) is',
    ),
  )
  def test_mistakes(self, path, value, message):
    with pytest.raises(ValueError) as e:
      plan.parse(_with(path, value))
    self.assertIn(message, str(e.value))

  @parameterized.parameters(
    'data', 'stage', 'stage.teacher', 'stage.teacher.cache', 'stage.int8.grow'
  )
  def test_a_number_where_options_are(self, path):
    config = ml_collections.ConfigDict(_with(path, 4))
    with pytest.raises(ValueError, match=f'^config.{path} is 4; a dict of opt'):
      plan.complete(config)

  @parameterized.parameters(
    ('stage.student.alpha', 'linear 0 -> 1', 'linear 0 -> 1'),
    ('stage.student.alpha', '0.5', 0.5),
    ('stage.student.alpha', '1', 1),
    ('stage.student.temperature', 'cosine 8 -> 1', 'cosine 8 -> 1'),
    ('stage.student.teacher', 'teacher', 'teacher'),
    ('stage.student.teacher', "(('ema', 1.0),)", (('ema', 1.0),)),
    ('data.validation', '0.1', 0.1),
    ('data.validation', 'validation', 'validation'),
  )
  def test_flags_of_two_types(self, key, said, value):
    config = plan.complete(ml_collections.ConfigDict(CONFIG))
    values, argv = flags.FlagValues(), ['', f'--config.{key}={said}']
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, sys_argv=argv
    )
    values(argv)
    found = plan.parse(values.config)
    if key.startswith('data'):
      self.assertEqual(found.data.validation, value)
    else:
      distil = found.stage('student').distil
      self.assertEqual(getattr(distil, key.rpartition('.')[2]), value)

  def test_axes_of_one_replica(self):
    config = _with('models.big.axis_name', 'data')
    plan.parse(config)
    config['run'] = {'mode': 'jit'}
    with pytest.raises(ValueError, match=r"'data'; choose one of \(None,\)"):
      plan.parse(config)

  def test_fingerprint_has_what_a_stage_depends_on(self):
    p = plan.parse(CONFIG)
    teacher = p.fingerprint(p.stage('teacher'))
    int8 = p.fingerprint(p.stage('int8'))
    self.assertIn('stage.teacher.steps', teacher)
    self.assertNotIn('stage.student.steps', teacher)
    self.assertIn('stage.teacher.steps', int8)
    self.assertIn('models.big.name', int8)
    self.assertNotIn('run.mode', int8)
    changed = plan.parse(_with('stage.int8.prune', (('.*', 0.5),)))
    student = changed.stage('student')
    self.assertEqual(
      changed.fingerprint(student), p.fingerprint(p.stage('student'))
    )
