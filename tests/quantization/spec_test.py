"""Specs: the words of a format, and what is refused."""

from absl.testing import absltest
from absl.testing import parameterized

import jaxopt_compress as jc
from jaxopt_compress.quantization import spec as spec_lib


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
    ('range', dict(range='max'), "Did you mean 'absmax'"),
    ('static channels', dict(static=True), 'one for the whole tensor'),
  )
  def test_refused(self, options, says):
    with self.assertRaisesRegex(ValueError, says):
      jc.Spec(**options)

  @parameterized.product(
    format=('int4', 'e4m3', 'nf4'),
    how=(('tensor', 0), ('channel', 0), ('group', 32), ('block', (16, 8))),
    symmetric=(True, False),
    scale=('float32', 'bfloat16', 'e8m0', 'e4m3', 'int8'),
    rule=('floor', 'compressed-tensors'),
    range=('absmax', 'mse'),
  )
  def test_words_say_all(self, format, how, symmetric, scale, rule, range):
    spec = jc.Spec(
      format, *how, symmetric=symmetric, scale=scale, rule=rule, range=range
    )
    self.assertEqual(spec_lib.parse(spec.describe()), spec)


if __name__ == '__main__':
  absltest.main()
