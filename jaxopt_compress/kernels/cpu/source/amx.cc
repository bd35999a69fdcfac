// AMX: sixteen rows and 64 entries times 64 entries and sixteen columns at once.
//
// A panel lies as two tile registers side by side want it, so int8 weights are
// loaded as they are; narrower ones are spread out first.

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cpuid.h>

#include <cstring>

#include "job.h"

namespace jaxopt_compress {
namespace {

#include "rows.h"
#include "lanes512.h"
#include "panel.h"
#include "sparse.h"

constexpr int kTileRows = 16;
constexpr int kStride = kColumns * kSteps;  // of a row of a panel
// Codes of weights that a task keeps at hand: about half of a second-level cache.
constexpr int64_t kKept = 1 << 19;

// Shapes of the tile registers: 0 to 3 sums, 4 and 5 codes of x, 6 and 7 of w.
struct alignas(64) Shapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  explicit Shapes(int chunk) {
    for (int i = 0; i < 8; ++i) {
      bytes[i] = i == 4 || i == 5 ? chunk : 64;
      rows[i] = i < 6 ? kTileRows : chunk / kSteps;
    }
  }
};

// The largest chunk of entries that groups are made of.
int chunk_of(const Job& job) {
  if (job.groups == 1) return 64;
  const int64_t width = job.group_steps() * kSteps;
  return width % 64 == 0 ? 64 : width % 32 == 0 ? 32 : width % 16 == 0 ? 16 : 0;
}

Tiles tiles(const Job& job) {
  const int64_t all = job.rows * job.digits;
  const int chunk = chunk_of(job);
  // Few rows are limited by memory, where the vector path does as well.
  if (job.in_floats() || chunk == 0 || all <= 6) return {0, 0, 0, 0, 0};
  const int size = all <= kTileRows / job.digits * job.digits ? 16 : 32;
  const int used = size / job.digits * job.digits;
  const int64_t each = used / job.digits;
  const int64_t chunks = (job.steps() * kSteps + chunk - 1) / chunk;
  return {size, used, chunk, (job.rows + each - 1) / each, chunks};
}

bool spreads_out(const Job& job) { return job.sparse || job.format.bits < 8; }

int64_t spread_bytes(const Job& job) { return job.steps() * kStride; }

int64_t panels_kept(const Job& job) {
  const int64_t most = kKept / (spread_bytes(job) + 1);
  return most < 1 ? 1 : most;
}

int64_t workspace(const Job& job, const Tiles&) {
  const int64_t kept = panels_kept(job);
  int64_t bytes = kept * (scales_workspace(job) + 64) + 128;
  if (spreads_out(job)) bytes += kept * spread_bytes(job);
  const int64_t rows = rows_workspace(job);
  return (bytes > rows ? bytes : rows) + 64;
}

struct Sums {
  alignas(64) int32_t x[32][kColumns];
};

// sums = codes of x times `chunks` chunks of a panel.
void product(const Tiles& t, const int8_t* x, const uint8_t* w, int64_t chunks,
             int64_t bytes, Sums& sums) {
  const int64_t step = t.chunk / kSteps * kStride;
  const bool two = t.size == 32;
  alignas(64) uint8_t last[kTileRows * kStride];
  _tile_zero(0);
  _tile_zero(1);
  if (two) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < chunks; ++i) {
    const uint8_t* b = w + i * step;
    if ((i + 1) * step > bytes) {
      // The matrix ends here; codes of x are zero from here on.
      std::memset(last, 0, sizeof(last));
      std::memcpy(last, b, bytes - i * step);
      b = last;
      __asm__ volatile("" ::: "memory");
    }
    const int8_t* a = x + i * t.size * t.chunk;
    _tile_loadd(6, b, kStride);
    _tile_loadd(7, b + 64, kStride);
    _tile_loadd(4, a, t.chunk);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    if (two) {
      _tile_loadd(5, a + kTileRows * t.chunk, t.chunk);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, sums.x[0], kColumns * 4);
  _tile_stored(1, sums.x[0] + 16, kColumns * 4);
  if (two) {
    _tile_stored(2, sums.x[16], kColumns * 4);
    _tile_stored(3, sums.x[16] + 16, kColumns * 4);
  }
  __asm__ volatile("" ::: "memory");
}

void one(const Job& job, const Tiles& t, const Item& item, int64_t panel,
         int64_t tile, const uint8_t* w, const PanelScales& scales) {
  const int8_t* x = item.codes + tile * t.codes();
  const int32_t* of_x = item.sums + tile * job.groups * t.size;
  const int rows = static_cast<int>(rows_in(job, t, tile));
  const int64_t row = tile * (t.used / job.digits);
  // Sums of one group are scaled while the next is multiplied.
  Sums sums[2];
  alignas(64) float y[32][kColumns];
  const auto add = [&](int64_t g) {
    add_group(sums[g % 2].x, job.digits, job.format.offset, rows,
              of_x + g * t.size, scales.scale + g * kColumns,
              scales.zero ? scales.zero + g * kColumns : nullptr, g == 0, y);
  };
  for (int64_t g = 0; g < job.groups; ++g) {
    const int64_t bytes = job.units_of(g) * job.format.rows / kSteps * kStride;
    const int64_t step = t.chunk / kSteps * kStride;
    const int64_t chunks = (bytes + step - 1) / step;
    product(t, x, w, chunks, bytes, sums[g % 2]);
    x += chunks * t.size * t.chunk;
    w += bytes;
    if (job.act == Act::kCodes) break;
    if (g > 0) add(g - 1);
  }
  if (job.act == Act::kCodes) {
    for (int r = 0; r < rows; ++r) {
      store_sums(job, item, panel, row + r, of_x[r], sums[0].x[r]);
    }
    return;
  }
  add(job.groups - 1);
  for (int r = 0; r < rows; ++r) {
    store_row(job, item, panel, row + r, item.scales[tile * t.size + r],
              item.zeros[tile * t.size + r], y[r]);
  }
}

void multiply(const Job& job, const Tiles& t, const Item& item, int64_t panel,
              int64_t panels, int64_t first, int64_t last, char* workspace) {
  const Shapes shapes(t.chunk);
  _tile_loadconfig(&shapes);
  const int64_t most = panels_kept(job);
  const int64_t each = (scales_workspace(job) + 63) / 64 * 64;
  for (int64_t p = panel; p < panel + panels; p += most) {
    const int64_t kept = panel + panels - p < most ? panel + panels - p : most;
    char* room = workspace;
    uint8_t* wide = reinterpret_cast<uint8_t*>(workspace + most * each);
    if (spreads_out(job)) {
      for (int64_t i = 0; i < kept; ++i) {
        uint8_t* to = wide + i * spread_bytes(job);
        if (job.sparse) {
          Run run = run_of(job, item, p + i);
          spread_codes<V>(run, 0, job.units, to);
        } else {
          spread_any(job, item.w + (p + i) * job.units * job.format.bytes,
                     job.units, to);
        }
      }
    }
    for (int64_t i = 0; i < kept; ++i) {
      scales_of(job, item, p + i, reinterpret_cast<float*>(room + i * each));
    }
    for (int64_t tile = first; tile < last; ++tile) {
      for (int64_t i = 0; i < kept; ++i) {
        float* scale = reinterpret_cast<float*>(room + i * each);
        float* zero = job.zero_type == Type::kNone
                          ? nullptr
                          : scale + job.groups * kColumns;
        const uint8_t* w =
            spreads_out(job)
                ? wide + i * spread_bytes(job)
                : item.w + (p + i) * job.units * job.format.bytes;
        one(job, t, item, p + i, tile, w, {scale, zero});
      }
    }
  }
  _tile_release();
}

bool here() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tile = d >> 24 & 1, int8 = d >> 25 & 1;
  if (!tile || !int8 || !__builtin_cpu_supports("avx512vnni") ||
      !__builtin_cpu_supports("avx512vbmi2")) {
    return false;
  }
  // The kernel saves the registers only of those who ask.
  constexpr int kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

const Path kAmx = {"amx", here, tiles, workspace, prepare, multiply};

}  // namespace jaxopt_compress

#endif
