"""Tasks that threads share: each runs once, whether helpers come or not."""

import pathlib
import shutil
import subprocess
import tempfile

from absl.testing import absltest

from jaxopt_compress.kernels.cpu import native

_SOURCE = pathlib.Path(native.__file__).parent / 'source'

# What tasks read is gone when `run` has returned: with sanitizers, later reads are
# found. Several threads call at once, so helpers are busy for others, late or asleep;
# with an argument there is no memory for a helper's stack.
_PROGRAM = r"""
#include <sys/resource.h>

#include <cstdio>
#include <vector>

#include "region.h"

using namespace jaxopt_compress;

struct Context {
  std::vector<std::atomic<int>> done;
};

void task(const void* context, int round, int64_t i) {
  auto* mine = const_cast<Context*>(static_cast<const Context*>(context));
  for (int spins = 0; spins < 100; ++spins) std::this_thread::yield();
  mine->done[64 * round + i].fetch_add(1);
}

std::atomic<int> wrong{0};

void calls() {
  int pool = 0;
  for (int call = 0; call < 60; ++call) {
    auto context = std::make_unique<Context>(Context{std::vector<std::atomic<int>>(128)});
    const bool fine = run(pool, {&pool, call}, 3, task, context.get(), 64, 64);
    int once = 0;
    for (auto& n : context->done) once += n == 1;
    context.reset();
    if (!fine || once != 128) ++wrong;
    // Long enough for helpers to fall asleep, now and then.
    if (call % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
}

int main(int count, char**) {
  if (count > 1) {
    const rlimit none = {1, 1};
    setrlimit(RLIMIT_AS, &none);
    calls();
  } else {
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; ++i) callers.emplace_back(calls);
    for (auto& caller : callers) caller.join();
  }
  if (wrong == 0) std::puts("all tasks ran once");
}
"""


class RegionTest(absltest.TestCase):
  def test_every_task_runs_once(self):
    compiler = shutil.which('g++') or shutil.which('clang++')
    if compiler is None:
      self.skipTest('there is no C++ compiler here')
    with tempfile.TemporaryDirectory() as folder:
      source = pathlib.Path(folder) / 'region_test.cc'
      source.write_text(_PROGRAM)
      how = ['-std=c++17', '-g1', '-pthread', f'-I{_SOURCE}']
      program = f'{folder}/region_test'
      subprocess.run([compiler, *how, source, '-o', program], check=True)
      for arguments in ([], ['without helpers']):
        ran = subprocess.run(
          [program, *arguments], capture_output=True, text=True
        )
        self.assertEqual(ran.stdout, 'all tasks ran once\n', ran.stderr)


if __name__ == '__main__':
  absltest.main()
