"""What training computed, the frozen leaves compute: to the bit.

Run as a script, it compares the two for models of the contract in programs
compiled as users compile them; the test runs it in a process without the flags
that make the other tests quick.
"""

import os
import pathlib
import re
import subprocess
import sys

from absl.testing import parameterized
import contract_models
import jax
import numpy as np

import jaxopt_compress as jc

MODELS = (
  'mlp nnx',
  'cnn nnx',
  'attention linen',
  'scanned nnx',  # with attention in its blocks
  'tied nnx',
  'lstm linen',
)
SCHEMES = {
  'W8A16': jc.W8A16,
  'W8A8': jc.W8A8,
  'int4 g4': jc.schemes.Spec('int4', 'group', 4, scale='bfloat16'),
  'int8 asym': 'int8 asym, int8 token asym',
  'nf4': 'nf4 g4 dq',
  'mxfp8': jc.schemes.MXFP8,
  'W4A4': jc.schemes.W4A4,
  'static': 'int8 asym, int8 tensor static asym ema',
  'learned': 'int4 mse lsq, int8 tensor static asym lsq',
}
# A cell that joins its kernels before the product shows no weight what it meets.
CELLS = [
  (model, scheme)
  for model in MODELS
  for scheme in SCHEMES
  if model != 'lstm linen' or scheme not in ('static', 'learned')
]


def differing(model, scheme):
  """How many outputs of the trained and the frozen form differ at all."""
  apply, params, x = contract_models.CASES[model]()
  uses = jc.uses(apply)(params, x)
  weights = [p for p, used in uses.items() if any(u.contracted for u in used)]
  rules = [*((re.escape(p), SCHEMES[scheme]) for p in weights), (r'.*', None)]
  ranges = {}
  if scheme in ('static', 'learned'):
    ranges = jc.calibrate(apply, params, rules, [x], uses, 'minmax')
  comp = jc.fake_quantize(rules, uses, ranges=ranges)
  state = comp.init(params)
  lifted = jc.lift(apply)
  run = lambda p, state, x: lifted(comp.apply(p, state), x)
  trained = jax.jit(run)(params, state, x)
  frozen = jax.jit(lambda p, state: jc.freeze(comp.apply(p, state)))(
    params, state
  )
  # Where no range is learned, it is also what quantising afterwards makes.
  stored = frozen
  if scheme != 'learned':
    stored = jc.quantize(params, rules, uses, ranges=ranges)
  for a, b in zip(*map(jax.tree.leaves, (frozen, stored)), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
  return int((np.asarray(jax.jit(lifted)(frozen, x)) != trained).sum())


class FrozenTest(parameterized.TestCase):
  def test_as_users_compile(self):
    env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    here = pathlib.Path(__file__)
    done = subprocess.run(
      [sys.executable, str(here)],
      cwd=here.parent,
      env=env,
      capture_output=True,
      text=True,
      timeout=600,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    lines = done.stdout.splitlines()
    self.assertLen(lines, len(CELLS))
    self.assertEqual([x for x in lines if not x.endswith(': 0')], [])


if __name__ == '__main__':
  for cell in CELLS:
    print(f'{", ".join(cell)}: {differing(*cell)}')
