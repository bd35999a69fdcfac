"""torch's `scaled_dot_product_attention`, which takes turns: see attention.py.

Answers lines of JSON on stdout, in an interpreter that has torch.
"""

import functools
import json
import os
import sys
import time


def main():
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.set_grad_enabled(False)
  contestants = {}

  def prepare(name, query, key, heads_first):
    """Shapes [batch, places, heads, features], as projections leave them.

    With `heads_first` keys and values are [batch, heads, places, features] in
    memory, as caches are kept.
    """
    q, k, v = (torch.randn(shape) for shape in (query, key, key))
    q = q.transpose(1, 2)
    if not heads_first:
      k, v = k.transpose(1, 2), v.transpose(1, 2)
    attend = torch.nn.functional.scaled_dot_product_attention
    contestants[name] = functools.partial(attend, q, k, v)

  def turn(name, calls):
    call = contestants[name]
    start = time.perf_counter()
    for _ in range(calls):
      call()
    return (time.perf_counter() - start) / calls

  actions = dict(prepare=prepare, turn=turn)
  for line in sys.stdin:
    request = json.loads(line)
    try:
      reply = {'result': actions[request.pop('do')](**request)}
    except Exception as e:  # tells the other side, which goes on without it
      reply = {'error': f'{type(e).__name__}: {e}'[:500]}
    sys.stdout.write(json.dumps(reply) + '\n')
    sys.stdout.flush()


if __name__ == '__main__':
  main()
