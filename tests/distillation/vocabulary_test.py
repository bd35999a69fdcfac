"""Another tokenizer is refused, and what differs is named."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from jaxopt_compress import distillation


def by_bytes(text):
  return list(text.encode())


def digits_alone(text):
  """Each digit by itself, where `by_pairs` takes two at a time."""
  return [ord(c) % 500 for c in text]


def by_pairs(text):
  ids, i = [], 0
  while i < len(text):
    pair = text[i : i + 2]
    if len(pair) == 2 and pair.isdecimal() and pair.isascii():
      ids.append(500 + int(pair))
    else:
      ids.append(ord(text[i]) % 500)
      pair = text[i]
    i += len(pair)
  return ids


def made(encode=by_bytes, size=256, **fields):
  return distillation.Vocabulary(size=size, encode=encode, **fields)


class VocabularyTest(parameterized.TestCase):
  @parameterized.parameters(
    (made(), made()),
    (made(), made(lambda text: np.int32(by_bytes(text)))),
    (made(special={'eos': 0}), made(special={'eos': 0})),
    (made(size=300, tokens=256), made(size=300, tokens=256)),
    (made(size=300, tokens=256), made(size=300)),
  )
  def test_the_same(self, student, teacher):
    distillation.check_vocabulary(student, teacher)
    self.assertEqual(student.fingerprint(), teacher.fingerprint())

  @parameterized.parameters(
    # What the teacher does, and the first probe that tells.
    (lambda t: by_bytes(t.lower()), r"'The quick.*\[84, 104.*\[116, 104"),
    (lambda t: by_bytes(t.strip()), "' leading'"),
    (lambda t: by_bytes(' '.join(t.split())), "' leading'"),
    (lambda t: by_bytes(t.replace('\r\n', '\n')), r"'line\\nline"),
    (lambda t: by_bytes(t.replace('\ufeff', '')), r"'a\\xa0b"),
    (
      lambda t: [1, *by_bytes(t)],
      r"(\d+) of \1 texts.* first '', which is \[\] ",
    ),
  )
  def test_another_tokenizer(self, encode, message):
    with self.assertRaisesRegex(ValueError, message):
      distillation.check_vocabulary(made(), made(encode))
    self.assertNotEqual(made().fingerprint(), made(encode).fingerprint())

  def test_numbers_alone(self):
    message = r"first '0 1 12 123.*which is \[48, 32, 49.*\[48, 32, 49, 32, 512"
    with self.assertRaisesRegex(ValueError, message):
      distillation.check_vocabulary(
        made(digits_alone, 600), made(by_pairs, 600)
      )

  @parameterized.parameters('NFC', 'NFKC')
  def test_normalised_text(self, form):
    import unicodedata

    normalised = made(lambda t: by_bytes(unicodedata.normalize(form, t)))
    with self.assertRaisesRegex(ValueError, 'different tokenizers'):
      distillation.check_vocabulary(made(), normalised)

  @parameterized.parameters(
    (dict(special={'eos': 1}), "'eos' is 0 for the student and 1 for"),
    (dict(special={'eos': None}), "'eos' is 0 for the student and None"),
    (dict(special={}), "'eos' is 0 for the student and absent"),
    (dict(special={'eos': 0, 'bos': 3}), "'bos' is absent .* and 3 "),
    (
      dict(size=264),
      r'256 logits and the teacher 264; all.*logits\[..., :256\]',
    ),
    (
      dict(size=264, tokens=256),
      r'of which 256 are no padding. Cut .*teacher_',
    ),
  )
  def test_what_else_differs(self, change, message):
    teacher = made(**({'special': {'eos': 0}} | change))
    with self.assertRaisesRegex(ValueError, message):
      distillation.check_vocabulary(made(special={'eos': 0}), teacher)

  def test_both_are_padded(self):
    a, b = made(size=260, tokens=256), made(size=264, tokens=256)
    message = r'student_logits\[..., :256\] and teacher_logits\[..., :256\]'
    with self.assertRaisesRegex(ValueError, message):
      distillation.check_vocabulary(a, b)

  def test_tokens_that_were_added(self):
    a, b = made(size=264, tokens=256), made(size=264, tokens=258)
    with self.assertRaisesRegex(ValueError, '256 ids .* teacher 258.*added'):
      distillation.check_vocabulary(a, b)

  @parameterized.parameters(
    (lambda t: {'ids': [1]}, 'a flat sequence of ids'),
    (lambda t: [[1], [2]], 'a flat sequence of ids'),
    (lambda t: None, 'a flat sequence of ids'),
    (lambda t: [256], 'the id 256, and the model has logits for 256'),
  )
  def test_encodings_that_are_none(self, encode, message):
    with self.assertRaisesRegex(ValueError, message):
      distillation.check_vocabulary(made(), made(encode))

  @parameterized.parameters(dict(size=0), dict(size=4, tokens=5))
  def test_sizes_that_are_none(self, **sizes):
    with self.assertRaisesRegex(ValueError, 'expected'):
      made(**sizes)


if __name__ == '__main__':
  absltest.main()
