"""Whether two language models mean the same text by the same id.

Logits of one width prove nothing: tokenizers of one family have the same number of
ids and other merges, and a loss between their logits falls all the same. What is
compared here are encodings of texts that tokenizers are known to differ in.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json

# Each kind of text that a normaliser, a splitter or a table of merges may treat in
# its own way.
PROBES = (
  '',
  'The quick brown fox jumps over the lazy dog.',
  "It's John's; we'll, I'd, they've, DON'T",
  'hello Hello HELLO hElLo',
  ' leading', 'trailing ', 'two  three   four    ', '\ttab\t\ttabs',
  'line\nline\n\n\nline\r\nline\r',
  '0 1 12 123 1234 12345 123456 1234567 1234567890',
  '3.14159 -2e-8 1,000,000.00 0x7f 50% $9.99 #1 2026-01-31',
  'def f(x):\n    if x != 0:\n        return {"a": [x ** 2, x // 3]}\n',
  'for (int i = 0; i < n; ++i) { a[i] += b[i]; } // end',
  'https://example.com/a_b?c=d&e=%20#f user@example.com',
  '!?...---___***///\\\\\\((([[[{{{<<<',
  'naïve café Zürich Å Łódź', 'nai\u0308ve cafe\u0301 A\u030a',
  'Привет мир Ελληνικά עברית العربية हिन्दी ไทย',
  '你好世界 こんにちは世界 カタカナ 안녕하세요', '①②③ ½ ² ﬁ Ｆｕｌｌ ㎏',
  '😀 👍🏽 👩‍👩‍👧‍👦 🇪🇺 ☃️',
  'a\u00a0b\u200bc\u2003d\ufeffe\u00adf',
  '“quotes” ‘single’ — dash – en … €£¥ ×÷≠∞',
  '<s></s><pad><unk><mask>[CLS][SEP][PAD]<|endoftext|><|im_start|>',
  'supercalifragilisticexpialidocious aaaaaaaaaaaaaaaaaaaaaaaa zzzzqqqq',
  '\x00\x01\x1f\x7f',
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
  """What a model calls a text.

  Attributes:
    size: ids that the model has logits for, padding included.
    encode: `text -> ids`, without ids that are added around every text, as by
      `lambda text: tokenizer.encode(text, add_special_tokens=False)`.
    special: {role: id or None}, such as `{'eos': 2, 'pad': None}`.
    tokens: how many of the ids stand for text or have a role; 0: not known. Tables
      are often padded to a multiple, such as 50,257 to 50,304.
  """

  size: int
  encode: Callable[[str], Sequence[int]]
  special: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
  tokens: int = 0

  def __post_init__(self):
    if not 0 <= self.tokens <= self.size or self.size < 1:
      raise ValueError(
        f'size={self.size}, tokens={self.tokens}; at least 1 and, of these, the'
        ' ones that are no padding are expected.'
      )

  def ids(self, text: str) -> list[int]:
    """The encoding of a text.

    Raises:
      ValueError: it is no sequence of numbers below `size`.
    """
    found = self.encode(text)
    try:
      ids = [int(i) for i in found]
    except (TypeError, ValueError) as e:
      raise ValueError(
        f'encode({text!r}) is {found!r}; a flat sequence of ids is expected. Of an'
        ' object with more than ids, return these.'
      ) from e
    wrong = [i for i in ids if not 0 <= i < self.size]
    if wrong:
      raise ValueError(
        f'encode({text!r}) has the id {wrong[0]}, and the model has logits for'
        f' {self.size}: it is the tokenizer of another model.'
      )
    return ids

  def fingerprint(self, probes: Sequence[str] = PROBES) -> str:
    """A digest of the encodings of probes and of special ids; see `cache.Manifest`."""
    said = [[text, self.ids(text)] for text in probes]
    text = json.dumps([said, sorted(dict(self.special).items())])
    return hashlib.sha256(text.encode()).hexdigest()


def check_vocabulary(
  student: Vocabulary, teacher: Vocabulary, probes: Sequence[str] = PROBES
) -> None:
  """Raises unless id i is the same text for a student and its teacher.

  Args:
    student, teacher: what their logits are over.
    probes: texts to compare; of a field with words of its own, add some.

  Raises:
    ValueError: with the first text and both encodings, the special ids or the sizes
      that differ, and what to do.

  >>> encode = lambda text: list(text.encode())
  >>> a = Vocabulary(size=256, encode=encode)
  >>> check_vocabulary(a, Vocabulary(size=264, encode=encode, tokens=256))
  Traceback (most recent call last):
  ValueError: The student has 256 logits and the teacher 264, of which 256 are no
  padding. Cut before the loss, as in teacher_logits[..., :256]: what is left is what
  both mean the same by.
  """
  pairs = [(text, student.ids(text), teacher.ids(text)) for text in probes]
  other = [pair for pair in pairs if pair[1] != pair[2]]
  if other:
    text, ours, theirs = other[0]
    raise ValueError(
      f'Student and teacher have different tokenizers: {len(other)} of'
      f' {len(pairs)} texts differ, first {text!a}, which is {_short(ours)} for the'
      f' student and {_short(theirs)} for the teacher. Choose a teacher with the'
      " student's tokenizer, or distil from texts that the teacher writes."
    )
  _check_special(student.special, teacher.special)
  _check_sizes(student, teacher)


def _check_special(student, teacher):
  for role in sorted({*student, *teacher}):
    ours, theirs = (
      x[role] if role in x else 'absent' for x in (student, teacher)
    )
    if ours != theirs:
      raise ValueError(
        f'The special id {role!r} is {ours} for the student and {theirs} for the'
        ' teacher. Give both the same, or mask the positions where it is predicted'
        ' and leave the role out.'
      )


def _check_sizes(student, teacher):
  if student.tokens and teacher.tokens and student.tokens != teacher.tokens:
    raise ValueError(
      f'The student has {student.tokens} ids that are no padding, and the teacher'
      f' {teacher.tokens}. One of them has tokens that were added. Cut both to'
      ' those that they share, and mask positions whose label is another.'
    )
  if student.size == teacher.size:
    return
  both = {'student': student, 'teacher': teacher}
  tokens = student.tokens or teacher.tokens
  shared = tokens or min(v.size for v in both.values())
  cut = [
    f'{n}_logits[..., :{shared}]' for n, v in both.items() if v.size > shared
  ]
  known = (
    f', of which {tokens} are no padding.'
    if tokens
    else '; all texts are encoded alike, so the rest is likely padding. Make sure'
    f' that no token has an id from {shared} on.'
  )
  raise ValueError(
    f'The student has {student.size} logits and the teacher {teacher.size}{known}'
    f' Cut before the loss, as in {" and ".join(cut)}: what is left is what both'
    ' mean the same by.'
  )


def _short(ids):
  return (
    f'{ids[:12]}' if len(ids) <= 12 else f'{ids[:12]} and {len(ids) - 12} more'
  )
