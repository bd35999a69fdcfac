"""Four bits where a network keeps its meaning, eight or floats elsewhere, as measured.

    rules = sensitivity(apply, params, (where, BASE), seen).rules(cosine=COSINE)

What chooses are inputs of other data than those that judge. Nothing is known of the
network beforehand.
"""

import jaxopt_compress as jc

BASE = 'int4 g32 asym, int8 token asym'
OTHERS = ('int8, int8 token asym',)
# Of the rows of results, on the data that choose.
COSINE = 0.97
# So many of the costliest weights may have another format.
_EXAMINED = 24


class Refused(ValueError):
  """No format that was tried keeps what a network means."""


def rules(model, given, uses) -> list:
  """Rules that reach `COSINE`, those given with exceptions before them.

  Args:
    model: a `measure.Model` with `seen`.
    given: rules of `BASE`.
    uses: of its weights.

  Raises:
    Refused: nothing but floats reaches it; says what was measured.
  """

  def judged(params, *inputs):
    return model.apply(params, *inputs)[0]

  found = jc.sensitivity(
    judged,
    model.params,
    given,
    [model.seen],
    uses=uses,
    others=OTHERS,
    examine=_EXAMINED,
  )
  try:
    return found.rules(cosine=COSINE)
  except ValueError as e:
    raise Refused(str(e)) from e
