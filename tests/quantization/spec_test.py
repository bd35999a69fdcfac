"""Specs: the words of a format, and what is refused."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized

import jaxopt_compress as jc
from jaxopt_compress.quantization import spec as spec_lib

_STATIC = dict(granularity='tensor', static=True)
# Words of one kind, which contradict each other.
KINDS = (
  ('granularity', 'tensor', 'channel', 'token', 'g16', 'g32', '8x8', '8x16'),
  ('symmetric', 'asym'),
  ('scale', 'bfloat16', 'mx', 'nv', 'dq'),
  ('rule', 'floor', 'rceil', 'even', 'compressed-tensors'),
  ('range', 'mse', 'hqq'),
  ('rounding', 'stochastic'),
  ('static', 'static'),
  ('learn', 'lsq', 'pact', 'ema'),
)


class SpecTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('format', dict(format='int9'), "format is 'int9'; choose one of"),
    ('int1', dict(format='int1'), 'binary'),
    ('granularity', dict(granularity='row'), "granularity is 'row'"),
    ('group without size', dict(granularity='group'), 'go together'),
    ('size without group', dict(group=8), 'go together'),
    ('a pair', dict(granularity='group', group=(2, 2)), 'a pair of sizes'),
    ('scale', dict(scale='f16'), "scale is 'f16'"),
    ('rule', dict(rule='ceil'), "Did you mean 'rceil'"),
    ('rule without mx', dict(rule='even'), "scale='e8m0'"),
    ('rule of nv', dict(rule='floor', scale='e4m3'), "scale='e8m0'"),
    ('range', dict(range='max'), "Did you mean 'absmax'"),
    ('static channels', dict(static=True), 'one for the whole tensor'),
    ('hqq', dict(range='hqq'), "'int4 g64 asym hqq'"),
    ('static search', dict(_STATIC, range='mse'), 'calibrate.*mse'),
    ('static noise', dict(_STATIC, rounding='stochastic'), 'to nearest'),
    ('learned noise', dict(learn='lsq', rounding='stochastic'), 'to nearest'),
    ('static nv', dict(_STATIC, scale='e4m3'), "'float32', 'bfloat16' or"),
    ('static dq', dict(_STATIC, scale='int8'), "'float32', 'bfloat16' or"),
  )
  def test_refused(self, options, says):
    with self.assertRaisesRegex(ValueError, says):
      jc.schemes.Spec(**options)

  @parameterized.product(
    format=('int4', 'e4m3', 'nf4'),
    how=(('tensor', 0), ('channel', 0), ('group', 32), ('block', (16, 8))),
    symmetric=(True, False),
    scale=(
      ('float32', ''),
      ('bfloat16', ''),
      *(('e8m0', rule) for rule in ('', *spec_lib.RULES)),
      ('e4m3', ''),
      ('int8', ''),
    ),
    range=('absmax', 'mse'),
  )
  def test_words_say_all(self, format, how, symmetric, scale, range):
    scale, rule = scale
    spec = jc.schemes.Spec(
      format, *how, symmetric=symmetric, scale=scale, rule=rule, range=range
    )
    self.assertEqual(spec_lib.parse(spec.describe()), spec)

  def test_powers_of_two_say_their_rule(self):
    for words, says in (
      ('e4m3 g32 mx', 'e4m3 g32 mx rceil'),
      ('e2m1 g32 mx', 'e2m1 g32 mx even'),
      ('int8 g32 mx', 'int8 g32 mx floor'),
      ('e2m1 g32 mx floor', 'e2m1 g32 mx floor'),
      ('e2m1 g16 nv', 'e2m1 g16 nv'),
    ):
      self.assertEqual(spec_lib.parse(words).describe(), says)

  def test_words_of_one_kind_contradict(self):
    pairs = [
      (kind, *pair)
      for kind, *words in KINDS
      for pair in itertools.product(words, words)
    ]
    for kind, first, second in (('format', 'int4', 'e2m1'), *pairs):
      words = (
        f'{first} {second}' if kind == 'format' else f'int4 {first} {second}'
      )
      with self.subTest(words):
        says = f"says {kind} twice, '{first}' and '{second}'"
        with self.assertRaisesRegex(ValueError, says):
          spec_lib.parse(words)


if __name__ == '__main__':
  absltest.main()
