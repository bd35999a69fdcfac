"""Losses on logits in float64 numpy, written from the papers' equations.

Each is a function of student [n, classes], teacher [n, classes], labels [n] and weights
[n], and gives the weighted sum over positions.
"""

import itertools

import numpy as np
from scipy import special


def softmax(x, temperature):
  return special.softmax(x / temperature, axis=-1)


def kl_of(p, q):
  return special.rel_entr(p, q).sum(-1)


def by_position(f):
  """An oracle from a loss of each position, f(student, teacher, labels) -> [n]."""

  def oracle(student, teacher, labels, weights):
    return (weights * f(student, teacher, labels)).sum()

  return oracle


def of_distributions(f, temperature):
  """An oracle from f(p, q), p the teacher's distribution."""

  def of_logits(student, teacher, labels):
    return f(softmax(teacher, temperature), softmax(student, temperature))

  return by_position(of_logits)


def jsd(p, q, beta):
  """Agarwal et al. 2023, eq. 1."""
  m = beta * p + (1 - beta) * q
  return beta * kl_of(p, m) + (1 - beta) * kl_of(q, m)


def cosine(student, teacher, labels):
  s, t = (x - x.mean(-1, keepdims=True) for x in (student, teacher))
  norms = np.linalg.norm(s, axis=-1) * np.linalg.norm(t, axis=-1)
  return 1 - (s * t).sum(-1) / norms


def dkd(alpha, beta, temperature):
  """Zhao et al. 2022, eq. 4 to 7, by loops."""

  def of_logits(student, teacher, labels):
    losses = []
    for s, t, label in zip(student, teacher, labels, strict=True):
      p, q = softmax(t, temperature), softmax(s, temperature)
      b, a = (np.array([x[label], 1 - x[label]]) for x in (p, q))
      others = np.arange(len(s)) != label
      r, o = (x[others] / (1 - x[label]) for x in (p, q))
      losses.append(alpha * kl_of(b, a) + beta * kl_of(r, o))
    return temperature**2 * np.array(losses)

  return by_position(of_logits)


def dist(beta, gamma, temperature):
  """Huang et al. 2022, eq. 5 to 8; a class sees the positions by their weights."""

  def pearson(a, b, w):
    a, b = a - np.average(a, weights=w), b - np.average(b, weights=w)
    return (w * a * b).sum() / np.sqrt((w * a * a).sum() * (w * b * b).sum())

  def oracle(student, teacher, labels, weights):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    ones = np.ones(p.shape[-1])
    inter = [1 - pearson(a, b, ones) for a, b in zip(q, p, strict=True)]
    intra = [1 - pearson(a, b, weights) for a, b in zip(q.T, p.T, strict=True)]
    inter, intra = np.average(inter, weights=weights), np.mean(intra)
    mean = temperature**2 * (beta * inter + gamma * intra)
    return weights.sum() * mean

  return oracle


def of_pairs(of_pair, k):
  """The mean of of_pair(i, j, student, q, p), i before j of the teacher's first k."""

  def of_logits(student, teacher, labels):
    losses = []
    for s, t in zip(student, teacher, strict=True):
      p, q = softmax(t, 1.0), softmax(s, 1.0)
      first = np.argsort(-t)[:k]
      pairs = itertools.combinations(first, 2)
      losses.append(np.mean([of_pair(i, j, s, q, p) for i, j in pairs]))
    return np.array(losses)

  return by_position(of_logits)


def list_mle(k):
  """Draws without putting back: Xia et al. 2009."""

  def of_logits(student, teacher, labels):
    losses = []
    for s, t in zip(student, teacher, strict=True):
      order = np.argsort(-t)
      chances = [
        np.exp(s[order[r]] - special.logsumexp(s[order[r:]])) for r in range(k)
      ]
      losses.append(-np.log(np.prod(chances)))
    return np.array(losses)

  return by_position(of_logits)


def gradient(oracle, student, teacher, labels, weights, step=1e-5):
  """d oracle / d student by central differences."""
  out = np.zeros_like(student)
  for at in np.ndindex(student.shape):
    ends = []
    for sign in (1, -1):
      moved = student.copy()
      moved[at] += sign * step
      ends.append(oracle(moved, teacher, labels, weights))
    out[at] = (ends[0] - ends[1]) / (2 * step)
  return out
