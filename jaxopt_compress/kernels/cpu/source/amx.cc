// AMX: sixteen rows and 64 entries times 64 entries and sixteen columns at once.
//
// A panel lies in the order of two tile registers side by side, so int8 weights are
// loaded as they are; narrower ones are expanded first.

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cpuid.h>

#include <cstring>

#include "heads.h"
#include "job.h"

namespace jaxopt_compress {
namespace {

#include "lanes512.h"
#include "rows.h"
#include "panel.h"
#include "sparse.h"
#include "pixels.h"
#include "gather.h"
#include "slide.h"
#include "depthwise.h"
#include "attention.h"
#include "decode.h"

constexpr int kTileRows = 16;
constexpr int kStride = kColumns * kSteps;  // of a row of a panel
// A block is so many rows of so many panels, multiplied by so many tiles: the codes of
// one tile stay in the first-level cache, those of the panels and what the products
// add up to in the second.
constexpr int64_t kBlockRows = 768, kBlockPanels = 8, kBlockTiles = 16;
// Blocks are longer for up to so many rows of codes: see few_tiles.
constexpr int64_t kFewRows = 64, kLongRows = 4096;

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

bool spreads_out(const Job& job) { return job.sparse || job.format.bits < 8; }

Tiles tiles(const Job& job) {
  const int64_t all = job.rows * job.digits;
  const int chunk = chunk_of(job);
  // Few rows are limited by memory, where the vector path does as well.
  int64_t few = 12;
  if (job.sparse) {
    few = few_sparse(job);
  } else if (spreads_out(job)) {
    few = 6;
  }
  if (job.in_floats() || chunk == 0 || all <= few) return {0, 0, 0, 0, 0};
  const int size = all <= kTileRows / job.digits * job.digits ? 16 : 32;
  const int used = size / job.digits * job.digits;
  const int64_t each = used / job.digits;
  const int64_t chunks = (job.steps() * kSteps + chunk - 1) / chunk;
  return {size, used, chunk, (job.rows + each - 1) / each, chunks};
}

// A run of groups, or of chunks of the only group, that is multiplied at once.
struct Block {
  int64_t group, groups;  // the first group, and how many
  int64_t unit, units;    // of the panel
};

// Whether tiles are so few that storing and reloading their sums, block by block, costs
// more than letting codes leave the first-level cache.
bool few_tiles(const Job& job) {
  return !spreads_out(job) && job.rows * job.digits <= kFewRows;
}

// Units of a block if there is one group: blocks of about the same size, in chunks.
int64_t block_units(const Job& job) {
  const int64_t rows = job.units * job.format.rows;
  const int64_t most = few_tiles(job) ? kLongRows : kBlockRows;
  const int64_t blocks = (rows + most - 1) / most;
  const int64_t even = (rows + blocks - 1) / blocks;
  return (even + 63) / 64 * 64 / job.format.rows;
}

int64_t blocks_of(const Job& job) {
  const int64_t each = job.group_units() * job.format.rows;
  if (job.groups == 1) {
    const int64_t most = block_units(job);
    return (job.units + most - 1) / most;
  }
  const int64_t groups = each < kBlockRows ? kBlockRows / each : 1;
  return (job.groups + groups - 1) / groups;
}

Block block_of(const Job& job, int64_t i) {
  if (job.groups == 1) {
    const int64_t most = block_units(job), left = job.units - i * most;
    return {0, 1, i * most, left < most ? left : most};
  }
  const int64_t each = job.group_units() * job.format.rows;
  const int64_t most = each < kBlockRows ? kBlockRows / each : 1;
  const int64_t left = job.groups - i * most, groups = left < most ? left : most;
  const int64_t unit = i * most * job.group_units();
  const int64_t end = job.units - unit, units = groups * job.group_units();
  return {i * most, groups, unit, units < end ? units : end};
}

int64_t block_bytes(const Job& job) {
  const Block block = block_of(job, 0);
  return block.units * job.format.rows / kSteps * kStride;
}

// What a tile and a panel give: sums if there is one group, else results.
union alignas(64) Results {
  int32_t sums[32][kColumns];
  float y[32][kColumns];
};

int64_t workspace(const Job& job, const Tiles& t) {
  const int64_t tiles = t.count < kBlockTiles ? t.count : kBlockTiles;
  int64_t bytes = kBlockPanels * (scales_workspace(job) + 64) + 128;
  bytes += tiles * kBlockPanels * static_cast<int64_t>(sizeof(Results));
  if (spreads_out(job)) bytes += kBlockPanels * block_bytes(job);
  const int64_t rows = rows_workspace(job, t);
  return (bytes > rows ? bytes : rows) + 64;
}

// sums (+)= codes of x times `chunks` chunks of a panel.
void product(const Tiles& t, const int8_t* x, const uint8_t* w, int64_t chunks,
             int64_t bytes, bool more, int32_t (*sums)[kColumns]) {
  const int64_t chunk = t.chunk, step = chunk / kSteps * kStride;
  const int64_t of_x = t.size * chunk;
  const bool two = t.size == 32;
  alignas(64) uint8_t last[kTileRows * kStride];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (more) {
    _tile_loadd(0, sums[0], kColumns * 4);
    _tile_loadd(1, sums[0] + 16, kColumns * 4);
    if (two) {
      _tile_loadd(2, sums[16], kColumns * 4);
      _tile_loadd(3, sums[16] + 16, kColumns * 4);
    }
  }
  const auto once = [&](const int8_t* a, const uint8_t* b) {
    _tile_loadd(4, a, chunk);
    _tile_loadd(6, b, kStride);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, b + 64, kStride);
    _tile_dpbsud(1, 4, 7);
    if (two) {
      _tile_loadd(5, a + kTileRows * chunk, chunk);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  };
  const int64_t whole = bytes / step;
  for (int64_t i = 0; i < whole; ++i) once(x + i * of_x, w + i * step);
  if (whole < chunks) {
    // The matrix ends here; codes of x are zero from here on.
    std::memset(last, 0, sizeof(last));
    std::memcpy(last, w + whole * step, bytes - whole * step);
    __asm__ volatile("" ::: "memory");
    once(x + whole * of_x, last);
  }
  _tile_stored(0, sums[0], kColumns * 4);
  _tile_stored(1, sums[0] + 16, kColumns * 4);
  if (two) {
    _tile_stored(2, sums[16], kColumns * 4);
    _tile_stored(3, sums[16] + 16, kColumns * 4);
  }
  __asm__ volatile("" ::: "memory");
}

// One block of a panel times a tile; `w` is where the block begins.
void one(const Job& job, const Tiles& t, const Item& item, int64_t tile,
         const Block& block, const uint8_t* w, const PanelScales& scales,
         Results& results) {
  const int64_t unit_rows = job.format.rows;
  const int64_t step = t.chunk / kSteps * kStride;
  const int8_t* x =
      item.codes + tile * t.codes() + block.unit * unit_rows * t.size;
  if (job.groups == 1) {
    const int64_t bytes = block.units * unit_rows / kSteps * kStride;
    product(t, x, w, (bytes + step - 1) / step, bytes, block.unit > 0,
            results.sums);
    return;
  }
  const int32_t* of_x = item.sums + tile * job.groups * t.size;
  const int rows = static_cast<int>(rows_in(job, t, tile));
  // Sums of one group are scaled while the next is multiplied.
  alignas(64) int32_t sums[2][32][kColumns];
  const auto add = [&](int64_t g) {
    add_group(sums[g % 2], job.digits, job.format.offset, rows,
              of_x + g * t.size, scales.scale + g * kColumns,
              scales.zero ? scales.zero + g * kColumns : nullptr, g == 0,
              results.y);
  };
  const int64_t end = block.group + block.groups;
  for (int64_t g = block.group; g < end; ++g) {
    const int64_t bytes = job.units_of(g) * unit_rows / kSteps * kStride;
    const int64_t chunks = (bytes + step - 1) / step;
    product(t, x, w, chunks, bytes, false, sums[g % 2]);
    x += chunks * t.size * t.chunk;
    w += bytes;
    if (g > block.group) add(g - 1);
  }
  add(end - 1);
}

// Stores the results of a tile and a panel.
void store(const Job& job, const Tiles& t, const Item& item, int64_t panel,
           int64_t tile, const PanelScales& scales, Results& results) {
  const int rows = static_cast<int>(rows_in(job, t, tile));
  const int64_t row = tile * (t.used / job.digits);
  const int32_t* of_x = item.sums + tile * job.groups * t.size;
  if (job.act == Act::kCodes) {
    for (int r = 0; r < rows; ++r) {
      store_sums(job, item, panel, row + r, of_x[r], results.sums[r]);
    }
    return;
  }
  const float* scale = item.scales + tile * t.size;
  const float* zero = item.zeros + tile * t.size;
  if (at_once(job)) {
    const int n = columns_of(job, panel);
    float* out = static_cast<float*>(item.out) + row * job.stride + panel * kColumns;
    for (int r = 0; r < rows; ++r) {
      const int32_t* sums = results.sums[r];
      put_row(job, scales, n, scale[r], zero[r], of_x[r], out + r * job.stride,
              [sums](int c) { return V::load(sums + c * V::kLanes); });
    }
    if (job.finishes()) finish_rows(job, item, panel, row, rows);
    return;
  }
  alignas(64) float y[32][kColumns];
  float(*from)[kColumns] = results.y;
  if (job.groups == 1) {
    add_group(results.sums, job.digits, job.format.offset, rows, of_x,
              scales.scale, scales.zero, true, y);
    from = y;
  }
  for (int r = 0; r < rows; ++r) {
    store_row(job, item, panel, scales, row + r, scale[r], zero[r], from[r]);
  }
}

void multiply(const Job& job, const Tiles& t, const Item& item, int64_t panel,
              int64_t panels, int64_t first, int64_t last, char* workspace) {
  const Shapes shapes(t.chunk);
  _tile_loadconfig(&shapes);
  const bool spread = spreads_out(job);
  const int64_t of_scales = (scales_workspace(job) + 63) / 64 * 64;
  const int64_t of_block = block_bytes(job);
  uint8_t* wide =
      reinterpret_cast<uint8_t*>(workspace + kBlockPanels * of_scales);
  Results* results = reinterpret_cast<Results*>(
      wide + (spread ? kBlockPanels * of_block : 0));
  PanelScales scales[kBlockPanels];
  for (int64_t p = panel; p < panel + panels; p += kBlockPanels) {
    const int64_t left = panel + panels - p;
    const int64_t kept = left < kBlockPanels ? left : kBlockPanels;
    for (int64_t i = 0; i < kept; ++i) {
      scales[i] = scales_of(job, item, p + i,
                            reinterpret_cast<float*>(workspace + i * of_scales));
    }
    for (int64_t begin = first; begin < last; begin += kBlockTiles) {
      const int64_t end = begin + kBlockTiles < last ? begin + kBlockTiles : last;
      // Blocks of a run are found one after the other.
      Run runs[kBlockPanels];
      for (int64_t i = 0; job.sparse && i < kept; ++i) {
        runs[i] = run_of(job, item, p + i);
      }
      const int64_t blocks = blocks_of(job);
      for (int64_t b = 0; b < blocks; ++b) {
        const Block block = block_of(job, b);
        const uint8_t* w[kBlockPanels];
        for (int64_t i = 0; i < kept; ++i) {
          uint8_t* to = wide + i * of_block;
          w[i] = to;
          if (job.sparse) {
            spread_codes<V>(runs[i], block.unit, block.unit + block.units, to);
            continue;
          }
          const uint8_t* from =
              item.w + ((p + i) * job.units + block.unit) * job.format.bytes;
          if (spread) {
            spread_any(job, from, block.units, to);
          } else {
            w[i] = from;
          }
        }
        for (int64_t tile = begin; tile < end; ++tile) {
          for (int64_t i = 0; i < kept; ++i) {
            // Sums that are not needed again always take the same place.
            const int64_t place = blocks > 1 ? (tile - begin) * kBlockPanels + i : 0;
            Results& of_tile = results[place];
            one(job, t, item, tile, block, w[i], scales[i], of_tile);
            if (b + 1 < blocks) continue;
            store(job, t, item, p + i, tile, scales[i], of_tile);
          }
        }
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
  // The operating system saves tile registers only for processes that ask.
  constexpr int kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

const Path kAmx = {"amx", here, tiles, workspace, prepare,
    multiply, prepare_image, gather, slide, depthwise, nullptr,
    attention_workspace, attend, find, merge};

}  // namespace jaxopt_compress

#endif
