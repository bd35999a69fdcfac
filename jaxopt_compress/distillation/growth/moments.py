"""What an optimizer keeps of gradients, by the names that optax has for it.

    mu, trace, m      goes as gradients do
    nu, v             as their squares

A unit that is there twice shares its gradient among its copies: of weights that make it
each gets half as much, of those that read it all. So after growth, moments are what
they would be had the large network been trained all along.

That is exact where copies share equally, and where all that reads a group has the same
random shares of it. Where each output has shares s_jo of its own, as `net2net` with a
key draws them, copy j gets sum_o s_jo W_io g_o of output gradients g, and a moment
holds sum_o W_io g_o alone: what is there is then of equal shares, their mean, and is
off by as much as the shares are; fresh gradients replace it.
"""

from collections.abc import Mapping

from jaxopt_compress.analysis.plan import plan as plan_lib

# {word in the path of a state: the power of gradients that is kept there}.
ORDERS = {
  'mu': 1,
  'm': 1,
  'trace': 1,
  'acc_grads': 1,
  'grad_avg': 1,
  'nu': 2,
  'nu_max': 2,
  'v': 2,
  'v_row': 2,
  'v_col': 2,
  'sum_of_squares': 2,
}


def of(path: str, names: Mapping[str, str]) -> tuple[str | None, str, int]:
  """(parameter, what follows its name, order) of an array; order 0 for no moment.

  >>> of('1/0/nu/a/kernel', {'a/kernel': 'a/kernel'})
  ('a/kernel', '', 2)
  """
  mine, rest = plan_lib.named(path, names)
  if mine is None:
    return None, '', 0
  words = path.split('/')
  end = len(words) - (rest.count('/') + 1 if rest else 0)
  begin = next(
    i for i in range(end) if names.get('/'.join(words[i:end])) == mine
  )
  orders = [ORDERS[w] for w in reversed(words[:begin]) if w in ORDERS]
  return mine, rest, orders[0] if orders else 0
