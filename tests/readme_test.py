"""The examples of README and CONTRIBUTING run and print what they say."""

import contextlib
import importlib.util
import io
import pathlib
import re
import sys
import types

from absl.testing import absltest

from jaxopt_compress.train import distil
from jaxopt_compress.train import fields
from jaxopt_compress.train import options

_ROOT = pathlib.Path(__file__).parent.parent


def blocks_of(name):
  text = (_ROOT / name).read_text()
  return re.findall(r'```python\n(.*?)```', text, re.DOTALL)


def run(name, blocks):
  """Runs the blocks in one namespace: (names, printed lines, expected lines)."""
  # Dataclasses look their module up.
  module = types.ModuleType(pathlib.Path(name).stem.lower())
  sys.modules[module.__name__] = module
  printed = io.StringIO()
  for block in blocks:
    with contextlib.redirect_stdout(printed):
      exec(compile(block, name, 'exec'), module.__dict__)  # noqa: S102
  said = [
    line.rsplit('# ', 1)[1]
    for block in blocks
    for line in block.splitlines()
    if line.startswith('print(')
  ]
  return module.__dict__, printed.getvalue().splitlines(), said


class ReadmeTest(absltest.TestCase):
  def test_contributing(self):
    blocks = blocks_of('CONTRIBUTING.md')
    self.assertLen(blocks, 2)
    _, printed, said = run('CONTRIBUTING.md', blocks)
    self.assertEqual(printed, said)

  def test_readme(self):
    blocks = blocks_of('README.md')
    self.assertNotEmpty(blocks)
    _, printed, said = run('README.md', blocks)
    self.assertEqual(printed, said)

  def test_readme_is_short(self):
    words = (_ROOT / 'README.md').read_text().split()
    self.assertLessEqual(len(words), 900)

  def test_links_of_readme_lead_somewhere(self):
    text = (_ROOT / 'README.md').read_text()
    links = re.findall(r'\]\(([^)#]+)\)', text)
    self.assertGreater(len(links), 10)
    missing = [link for link in links if not (_ROOT / link).exists()]
    self.assertEmpty(missing)

  def test_commands_of_readme_name_what_is_there(self):
    text = (_ROOT / 'README.md').read_text()
    modules = re.findall(r'python -m ([\w.]+)', text)
    configs = re.findall(r'--config=([\w/]+\.py)', text)
    self.assertNotEmpty(modules)
    self.assertNotEmpty(configs)
    for module in modules:
      self.assertIsNotNone(importlib.util.find_spec(module), module)
    for config in configs:
      self.assertTrue((_ROOT / config).exists(), config)

  def test_words_of_a_stage(self):
    # The site only shows it: nothing there reads it as a stage.
    (block,) = (b for b in blocks_of('docs/distil.md') if 'taught = dict(' in b)
    names, _, _ = run('distil.md', [block])
    taught = fields.read(options.Stage, 's', {'name': 's'} | names['taught'])
    distil.check('s', taught)


if __name__ == '__main__':
  absltest.main()
