// Rounds of tasks shared between the calling thread and helpers.
//
// Threads that are awake claim tasks, the caller first of all. No thread waits for a task
// that is not claimed, so helpers may be late, or busy for another caller. A helper that
// comes late finds nothing to claim and touches nothing of the caller's.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace jaxopt_compress {

class Region {
 public:
  using Task = void (*)(const void* context, int round, int64_t task);

  static constexpr int kRounds = 4;
  struct Sizes {
    int64_t of[kRounds];
  };

  Region(Task task, const void* context, Sizes sizes)
      : task_(task), context_(context), sizes_(sizes) {}

  // How long a helper waits for another region when it is done.
  std::chrono::microseconds patience{0};
  const int caller = processor();

  void work() {
    for (int round = 0; round < kRounds; ++round) {
      const int64_t n = sizes_.of[round];
      if (n == 0) continue;
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

  // Works until all is done. Returns whether all tasks had the memory they needed.
  bool done() {
    work();
    return !failed_.load(std::memory_order_relaxed);
  }

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  static int processor() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return 0;
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

  std::atomic<bool> failed_{false};
  Task task_;
  const void* context_;
  Sizes sizes_;
  alignas(64) std::atomic<uint64_t> next_[kRounds] = {};
  alignas(64) std::atomic<int64_t> done_[kRounds] = {};
};

// A thread that helps callers. When it is done it waits a little for the next region
// before it sleeps: waking a thread takes longer than a product does.
class Helper {
 public:
  using Work = std::shared_ptr<Region>;
  using Time = std::chrono::microseconds;

  // Starts the thread, which lives as long as the process.
  Helper() { std::thread(&Helper::live, this).detach(); }

  // Hands work over; false if the helper is busy.
  bool give(const Work& work) {
    int found = state_.load(std::memory_order_relaxed);
    if (found != kWaits && found != kSleeps) return false;
    if (!state_.compare_exchange_strong(found, kTaken, std::memory_order_acquire)) {
      return false;
    }
    work_ = work;
    if (found == kWaits) {
      state_.store(kGiven, std::memory_order_release);
      return true;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      state_.store(kGiven, std::memory_order_release);
    }
    given_.notify_one();
    return true;
  }

  // For how long it waits: within a program the next call comes soon, after the last
  // product of a program it takes longer.
  static constexpr Time kWithin{300}, kBetween{1000};

 private:
  enum State { kBusy, kWaits, kSleeps, kTaken, kGiven };

  void live() {
    Time patience = kWithin;
    while (true) {
      state_.store(kWaits);
      wait(patience);
      const Work work = std::move(work_);
      state_.store(kBusy);
      patience = work->patience;
      leave(work->caller);
      work->work();
    }
  }

  // Moves this thread off the processor of a caller, to any other that it may have. Linux
  // may have woken it there, behind the caller, and leaves threads that do not sleep
  // where they are, even if another processor is idle.
  static void leave(int caller) {
#if defined(__linux__)
    if (Region::processor() != caller) return;
    cpu_set_t all;
    if (sched_getaffinity(0, sizeof(all), &all) != 0) return;
    cpu_set_t others = all;
    CPU_CLR(caller, &others);
    if (CPU_COUNT(&others) == 0) return;
    sched_setaffinity(0, sizeof(others), &others);
    sched_setaffinity(0, sizeof(all), &all);
#endif
  }

  // Waits until there is work. Before long it lets other threads have the processor,
  // those of XLA, which compute what is between two products.
  void wait(Time patience) {
    constexpr Time kAlone{2};
    const auto start = std::chrono::steady_clock::now();
    while (state_.load(std::memory_order_acquire) != kGiven) {
      const auto waited = std::chrono::steady_clock::now() - start;
      if (waited >= patience) return sleep();
      if (waited >= kAlone) std::this_thread::yield();
      for (int i = 0; i < 8; ++i) Region::pause();
    }
  }

  void sleep() {
    std::unique_lock<std::mutex> lock(mutex_);
    int found = kWaits;
    state_.compare_exchange_strong(found, kSleeps);
    // If work came in between, it is here any moment.
    if (found != kWaits) lock.unlock();
    if (found == kWaits) {
      given_.wait(lock, [this] { return state_.load() == kGiven; });
    }
    while (state_.load(std::memory_order_acquire) != kGiven) Region::pause();
  }

  std::atomic<int> state_{kBusy};
  Work work_;
  std::mutex mutex_;
  std::condition_variable given_;
};

// The helpers of all callers. XLA's own threads are left to XLA: while they look out for
// more work, as they do after each task, they would keep helpers from their processors.
class Crew {
 public:
  static constexpr int64_t kMost = 255;

  // Asks up to `count` helpers that are not busy to work on a region.
  void ask(int64_t count, const Helper::Work& work) {
    count = count < kMost ? count : kMost;
    if (size_.load(std::memory_order_acquire) < count) start(count);
    const int64_t size = size_.load(std::memory_order_acquire);
    for (int64_t i = 0; i < size && count > 0; ++i) count -= all_[i]->give(work);
  }

 private:
  // Starts helpers until there are `count`. They never end, nor are they destroyed.
  void start(int64_t count) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int64_t i = size_.load(); i < count; ++i) {
      all_[i] = new Helper;
      size_.store(i + 1, std::memory_order_release);
    }
  }

  std::mutex mutex_;
  std::atomic<int64_t> size_{0};
  Helper* all_[kMost] = {};
};

inline Crew crew;

// A product of a program: its weight, and a number that is different in each run.
struct Site {
  const void* weight;
  int64_t run;
};

// Whether this product was the last of its program when it ran before.
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

// Runs all rounds on this thread and up to `helpers` other ones. Returns whether all
// tasks had the memory they needed.
template <typename Pool>
bool run(Pool&, const Site& site, int64_t helpers, Region::Task task,
         const void* context, int64_t first, int64_t second, int64_t third = 0,
         int64_t fourth = 0) {
  const Region::Sizes sizes = {first, second, third, fourth};
  if (helpers == 0) return Region(task, context, sizes).done();
  const auto region = std::make_shared<Region>(task, context, sizes);
  region->patience = ends_program(site) ? Helper::kBetween : Helper::kWithin;
  // From here on a helper may be at work for this call, so nothing may end the call but
  // the end of all work. Where there is no memory for helpers, it does without them.
  try {
    crew.ask(helpers, region);
  } catch (...) {
  }
  return region->done();
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
