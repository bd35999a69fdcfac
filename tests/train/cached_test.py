"""A teacher is asked once, goes on after a kill, and no step runs it."""

import gc
import json
import os
import signal

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from jaxopt_compress import report
from jaxopt_compress.distillation.cache import shards
from jaxopt_compress.train import cached
from jaxopt_compress.train import checkpoint
from jaxopt_compress.train import loop
from jaxopt_compress.train import preemption

pytestmark = [
  *(
    pytest.mark.filterwarnings(f'ignore::{name}')
    for name in ('pytest.PytestUnraisableExceptionWarning', 'ResourceWarning')
  ),
  pytest.mark.usefixtures('compiled'),
]


def tiny(devices=1, stages=None, **student):
  """A teacher, and a student that meets each example more than once."""
  common = dict(model='mlp', batch_size=16, learning_rate=0.01)
  taught = dict(teacher='teacher', temperature=2.0, cache=dict(k=3))
  found = {
    'teacher': dict(steps=4, **common),
    'student': {'steps': 6, **common, **taught, **student},
  }
  for name, more in (stages or {}).items():
    found[name] = {'steps': 6, **common, **taught, **more}
  return dict(
    seed=0,
    # A few percent of the images: about N.
    data=dict(
      name='digits',
      labels=0.047,
      test='validation',
      validation='test',
      eval_batch_size=64,
      limit=64,
    ),
    models=dict(mlp=dict(in_features=64, widths=(8,))),
    stages=tuple(found),
    stage=found,
    report=dict(batches=(1,), seconds=0.0, plots=False),
    run=dict(devices=devices, log_every=2, save_every=3),
  )


class Killed(BaseException):
  """Nothing in the library catches this, as nothing catches SIGKILL."""


class CachedTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path, monkeypatch, capsys):
    self.dir, self.monkeypatch, self.capsys = tmp_path, monkeypatch, capsys
    monkeypatch.setattr(cached, '_FILE', 1)  # a batch a file
    yield
    gc.collect()  # now, where the mark above is in force

  def _run(self, config, name='work'):
    loop.run(config, self.dir / name)
    return self.dir / name

  def _weights(self, work, stage='student'):
    manifest = checkpoint.read_manifest(work / 'stages' / stage / 'tree')
    return {n: crc for n, (_, _, crc) in manifest['leaves'].items()}

  def _loss(self, work):
    path = work / 'stages/student/result.json'
    return json.loads(path.read_text())['loss']

  def _files(self, work):
    return sorted((work / 'caches').glob('*/shard-*.bin'))

  def test_by_example_once_for_all_stages(self):
    work = self._run(tiny(stages={'again': {}}))
    [folder] = (work / 'caches').iterdir()
    said = json.loads((folder / 'manifest.json').read_text())
    self.assertEqual((said['k'], said['temperature']), (3, 2.0))
    self.assertLen(self._files(work), -(-said['examples'] // 16))
    self.assertLess(said['examples'], 6 * 16)
    facts = report.read(work).facts
    # 3 entries of 4 + 15 bits are 8 bytes; the tail has 2.
    for stage in ('student', 'again'):
      self.assertRegex(
        facts[f'answers for {stage}'],
        f'teacher answered each example once, {said["examples"]} in all: 3 entries'
        ' and the rest of 10, at T = 2, in 10 bytes a position .*'
        f'{10 * said["examples"]:,} bytes.*{folder.name}',
      )

  def test_all_entries_are_the_live_teacher(self):
    kept = dict(cache=dict(k=10), augment=True, eval_every=3)
    live = {**kept, 'cache': dict(k=0)}
    works = [self._run(tiny(**x), n) for n, x in (('k', kept), ('l', live))]
    # But for float16.
    losses = [self._loss(work) for work in works]
    np.testing.assert_allclose(*losses, rtol=2e-3)
    self.assertNotEqual(*losses)
    # A step that runs no teacher costs less.
    costs = []
    for work in works:
      (begin, _), (end, _) = report.read(work).curves['student']
      costs.append(end - begin)
    self.assertLess(costs[0], 0.95 * costs[1])
    # Of neither is the teacher a part, nor are its answers.
    for work in works:
      names = [set(self._weights(work, s)) for s in ('teacher', 'student')]
      self.assertEqual(*names)

  def test_killed_stopped_and_damaged(self):
    config = tiny(cache=dict(draws=4), augment=True)
    whole = self._run(config, 'whole')
    write, asked = shards.write, []

    def stops(folder, manifest, shard, codes):
      asked.append(shard)
      if len(asked) == 3:
        raise Killed
      write(folder, manifest, shard, codes)
      if len(asked) == 4:
        os.kill(os.getpid(), signal.SIGTERM)

    self.monkeypatch.setattr(shards, 'write', stops)
    with self.assertRaises(Killed):
      self._run(config)
    self.assertLen(self._files(self.dir / 'work'), 2)
    with self.assertRaisesRegex(preemption.Preempted, 'file 1 of 4 .*are kept'):
      self._run(config)
    self.assertEqual(asked, [0, 1, 2, 2])
    path = self._files(self.dir / 'work')[1]
    content = path.read_bytes()
    path.write_bytes(b'x' + content[1:])
    with self.assertRaisesRegex(ValueError, f'{path.name}.*Delete this file'):
      self._run(config)
    path.unlink()
    work = self._run(config)
    self.assertEqual(asked[4:], [3, 4, 5, 1])
    self.assertEqual(path.read_bytes(), content)
    self.assertEqual(self._weights(work), self._weights(whole))

  def test_four_devices_ask_the_same(self):
    works = [self._run(tiny(n, augment=True), str(n)) for n in (1, 4)]
    self.assertEqual(*(len(self._files(w)) for w in works))
    np.testing.assert_allclose(*map(self._loss, works), rtol=1e-4)

  def test_several_teachers_of_other_forms_are_one(self):
    both = (('teacher', 0.5), ('int8', 0.5))
    rules = ((r'.*/kernel', 'W8A8'), (r'.*', None))
    config = tiny(teacher=both, ensemble=True, teacher_dtype='bfloat16')
    config['stage']['int8'] = dict(model='mlp', init='teacher', quantize=rules)
    config['stages'] = ('teacher', 'int8', 'student')
    facts = report.read(self._run(config)).facts
    self.assertIn('teacher and int8 answered', facts['answers for student'])

  @parameterized.parameters(
    (dict(cache=dict(k=11)), 'cache.k is 11, and there are 10'),
    (dict(cache=dict(kk=1)), "no 'kk'.*Did you mean 'k'"),
    (dict(cache=dict(k=2, draws=2)), 'both k=2 and draws=2'),
  )
  def test_mistakes(self, student, message):
    with self.assertRaisesRegex(ValueError, message):
      loop.run(tiny(**student), self.dir / 'work', dry_run=True)


if __name__ == '__main__':
  absltest.main()
