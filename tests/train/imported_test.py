"""Weights of files, by name."""

import json
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
from safetensors import numpy as safetensors

from jaxopt_compress import export
from jaxopt_compress import quantization
from jaxopt_compress.train import imported
from jaxopt_compress.train import options

RNG = np.random.default_rng(0)
A, B = (RNG.normal(size=s).astype('f') for s in ((4, 3), (3,)))
MEAN = RNG.normal(size=(3,)).astype('f')
PARAMS = {'head': {'kernel': A, 'bias': B}}
VARIABLES = {'batch_stats': {'norm': {'mean': MEAN}}}
OWN = jax.tree.map(jnp.zeros_like, (PARAMS, VARIABLES))
FLAT = {'head/kernel': A, 'head/bias': B}


class ImportedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(folder)

  def start(self, path, *name_map, own=OWN):
    return imported.start(str(self.root / path), name_map, *own)

  def check(self, found, variables=VARIABLES):
    for got, want in zip(found[:2], (PARAMS, variables), strict=True):
      jax.tree.map(np.testing.assert_array_equal, got, want)

  def safetensors(self, arrays, name='a.safetensors'):
    safetensors.save_file(arrays, self.root / name)
    return name

  def test_of_jc_save(self):
    export.trees.save(
      self.root / 'a', {'params': PARAMS, 'variables': VARIABLES}
    )
    self.check(self.start('a'))

  def test_of_a_home(self):
    path = self.safetensors(FLAT)
    with mock.patch.dict(os.environ, HOME=str(self.root)):
      found = imported.start(f'~/{path}', (), OWN[0], {})
    self.check(found, {})

  def test_of_compressed_weights(self):
    rules = [(r'.*kernel', quantization.schemes.scheme('W8A16')), (r'.*', None)]
    uses = None
    tree = quantization.quantize.quantize(PARAMS, rules, uses)
    export.trees.save(self.root / 'a', tree)
    found, _, _ = self.start('a', own=(OWN[0], {}))
    np.testing.assert_allclose(found['head']['kernel'], A, atol=0.02)

  @parameterized.parameters(
    ({},),
    (dict(prefix='params/'),),
    (dict(prefix='model.', dots=True),),
    (dict(prefix='state/params/', more={'opt/mu/head/bias': B}),),
  )
  def test_names(self, case):
    prefix, more = case.get('prefix', ''), case.get('more', {})
    names = {prefix + n: x for n, x in FLAT.items()} | more
    if case.get('dots'):
      names = {n.replace('/', '.'): x for n, x in names.items()}
    *found, told = self.start(self.safetensors(names), own=(OWN[0], {}))
    self.check((*found, told), {})
    self.assertIn('2 arrays of', told)
    self.assertEqual('1 others are not read: opt/mu' in told, bool(more))

  def test_types_are_those_of_the_model(self):
    names = {n: x.astype(np.float16) for n, x in FLAT.items()}
    found, _, _ = self.start(self.safetensors(names), own=(OWN[0], {}))
    self.assertEqual(found['head']['bias'].dtype, jnp.float32)

  def test_of_orbax(self):
    """Statistics beside parameters; a moment of the optimizer has the same names."""
    state = {
      'params': PARAMS,
      'batch_stats': VARIABLES['batch_stats'],
      'opt_state': {'mu': PARAMS},
      'step': 3,
    }
    state = jax.tree.map(jnp.asarray, state)
    ocp.save(self.root / 'ckpts' / '20', state)
    for path in ('ckpts/20', 'ckpts'):
      *found, told = self.start(path)
      self.check((*found, told))
    self.assertIn('3 others are not read', told)

  def test_of_a_workdir(self):
    for name, x in (('float', 1.0), ('int8', 2.0)):
      tree = {'params': {'w': jnp.float32([x])}, 'variables': {}}
      (self.root / 'stages' / name).mkdir(parents=True)
      file = self.root / 'stages' / name / 'weights.safetensors'
      export.trees.save(file, tree)
    config = json.dumps({'stages': ['float', 'int8', 'unfinished']})
    (self.root / 'config.json').write_text(config)
    own = {'w': jnp.zeros(1)}, {}
    for said, x in (('', 2.0), (':float', 1.0)):
      found, _, _ = imported.start(f'{self.root}{said}', (), *own)
      self.assertEqual(float(found['w'][0]), x)
    with self.assertRaisesRegex(ValueError, r"finished \['float', 'int8'\]"):
      imported.start(f'{self.root}:int4', (), *own)

  def test_map(self):
    names = {'trunk.0.weight': A, 'b': B + 1}
    path = self.safetensors(names)
    *found, _ = self.start(
      path,
      (r'head/kernel', 'trunk/0/weight'),
      (r'.*', None),
    )
    self.check(
      (
        {'head': {'kernel': found[0]['head']['kernel'], 'bias': B}},
        *found[1:],
        '',
      ),
      OWN[1],
    )
    self.assertFalse(np.any(found[0]['head']['bias']))

  @parameterized.parameters(
    ({'head/kernel': A}, (), 'Missing: head/bias. Say with init_map'),
    (
      {'head/kernel': A.T, 'head/bias': B, 'x': B},
      (),
      r'Of another shape: head/kernel is \[4, 3\], and \[3, 4\] there.'
      ' Only there: x.',
    ),
    (FLAT, ((r'haed/.*', None),), "'haed/.*', which no name of the model"),
    (FLAT | {'head/bias': B * np.nan}, (), 'head/bias has NaN'),
    (FLAT, ((r'head/bias', 'b'),), r'Missing: head/bias \(there b\)'),
    (
      {f'{p}/{n}': x for p in ('ema', 'raw') for n, x in FLAT.items()},
      (),
      r"below each of \['ema/', 'raw/'\]. Say which: init_map",
    ),
  )
  def test_what_does_not_fit(self, names, name_map, message):
    path = self.safetensors(dict(names))
    with self.assertRaisesRegex(ValueError, message):
      self.start(path, *name_map, own=(OWN[0], {}))

  def test_square_weights_of_another_order(self):
    own = {'a': {'kernel': A[:3]}, 'b': {'kernel': A}}
    name_map = (r'(.*)/kernel', r'\1/weight')
    path = self.safetensors({'a.weight': A[:3], 'b.weight': A})
    *_, told = self.start(path, name_map, own=({'a': own['a']}, {}))
    self.assertIn('a/kernel, square, from names that end in weight', told)
    *_, told = self.start(path, name_map, own=(own, {}))
    self.assertNotIn('square', told)  # b has rows and columns

  def test_names_that_are_one_here(self):
    export.trees.save(self.root / 'ours', {'a.b': A, 'a': {'b': A}})
    for path in ('ours', self.safetensors({'a.b': A, 'a/b': A + 1})):
      with self.assertRaisesRegex(
        ValueError, "'a[./]b' and 'a[./]b', and both"
      ):
        self.start(path, ('.*', None))

  def test_what_is_no_file(self):
    (self.root / 'folder').mkdir()
    (self.root / 'page.html').write_text('<html>' * 9)
    for path, message in (
      ('nothing', 'there is no /'),
      ('folder', 'nothing that Orbax reads'),
      ('page.html', 'not read: .* A safetensors file'),
      ('folder:a', 'is no workdir of a run'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        self.start(path)

  @parameterized.parameters(
    (dict(init='teacher', init_map=(('a', 'b'),)), 'no effect without a path'),
    (dict(init='./x', init_map=('a',)), "has 'a'; a pair"),
    (dict(init='./x', init_map=(('a(', None),)), 'no regular expression'),
    (dict(init='./x', init_map=(('a', 3),)), 'a pair'),
    (
      dict(init='./x', init_map=(('(a)', r'\2'),)),
      'no replacement for .*group',
    ),
    (dict(init='./x', init_map=(('a', r'\g<b>'),)), 'no replacement for'),
    (dict(init='./x', init_map=(('a', None),)), ''),
  )
  def test_words(self, said, message):
    stage = options.Stage(name='s', model='m', **said)
    if not message:
      return imported.check('s', stage)
    with self.assertRaisesRegex(ValueError, message):
      imported.check('s', stage)

  def test_stages_and_paths(self):
    for init, parent, file in (
      ('', '', ''),
      ('teacher_2', 'teacher_2', ''),
      ('./teacher', '', './teacher'),
      ('net.safetensors', '', 'net.safetensors'),
      ('/tmp/x:a', '', '/tmp/x:a'),
    ):
      stage = options.Stage(name='s', model='m', init=init)
      self.assertEqual((stage.parent, stage.file), (parent, file))


if __name__ == '__main__':
  absltest.main()
