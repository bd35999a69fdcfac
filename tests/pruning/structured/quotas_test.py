from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress.pruning.structured import quotas


class QuotasTest(parameterized.TestCase):
  def test_one_threshold(self):
    # By brute force, over groups of other sizes, with floors and caps.
    rng = np.random.default_rng(0)
    for fraction in np.linspace(0, 1, 21):
      ranked = {
        name: np.sort(rng.random(n))[::-1]
        for name, n in zip('abc', (3, 7, 12), strict=True)
      }
      limits = quotas.Limits(at_least=2, at_most=0.8)
      counts = quotas.together(ranked, fraction, limits)
      want = {n: limits.floor(x.size) for n, x in ranked.items()}
      while sum(want.values()) < int(22 * fraction + 1e-6):
        open_ = [n for n, x in ranked.items() if want[n] < limits.cap(x.size)]
        if not open_:
          break
        want[max(open_, key=lambda n: ranked[n][want[n]])] += 1
      self.assertEqual(counts, want)

  @parameterized.parameters('down', 'nearest', 'up')
  def test_rounding_is_monotone(self, rounding):
    limits = quotas.Limits(at_least=3, multiple=4, rounding=rounding)
    sizes = [limits.rounded(n, 18) for n in range(1, 19)]
    self.assertEqual(sizes, sorted(sizes))
    self.assertEqual((sizes[0], sizes[-1]), (4, 18))


if __name__ == '__main__':
  absltest.main()
