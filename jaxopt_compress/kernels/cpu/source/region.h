// Two rounds of tasks shared between the calling thread and a pool.
//
// Threads that are awake claim tasks, the caller first of all. No thread waits for a task
// that is not claimed, so the caller may itself be a thread of the pool, and the pool
// may never get round to helping. A helper that comes late finds nothing to claim and
// touches nothing of the caller's.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace jaxopt_compress {

class Region {
 public:
  using Task = void (*)(const void* context, int round, int64_t task);

  Region(Task task, const void* context, int64_t first, int64_t second)
      : task_(task), context_(context), sizes_{first, second} {}

  // How long a helper waits for another region when it is done.
  std::chrono::microseconds patience{0};

  void work() {
    for (int round = 0; round < 2; ++round) {
      const int64_t n = sizes_[round];
      while (true) {
        const int64_t i = claim(round, n);
        if (i == n) break;
        try {
          task_(context_, round, i);
        } catch (...) {  // There was no memory. Other threads still wait for it.
          failed_.store(true, std::memory_order_relaxed);
        }
        done_[round].fetch_add(1, std::memory_order_release);
      }
      // Every task left is claimed, so a thread that is awake runs it.
      for (int spins = 0; done_[round].load(std::memory_order_acquire) < n;) {
        if (++spins < 4096) {
          pause();
        } else {
          std::this_thread::yield();
        }
      }
    }
  }

  bool failed() const { return failed_.load(std::memory_order_relaxed); }

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

 private:
  // The next task, or n (below 2^32) if all are claimed. Even and odd processors take
  // tasks from opposite ends. So each takes the same ones when the same product comes
  // again, or one of its results: those and the weight may still be in its cache.
  int64_t claim(int round, int64_t n) {
    const bool last = processor() & 1;
    const uint64_t one = last ? uint64_t{1} << 32 : 1;
    const uint64_t before = next_[round].fetch_add(one, std::memory_order_relaxed);
    const int64_t front = before & 0xffffffff, back = before >> 32;
    if (front + back >= n) return n;
    return last ? n - 1 - back : front;
  }

  static int processor() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return 0;
#endif
  }

  std::atomic<bool> failed_{false};
  Task task_;
  const void* context_;
  int64_t sizes_[2];
  alignas(64) std::atomic<uint64_t> next_[2] = {{0}, {0}};
  alignas(64) std::atomic<int64_t> done_[2] = {{0}, {0}};
};

// Where a helper that is done waits a little for the next region instead of sleeping:
// waking a thread can take longer than a product. There is room for one helper.
class Lounge {
 public:
  using Work = std::shared_ptr<Region>;
  using Time = std::chrono::microseconds;

  // Gives work to the helper that waits; false if none does.
  bool give(const Work& work) {
    if (state_.load(std::memory_order_relaxed) != kWaits) return false;
    auto given = std::make_unique<Work>(work);
    uintptr_t expected = kWaits;
    const bool taken = state_.compare_exchange_strong(
        expected, reinterpret_cast<uintptr_t>(given.get()));
    if (taken) given.release();
    return taken;
  }

  // Waits for work; null if none came, or if another helper waits already. After a
  // while it lets other threads have the processor.
  Work wait(Time patience) {
    uintptr_t expected = kEmpty;
    if (!state_.compare_exchange_strong(expected, kWaits)) return nullptr;
    const auto start = std::chrono::steady_clock::now();
    while (state_.load(std::memory_order_relaxed) == kWaits) {
      const auto waited = std::chrono::steady_clock::now() - start;
      if (waited >= patience) break;
      if (waited >= kWithin) std::this_thread::yield();
      for (int i = 0; i < 8; ++i) Region::pause();
    }
    const uintptr_t found = state_.exchange(kEmpty);
    if (found == kWaits) return nullptr;
    const std::unique_ptr<Work> given(reinterpret_cast<Work*>(found));
    return std::move(*given);
  }

  // For how long: within a program XLA soon needs its threads for other work, after the
  // last product of a program it hardly does.
  static constexpr Time kWithin{50}, kBetween{500};

 private:
  static constexpr uintptr_t kEmpty = 0, kWaits = 1;

  std::atomic<uintptr_t> state_{kEmpty};
};

inline Lounge lounge;

// Whether this thread is one of XLA's own, by its name. If XLA renames them, helpers
// wait in vain, and nothing else changes.
inline bool is_of_xla() {
  static thread_local const bool is = [] {
#if defined(__linux__)
    char name[16] = {};
    pthread_getname_np(pthread_self(), name, sizeof(name));
    return std::strncmp(name, "tf_XLA", 6) == 0;
#else
    return true;
#endif
  }();
  return is;
}

// A product of a program: its weight, and a number that is different in each run.
struct Site {
  const void* weight;
  int64_t run;
};

// Whether this product was the last of its program when it ran before. On a thread that
// is not one of XLA's own, the products of a program follow each other.
inline bool ends_program(const Site& site) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;  // a hash of addresses
  thread_local Site before = {nullptr, 0};
  thread_local const void* last[64] = {};
  const auto place = [](const Site& s) -> const void*& {
    return last[uint64_t{reinterpret_cast<uintptr_t>(s.weight)} * kGolden >> 58];
  };
  if (before.weight != nullptr) {
    const void*& is_last = place(before);
    if (before.run != site.run) {
      is_last = before.weight;
    } else if (is_last == before.weight) {
      is_last = nullptr;
    }
  }
  before = site;
  return place(site) == site.weight;
}

// Runs both rounds on this thread and up to `helpers` threads of a pool. Returns
// whether all tasks had the memory they needed.
//
// XLA computes short programs on the thread that calls them. There the next call comes
// soon, and the helper waits for it. Other programs keep their pool busy themselves.
template <typename Pool>
bool run(Pool& pool, const Site& site, int64_t helpers, Region::Task task,
         const void* context, int64_t first, int64_t second) {
  auto region = std::make_shared<Region>(task, context, first, second);
  if (!is_of_xla()) {
    region->patience = ends_program(site) ? Lounge::kBetween : Lounge::kWithin;
  }
  // From here on a helper may be at work for this call, so nothing may end the call but
  // the end of all work. Where there is no memory to ask helpers, it does without them.
  try {
    const bool given = helpers > 0 && lounge.give(region);
    for (int64_t i = given ? 1 : 0; i < helpers; ++i) {
      pool.Schedule([region]() mutable {
        while (region != nullptr) {
          region->work();
          const Lounge::Time patience = region->patience;
          region = nullptr;
          if (patience.count() > 0) region = lounge.wait(patience);
        }
      });
    }
  } catch (...) {
  }
  region->work();
  return !region->failed();
}

// Memory that a thread keeps and reuses; its contents are lost when it grows. If it is
// much more than a call needs, it shrinks.
class Room {
 public:
  Room() = default;
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { std::free(data_); }

  char* of(int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    size_ = 0;  // Never more than was asked for, so that overruns are found.
    const int64_t wanted = bytes;
#else
    const int64_t wanted = bytes + bytes / 4 + 4096;
#endif
    if (bytes > size_ || (size_ > kMuch && wanted < size_ / 4)) {
      std::free(data_);
      size_ = (wanted + 63) / 64 * 64;
      data_ = static_cast<char*>(std::aligned_alloc(64, size_));
      if (data_ == nullptr) {
        size_ = 0;
        throw std::runtime_error("jaxopt_compress: there is no memory for " +
                                 std::to_string(bytes) + " bytes of codes");
      }
    }
    return data_;
  }

 private:
  static constexpr int64_t kMuch = 32 << 20;

  char* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace jaxopt_compress
