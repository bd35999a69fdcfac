"""NNX modules as they are: compressed where their weights were, called as before.

    qmodel = jc.quantize(model, rules, uses)
    y = qmodel(x)

To the other rooms a module is a pytree. This one knows that it also has methods, and
state that they change in place. Flax is imported once a module comes.
"""

from jaxopt_compress.modules.verbs import cast as cast
from jaxopt_compress.modules.verbs import dress as dress
from jaxopt_compress.modules.verbs import freeze as freeze
from jaxopt_compress.modules.verbs import lift as lift
from jaxopt_compress.modules.verbs import materialize as materialize
from jaxopt_compress.modules.verbs import uses as uses
