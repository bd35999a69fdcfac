// What two threads can do at most: read memory, multiply bytes.
//
//   g++ -O3 -march=native -std=c++17 -pthread ceilings.cc
//
// Answers each line with a line: "read MIB" in GB/s, "vnni" and "amx" in 1e9
// multiplications and additions a second, 0 where this machine has no such thing.
// Threads end before the answer is given.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int kThreads = 2;
constexpr double kSeconds = 0.02;  // of a measurement, at least

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Units of work a second of `step(thread)`, on all threads together. Each counts
// the steps that it finishes before the time is over.
template <typename Step>
double rate(double units, Step step) {
  std::atomic<int> ready{0};
  std::vector<double> rates(kThreads);
  const auto run = [&](int thread) {
    step(thread);
    ready.fetch_add(1);
    while (ready.load() < kThreads) {
    }
    const auto start = Clock::now();
    int64_t steps = 0;
    do {
      step(thread);
      ++steps;
    } while (since(start) < kSeconds);
    rates[thread] = steps * units / since(start);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < kThreads; ++i) others.emplace_back(run, i);
  run(0);
  for (auto& other : others) other.join();
  double sum = 0;
  for (double r : rates) sum += r;
  return sum;
}

volatile uint64_t sink;

double read(int64_t mib) {
  static std::vector<uint64_t> all;
  const int64_t each = mib * (1 << 20) / 8 / kThreads;
  if (static_cast<int64_t>(all.size()) != each * kThreads) {
    all.assign(each * kThreads, 1);
    all.shrink_to_fit();
  }
  return rate(each * 8, [&](int thread) {
           const uint64_t* p = all.data() + thread * each;
           uint64_t a[32] = {};
           int64_t i = 0;
           for (; i + 32 <= each; i += 32) {
             for (int j = 0; j < 32; ++j) a[j] ^= p[i + j];
           }
           uint64_t sum = 0;
           for (uint64_t x : a) sum ^= x;
           sink = sum;
         }) /
         1e9;
}

#if defined(__AVX512VNNI__)
double vnni() {
  constexpr int kSums = 16, kTimes = 1 << 14;
  return rate(2.0 * 64 * kSums * kTimes, [](int) {
           __m512i sums[kSums];
           const __m512i x = _mm512_set1_epi32(0x01020301);
           for (auto& s : sums) s = _mm512_setzero_si512();
           for (int i = 0; i < kTimes; ++i) {
#pragma GCC unroll 16
             for (int j = 0; j < kSums; ++j) {
               sums[j] = _mm512_dpbusd_epi32(sums[j], x, x);
             }
             __asm__ volatile("" ::: "memory");
           }
           __m512i all = sums[0];
           for (auto& s : sums) all = _mm512_xor_si512(all, s);
           uint64_t words[8];
           _mm512_storeu_si512(words, all);
           sink = words[0];
         }) /
         1e9;
}
#elif defined(__AVXVNNI__)
double vnni() {
  constexpr int kSums = 12, kTimes = 1 << 14;
  return rate(2.0 * 32 * kSums * kTimes, [](int) {
           __m256i sums[kSums];
           const __m256i x = _mm256_set1_epi32(0x01020301);
           for (auto& s : sums) s = _mm256_setzero_si256();
           for (int i = 0; i < kTimes; ++i) {
#pragma GCC unroll 12
             for (int j = 0; j < kSums; ++j) {
               sums[j] = _mm256_dpbusd_avx_epi32(sums[j], x, x);
             }
             __asm__ volatile("" ::: "memory");
           }
           __m256i all = sums[0];
           for (auto& s : sums) all = _mm256_xor_si256(all, s);
           uint64_t words[4];
           _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), all);
           sink = words[0];
         }) /
         1e9;
}
#else
double vnni() { return 0; }
#endif

#if defined(__AMX_INT8__) && defined(__linux__)
double amx() {
  constexpr int kRequest = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequest, kTileData) != 0) return 0;
  constexpr int kTimes = 1 << 12;
  return rate(2.0 * 16 * 16 * 64 * 4 * kTimes, [](int) {
           struct alignas(64) {
             uint8_t palette = 1, start = 0, unused[14] = {};
             uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
             uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
           } shapes;
           alignas(64) static uint8_t data[1024] = {1, 2, 3};
           _tile_loadconfig(&shapes);
           _tile_zero(0);
           _tile_zero(1);
           _tile_zero(2);
           _tile_zero(3);
           _tile_loadd(4, data, 64);
           _tile_loadd(5, data, 64);
           _tile_loadd(6, data, 64);
           _tile_loadd(7, data, 64);
           for (int i = 0; i < kTimes; ++i) {
             _tile_dpbsud(0, 4, 6);
             _tile_dpbsud(1, 4, 7);
             _tile_dpbsud(2, 5, 6);
             _tile_dpbsud(3, 5, 7);
           }
           alignas(64) int32_t out[256];
           _tile_stored(0, out, 64);
           sink = out[0];
           _tile_release();
         }) /
         1e9;
}
#else
double amx() { return 0; }
#endif

}  // namespace

int main() {
  char line[256];
  while (std::fgets(line, sizeof(line), stdin)) {
    double result = 0;
    if (std::strncmp(line, "read ", 5) == 0) {
      result = read(std::atoll(line + 5));
    } else if (std::strncmp(line, "vnni", 4) == 0) {
      result = vnni();
    } else if (std::strncmp(line, "amx", 3) == 0) {
      result = amx();
    }
    std::printf("%.3f\n", result);
    std::fflush(stdout);
  }
}
