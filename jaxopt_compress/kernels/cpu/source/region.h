// Two rounds of tasks shared between the calling thread and a pool.
//
// Tasks are claimed, from either end, by whoever is awake, the caller first of all.
// Nobody waits for a task that nobody has claimed, so the caller may itself be a
// thread of the pool and the pool may never get round to helping. A helper that comes
// late finds nothing to claim and touches nothing of the caller's.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
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

  Region(Task task, const void* context, int64_t first, int64_t second)
      : task_(task), context_(context), sizes_{first, second} {}

  void work() {
    for (int round = 0; round < 2; ++round) {
      const int64_t n = sizes_[round];
      while (true) {
        const int64_t i = claim(round, n);
        if (i == n) break;
        try {
          task_(context_, round, i);
        } catch (...) {  // There was no memory. The others still wait for it.
          failed_.store(true, std::memory_order_relaxed);
        }
        done_[round].fetch_add(1, std::memory_order_release);
      }
      // What is left is claimed, so it runs on a thread that is awake.
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

 private:
  // The next task, or n if all are claimed. Even and odd processors take them from
  // either end, and so each the same ones when the same product comes again, or what
  // follows from its results: those and the weight may be in its cache yet.
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

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  std::atomic<bool> failed_{false};
  Task task_;
  const void* context_;
  int64_t sizes_[2];
  alignas(64) std::atomic<uint64_t> next_[2] = {{0}, {0}};
  alignas(64) std::atomic<int64_t> done_[2] = {{0}, {0}};
};

// Runs both rounds on this thread and up to `helpers` threads of a pool. Returns
// whether all tasks had the memory they needed.
template <typename Pool>
bool run(Pool& pool, int64_t helpers, Region::Task task, const void* context,
         int64_t first, int64_t second) {
  auto region = std::make_shared<Region>(task, context, first, second);
  for (int64_t i = 0; i < helpers; ++i) {
    pool.Schedule([region] { region->work(); });
  }
  region->work();
  return !region->failed();
}

// Memory that a thread keeps and reuses; what it held is lost when it grows. Of much
// memory, only so much is kept as is used.
class Room {
 public:
  Room() = default;
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { std::free(data_); }

  char* of(int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    size_ = 0;  // Never more than was asked for: what is past it, is found.
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
