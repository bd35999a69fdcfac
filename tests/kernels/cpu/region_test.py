"""Calls that cannot ask for help: the caller does all the work, and then returns."""

import pathlib
import shutil
import subprocess
import tempfile

from absl.testing import absltest

from jaxopt_compress.kernels.cpu import native

_SOURCE = pathlib.Path(native.__file__).parent / 'source'

# A pool that starts `able` helpers and has no memory for another. Tasks wait for each
# other, so that helpers are at work when asking for more of them fails. What tasks
# read is gone when `run` has returned: with sanitizers, later reads are found.
_PROGRAM = r"""
#include <cstdio>
#include <new>
#include <vector>

#include "region.h"

using namespace jaxopt_compress;

struct Pool {
  int able;
  std::vector<std::thread> threads;
  template <typename F>
  void Schedule(F&& f) {
    if (static_cast<int>(threads.size()) == able) {
      for (int i = 0; i < 1000; ++i) std::this_thread::yield();
      throw std::bad_alloc();
    }
    threads.emplace_back(std::forward<F>(f));
  }
};

struct Context {
  std::vector<std::atomic<int>> done;
};

void task(const void* context, int round, int64_t i) {
  auto* mine = const_cast<Context*>(static_cast<const Context*>(context));
  for (int spins = 0; spins < 100; ++spins) std::this_thread::yield();
  mine->done[64 * round + i].fetch_add(1);
}

int main() {
  for (int able = 0; able < 3; ++able) {
    for (int call = 0; call < 20; ++call) {
      Pool pool{able, {}};
      auto context = std::make_unique<Context>(Context{std::vector<std::atomic<int>>(128)});
      const bool fine = run(pool, {&pool, call}, 3, task, context.get(), 64, 64);
      int once = 0;
      for (auto& n : context->done) once += n == 1;
      context.reset();
      for (auto& t : pool.threads) t.join();
      if (!fine || once != 128) return 1;
    }
  }
  std::puts("all tasks ran once");
}
"""


class RegionTest(absltest.TestCase):
  def test_without_memory_for_helpers(self):
    compiler = shutil.which('g++') or shutil.which('clang++')
    if compiler is None:
      self.skipTest('there is no C++ compiler here')
    with tempfile.TemporaryDirectory() as folder:
      source = pathlib.Path(folder) / 'region_test.cc'
      source.write_text(_PROGRAM)
      how = ['-std=c++17', '-g1', '-pthread', f'-I{_SOURCE}']
      program = f'{folder}/region_test'
      subprocess.run([compiler, *how, source, '-o', program], check=True)
      ran = subprocess.run([program], capture_output=True, text=True)
      self.assertEqual(ran.stdout, 'all tasks ran once\n', ran.stderr)


if __name__ == '__main__':
  absltest.main()
