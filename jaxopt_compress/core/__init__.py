"""The noun, the verb, the clock, the map. Imports jax, and numpy, alone.

array, operators, sharding     the noun: a leaf that stands for an array
lift, jaxprs, context          the verb: functions of leaves
interpret, structural, bodies  evaluating a program on leaves; its jits and loops
compression                    the clock
rules, choices                 the map, and what is said of wrong words
"""

from jaxopt_compress.core import array
from jaxopt_compress.core import operators
from jaxopt_compress.core.compression import Learned as Learned
from jaxopt_compress.core.compression import merge_learned as merge_learned
from jaxopt_compress.core.compression import split_learned as split_learned
from jaxopt_compress.core.lift import Dense as Dense
from jaxopt_compress.core.lift import rule as rule

operators.set_on(array.CompressedArray)
