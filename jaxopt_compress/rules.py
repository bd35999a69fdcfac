"""Where: an ordered list of (regex, value) over the paths of a tree.

match          the value of the first rule that takes each leaf
named_leaves   the leaves of a tree with their paths
map_named      a function of path and leaf, over a tree
by_path        a compression for each leaf
"""

from jaxopt_compress.core.compression import by_path
from jaxopt_compress.core.rules import map_named
from jaxopt_compress.core.rules import match
from jaxopt_compress.core.rules import named_leaves

__all__ = ['by_path', 'map_named', 'match', 'named_leaves']
