"""Siblings in a tree of parameters: paths that differ in a number.

    blocks/0/kernel, blocks/1/kernel        family ('blocks', ''), numbers 0 and 1
    params/Dense_0/bias                     family ('params', 'Dense_'), number 0

A family is (container, stem): the path that siblings have in common, and the word.
"""

import collections
import re

Family = tuple[str, str]


def families(paths) -> dict[tuple[str, str], list[int]]:
  """{(container, stem): numbers} of all siblings that differ in a number."""
  families = collections.defaultdict(set)
  for path in paths:
    words = path.split('/')
    for i, word in enumerate(words):
      stem, n = re.fullmatch(r'(.*?)(\d*)', word).groups()
      if n and str(int(n)) == n:
        families['/'.join(words[:i]), stem].add(int(n))
  return {family: sorted(numbers) for family, numbers in families.items()}


def member(path: str, family: tuple[str, str]) -> int | None:
  """The number of the sibling of a family that a path lies in."""
  container, stem = family
  rest = path[len(container) + 1 :] if container else path
  if container and not path.startswith(container + '/'):
    return None
  n = rest.partition('/')[0].removeprefix(stem)
  return int(n) if rest.startswith(stem) and n.isdecimal() else None


def prefix(family: tuple[str, str], n: int) -> str:
  """The path of a sibling."""
  container, stem = family
  return f'{container}/{stem}{n}' if container else f'{stem}{n}'


def in_place_of(path, other, n, m):
  """The family in which two paths have the numbers n and m, all else being equal."""
  if path is None or other is None:
    return None
  words, others = path.split('/'), other.split('/')
  apart = [i for i, (a, b) in enumerate(zip(words, others)) if a != b]
  if len(words) != len(others) or len(apart) != 1:
    return None
  (i,) = apart
  stem = re.fullmatch(r'(.*?)\d*', words[i])[1]
  if (words[i], others[i]) != (f'{stem}{n}', f'{stem}{m}'):
    return None
  return '/'.join(words[:i]), stem


def within(path, prefixes) -> bool:
  return any(path == p or path.startswith(p + '/') for p in prefixes)


def family_of(path: str) -> Family:
  """The family of a sibling, by its path."""
  container, _, word = path.rpartition('/')
  return container, re.fullmatch(r'(.*?)\d*', word)[1]
