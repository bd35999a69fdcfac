"""The noun, the verb, the clock, the map. Imports jax, and numpy, alone.

array, operators              the noun: a leaf that stands for an array
lift                          the verb: functions of leaves
jaxprs, context, interpret    evaluating a program on leaves
structural, bodies            its jits, loops and branches
compression                   the clock
rules, choices                the map, and what is said of wrong words
sharding                      how parts of a leaf are cut
"""

from jaxopt_compress.core import array
from jaxopt_compress.core import operators

operators.set_on(array.CompressedArray)
