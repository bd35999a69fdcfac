"""What stages start from: a file that does not fit is found before anything runs."""

import pathlib
import types

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import pytest

from jaxopt_compress import export
from jaxopt_compress.train import model as model_lib
from jaxopt_compress.train import options
from jaxopt_compress.train import starting

X = jax.ShapeDtypeStruct((2, 4), jnp.float32)


class StartingTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path, capsys):
    self.root, self.capsys = pathlib.Path(tmp_path), capsys

  def made(self, **said):
    model = model_lib.build(
      'm', dict(name='mlp', in_features=4, widths=(3,)), X
    )
    stage = options.Stage(name='s', model='m', **said)
    job = types.SimpleNamespace(
      plan=types.SimpleNamespace(seed=0), stage=lambda name: self.root / name
    )
    return job, types.SimpleNamespace(stage=stage, source=model)

  def test_a_file(self):
    job, built = self.made(init=str(self.root / 'net'))
    params, variables = built.source.init(5)
    export.trees.save(
      self.root / 'net', {'params': params, 'more': jnp.ones(2)}
    )
    starting.check(job, [built])
    found, rest = starting.started(job, built, {})
    jax.tree.map(lambda a, b: self.assertTrue((a == b).all()), found, params)
    self.assertEqual(rest, variables)
    self.assertIn('[s] starts from 4 arrays of', self.capsys.readouterr().out)

  def test_what_does_not_fit_is_found_first(self):
    job, built = self.made(init=str(self.root / 'net'))
    export.trees.save(self.root / 'net', {'w': jnp.ones(2)})
    with pytest.raises(
      ValueError, match="Stage 's': init .* Missing: head/bias"
    ):
      starting.check(job, [built])
    # A stage that is finished needs its file no more.
    (self.root / 's').mkdir()
    starting.check(job, [built])

  def test_nothing(self):
    job, built = self.made(steps=1)
    starting.check(job, [built])
    params, _ = starting.started(job, built, {})
    self.assertEqual(params['head']['kernel'].shape, (3, 10))
