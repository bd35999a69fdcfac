"""Flags, then environment, then detection, then one process."""

from absl.testing import parameterized
import pytest

from jaxopt_compress.parallel import cluster

OURS = {
  'JAXOPT_COORDINATOR': 'env:1',
  'JAXOPT_NUM_PROCESSES': '4',
  'JAXOPT_PROCESS_ID': '3',
}
FLAGS = ('flag:9', 2, 1)
NO_FLAGS = (None, None, None)


class ChooseTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('nothing', NO_FLAGS, {}, 'single process', None),
    ('flags', FLAGS, {}, 'arguments', ('flag:9', 2, 1)),
    ('flags_win', FLAGS, OURS, 'arguments', ('flag:9', 2, 1)),
    ('some_flags', (None, None, 1), OURS, 'arguments', ('env:1', 4, 1)),
    ('environment', NO_FLAGS, OURS, 'environment', ('env:1', 4, 3)),
    (
      'environment_before_slurm',
      NO_FLAGS,
      {**OURS, 'SLURM_STEP_NODELIST': 'n[1-4]', 'SLURM_NTASKS': '4'},
      'environment',
      ('env:1', 4, 3),
    ),
    (
      'slurm',
      NO_FLAGS,
      {'SLURM_STEP_NODELIST': 'n[1-4]', 'SLURM_NTASKS': '4'},
      'detected',
      None,
    ),
    (
      'slurm_of_one_task',
      NO_FLAGS,
      {'SLURM_STEP_NODELIST': 'n1', 'SLURM_NTASKS': '1'},
      'single process',
      None,
    ),
    (
      'open_mpi_5',
      NO_FLAGS,
      {
        'JAX_COORDINATOR_ADDRESS': 'h:2',
        'OMPI_COMM_WORLD_SIZE': '2',
        'OMPI_COMM_WORLD_RANK': '0',
      },
      'environment',
      ('h:2', 2, 0),
    ),
  )
  def test_choice(self, flags, environ, choice, facts):
    chosen, kwargs = cluster.choose(*flags, environ)
    self.assertEqual(chosen, choice)
    self.assertEqual(tuple(kwargs.values()), facts or ())

  @parameterized.named_parameters(
    ('half', ('a:1', 2, None), {}, 'process_id is not known'),
    ('outside', ('a:1', 2, 2), {}, r'process_id 2 is not in \[0, 2\)'),
    (
      'mpi_without_coordinator',
      NO_FLAGS,
      {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '0'},
      'coordinator is not known',
    ),
    (
      'not_a_number',
      NO_FLAGS,
      {**OURS, 'JAXOPT_NUM_PROCESSES': 'four'},
      "must be a number, not 'four'",
    ),
  )
  def test_errors(self, flags, environ, message):
    with pytest.raises(ValueError, match=message):
      cluster.choose(*flags, environ)

  def test_single_process_needs_nothing_and_may_be_called_twice(self):
    for _ in range(2):
      self.assertEqual(cluster.initialize(), 'single process')
