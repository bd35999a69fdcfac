"""Which claims were measured."""


class Bars:
  """What is claimed, and whether it was measured."""

  def __init__(self):
    self._lines, self._missed = [], 0

  def add(self, what: str, measured: float, wanted: float, note: str = ''):
    # No number is none that was met.
    missed = not measured >= wanted
    self._missed += missed
    word = 'MISSED' if missed else 'MET'
    word = 'NOT MEASURED' if measured != measured or wanted != wanted else word
    line = f'  {what:58s} {measured:8.4f} of {wanted:.4f}  {word:12s}  {note}'
    self._lines.append(line.rstrip())

  def show(self):
    met = len(self._lines) - self._missed
    print(f'\nBars: {met} met, {self._missed} missed')
    print('\n'.join(self._lines))
