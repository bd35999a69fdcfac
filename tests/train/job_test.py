"""Where a run keeps what."""

import pathlib

from absl.testing import absltest

from jaxopt_compress.train import job as job_lib


class JobTest(absltest.TestCase):
  def test_paths(self):
    work = pathlib.Path('work')
    job = job_lib.Job(None, None, None, work, None)
    self.assertEqual(job.checkpoints('a'), work / 'checkpoints' / 'a')
    self.assertEqual(job.stage('a'), work / 'stages' / 'a')
    self.assertEqual(
      job.weights('a'), work / 'stages' / 'a' / 'weights.safetensors'
    )


if __name__ == '__main__':
  absltest.main()
