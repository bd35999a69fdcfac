"""What models are told: keywords that are there, numbers in their ranges."""

from absl.testing import parameterized

from jaxopt_compress.models import keywords


class Net:
  def __init__(
    self,
    widths=(8, 8),
    blocks=2,
    lookback=0,
    ratio=2.0,
    dropout=0.0,
    tied=True,
    heads=None,
    *,
    rngs,
  ):
    pass


class KeywordsTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(widths=(4,)),
    dict(widths=[1, 2]),
    dict(blocks=(1, 3)),  # One for each stage.
    dict(lookback=0, dropout=0.5, ratio=1, tied=False, heads=4),
  )
  def test_right(self, **said):
    keywords.check('net', Net.__init__, said)

  @parameterized.parameters(
    (
      dict(widht=8),
      "net has no 'widht'. Did you mean 'widths'. It has widths, ",
    ),
    (dict(rngs=8), "net has no 'rngs'"),
    (dict(widths=8), r'widths of net is 8; a tuple such as \(8, 8\) is'),
    (dict(widths=()), r'widths of net is \(\); a tuple'),
    (dict(widths=(8, -8)), r'is \(8, -8\); a whole number, at least 1, is'),
    (dict(blocks=0), 'blocks of net is 0; a whole number, at least 1'),
    (dict(blocks=(1, 0)), r'blocks of net is \(1, 0\); a whole number'),
    (dict(blocks=1.5), 'blocks of net is 1.5; a whole number'),
    (dict(blocks=True), 'blocks of net is True; a number such as 2'),
    (dict(blocks=10**30), 'at least 1'),
    (dict(lookback=-1), 'at least 0'),
    (dict(ratio=0.0), 'ratio of net is 0.0; a positive number'),
    (dict(ratio=float('inf')), 'a positive number'),
    (dict(dropout=1.0), r'a fraction in \[0, 1\)'),
    (dict(dropout=float('nan')), r'a fraction in \[0, 1\)'),
    (dict(dropout='0.1'), 'a number such as 0.0'),
  )
  def test_wrong(self, said, message):
    with self.assertRaisesRegex(ValueError, message):
      keywords.check('net', Net.__init__, said)
