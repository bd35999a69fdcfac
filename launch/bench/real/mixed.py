"""Four bits where a network keeps its meaning, eight or floats elsewhere, as measured.

    rules = sensitivity(apply, params, (where, BASE), seen).rules(cosine=COSINE)

What chooses are inputs of other data than those that judge. Nothing is known of the
network beforehand. PP-OCR's recogniser takes 190 seconds of the processor, all cores added
up: 17 of its 47 weights stay in four bits, 11 have eight, and 19, small ones, are floats.
Letters are alike at 95.1% of places, with 2.76 MB of parameters, where int8 alone has
93.2% and 2.97 MB.
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
