"""Lines are there once, whatever happened in between."""

import json

from absl.testing import parameterized
import pytest

from jaxopt_compress.train import metrics


class MetricsTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path, capsys):
    self.dir, self.capsys = tmp_path, capsys

  def _write(self, begin, steps, stage='teacher'):
    writer = metrics.Metrics(self.dir)
    writer.begin(stage, begin)
    for step in steps:
      writer.write(stage, step, {'loss': step / 10})
    writer.close()

  def _steps(self, stage='teacher'):
    lines = metrics.read(self.dir / 'metrics.jsonl')
    return [x['step'] for x in lines if x['stage'] == stage]

  def test_one_object_a_line(self):
    self._write(0, [10, 20])
    text = (self.dir / 'metrics.jsonl').read_text().splitlines()
    self.assertEqual(
      json.loads(text[1]), {'stage': 'teacher', 'step': 20, 'loss': 2.0}
    )

  def test_resume_does_not_repeat(self):
    self._write(0, [10, 20, 30])
    self._write(20, [30, 40])
    self.assertEqual(self._steps(), [10, 20, 30, 40])

  def test_other_stages_are_kept(self):
    self._write(0, [10, 20], 'teacher')
    self._write(0, [10], 'student')
    self.assertEqual(self._steps('teacher'), [10, 20])

  def test_torn_last_line(self):
    self._write(0, [10, 20])
    path = self.dir / 'metrics.jsonl'
    path.write_text(path.read_text()[:-9])
    self._write(10, [20])
    self.assertEqual(self._steps(), [10, 20])

  @parameterized.named_parameters(
    ('no_json', b'{"stage": "tea', r'{\\?"stage\\?": \\?"tea'),
    ('no_text', b'\xff\x00', 'expected'),
    ('no_object', b'3', "it is '3'"),
    ('no_step', b'{"stage": "teacher"}', 'expected'),
    ('step_of_text', b'{"stage": "teacher", "step": "1"}', 'expected'),
  )
  def test_damaged_line(self, line, message):
    self._write(0, [10, 20])
    path = self.dir / 'metrics.jsonl'
    first, second, _ = path.read_bytes().split(b'\n')
    path.write_bytes(b'\n'.join([first, line, second, b'']))
    message = f'metrics.jsonl:2 is damaged: .*{message}.*Remove that line'
    with pytest.raises(ValueError, match=message):
      self._write(10, [20])

  def test_tensorboard(self):
    writer = metrics.Metrics(self.dir, tensorboard=True)
    writer.begin('teacher', 0)
    writer.write('teacher', 1, {'loss': 0.5})
    writer.close()
    events = list((self.dir / 'tensorboard' / 'teacher').iterdir())
    self.assertLen(events, 1)

  def test_plain_lines_without_a_terminal(self):
    progress = metrics.Progress('teacher', 0, 20, terminal=False)
    progress.advance()
    progress.show(10, {'loss': 0.12345678})
    progress.close()
    self.assertEqual(
      self.capsys.readouterr().out, '[teacher] step 10/20: loss 0.1235\n'
    )

  def test_bar_on_a_terminal(self):
    progress = metrics.Progress('teacher', 5, 20, terminal=True)
    progress.advance()
    progress.show(6, {'loss': 0.5})
    progress.close()
    shown = self.capsys.readouterr()
    self.assertIn('teacher', shown.err)
    self.assertIn('/20', shown.err)
    self.assertEqual(shown.out, '')
