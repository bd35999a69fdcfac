"""Networks of one's own: any class or function that makes a module, of any signature."""

from flax import linen as nn


class Net(nn.Module):
  """A perceptron; answers [batch, 1], one number for each example."""

  widths: tuple[int, ...] = (64, 64)
  dropout: float = 0.2

  @nn.compact
  def __call__(self, x, train: bool = False):
    for width in self.widths:
      x = nn.swish(nn.Dense(width)(x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(1)(x)
