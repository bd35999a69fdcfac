"""Bytes of answers: how many, and what comes back."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress.distillation.cache import codec as codec_lib

U = 2.0**-11


def answers(vocabulary, k, shape=(7,), seed=0):
  """ids, log p and log tail, float64, with masses from 1 down to 1e-30."""
  rng = np.random.default_rng(seed)
  p = rng.dirichlet(np.full(k + 1, 0.05), shape) + 1e-30
  p /= p.sum(-1, keepdims=True)
  ids = rng.permuted(
    np.broadcast_to(np.arange(vocabulary), (*shape, vocabulary)), axis=-1
  )[..., :k]
  return ids, np.log(p[..., :k]), np.log(p[..., k])


class CodecTest(parameterized.TestCase):
  @parameterized.parameters(
    # vocabulary, k, sampled, bytes: ids of 17 bits and values of 15 are 4 bytes.
    (128_000, 64, False, 64 * 4 + 2),
    (131_072, 64, False, 64 * 4 + 2),
    (131_073, 64, False, 64 * 33 // 8 + 2),
    (256, 64, False, 64 * 23 // 8 + 2),
    (10, 3, False, 8 + 2),  # 3 * 19 bits
    (1, 1, False, 2 + 2),
    (128_000, 12, True, 32),  # 12 * (17 + 4) bits
  )
  def test_bytes_of_a_position(self, vocabulary, k, sampled, nbytes):
    self.assertEqual(codec_lib.Codec(vocabulary, k, sampled).nbytes, nbytes)

  @parameterized.product(
    size=((1, 1), (2, 2), (10, 3), (257, 64), (3000, 9)),
    shape=((), (5,), (2, 3), (0,)),
  )
  def test_what_comes_back(self, size, shape):
    codec = codec_lib.Codec(*size)
    ids, log_p, log_tail = answers(*size, shape)
    codes = codec.encode(ids, log_p, log_tail)
    self.assertEqual(
      (codes.dtype, codes.shape), (np.uint8, (*shape, codec.nbytes))
    )
    got_ids, got, got_tail = codec.decode(codes)
    np.testing.assert_array_equal(got_ids, ids)
    for x, y in ((got, log_p), (got_tail, log_tail)):
      self.assertEqual((x.dtype, x.shape), (np.float32, y.shape))
      bound = U * np.abs(y) + U * np.log(size[1] + 1) + 2.0**-24
      # float32, in which masses are added up, is far from the bound.
      self.assertTrue((np.abs(x - y) <= bound + 2e-6).all())
    mass = np.exp(got.astype(np.float64)).sum(-1) + np.exp(got_tail)
    np.testing.assert_allclose(mass, 1, atol=1e-6)

  def test_the_bound_is_near(self):
    ids, log_p, log_tail = answers(1000, 64, (300,))
    codec = codec_lib.Codec(1000, 64)
    _, got, _ = codec.decode(codec.encode(ids, log_p, log_tail))
    bound = U * np.abs(log_p) + U * np.log(65) + 2.0**-24
    self.assertBetween(np.max(np.abs(got - log_p) / bound), 0.7, 1)

  def test_what_has_no_mass(self):
    codec = codec_lib.Codec(9, 2)
    inf = -np.inf
    codes = codec.encode(
      np.array([[8, 0], [8, 0]]),
      # A sum that was rounded may be above 1.
      np.array([[1e-7, inf], [np.log(0.5), -1e6]], np.float32),
      np.array([inf, np.log(0.5)], np.float32),
    )
    ids, log_p, log_tail = codec.decode(codes)
    self.assertEqual(ids.tolist(), [[8, 0], [8, 0]])
    self.assertEqual(log_p[:, 1].tolist(), [inf, inf])
    np.testing.assert_allclose(log_p[:, 0], [0, np.log(0.5)], atol=1e-6)
    np.testing.assert_allclose(log_tail, [inf, np.log(0.5)], atol=1e-6)

  @parameterized.parameters(1, 2, 12, 50)
  def test_counts_come_back_exactly(self, k):
    rng = np.random.default_rng(0)
    counts = rng.multinomial(k, [1 / k] * k, size=20)
    ids = rng.integers(0, 1000, counts.shape)
    codec = codec_lib.Codec(1000, k, sampled=True)
    with np.errstate(divide='ignore'):
      log_p = np.log(counts / k)
    got_ids, got, tail = codec.decode(
      codec.encode(ids, log_p, np.full(20, -np.inf))
    )
    np.testing.assert_array_equal(got_ids, ids)
    np.testing.assert_array_equal(np.rint(k * np.exp(got)), counts)
    self.assertTrue((tail == -np.inf).all())

  @parameterized.product(bits=(1, 7, 8, 23, 33, 56), k=(1, 8, 13))
  def test_words_lie_one_after_the_other(self, bits, k):
    rng = np.random.default_rng(bits)
    words = rng.integers(0, 2**bits, (4, k), np.uint64)
    packed = codec_lib.pack(words, bits)
    # As one long number, the first word in its lowest bits.
    for row, codes in zip(words.tolist(), packed, strict=True):
      number = sum(word << (i * bits) for i, word in enumerate(row))
      self.assertEqual(int.from_bytes(codes.tobytes(), 'little'), number)
      self.assertLen(codes, -(-k * bits // 8))
    np.testing.assert_array_equal(codec_lib.unpack(packed, bits, k), words)

  @parameterized.parameters(
    (dict(ids=[[0, 9]]), 'ids from 0 to 9, and a vocabulary of 9'),
    (dict(ids=[[-1, 0]]), 'ids from -1 to 0'),
    (dict(log_probs=[[2.0, 1.0]]), 'do not add up to 1 but to 10.*not logits'),
    (dict(log_probs=[[np.nan, -1.0]]), r'1 of 1 positions, first \[0\].*nan'),
    (dict(log_tail=[[-1.0]]), r'log_tail \[1, 1\]; \[..., 2\] twice'),
    (dict(ids=[[0, 1, 2]]), r'ids are \[1, 3\]'),
  )
  def test_what_is_no_answer(self, change, message):
    good = dict(
      ids=[[0, 1]], log_probs=np.log([[0.5, 0.3]]), log_tail=np.log([0.2])
    )
    codec_lib.Codec(9, 2).encode(**good)
    with self.assertRaisesRegex(ValueError, message):
      codec_lib.Codec(9, 2).encode(**(good | change))

  @parameterized.parameters((9, 0), (9, 10), (0, 1), (2**31, 1))
  def test_sizes_that_are_none(self, vocabulary, k):
    with self.assertRaisesRegex(ValueError, 'expected'):
      codec_lib.Codec(vocabulary, k)


if __name__ == '__main__':
  absltest.main()
