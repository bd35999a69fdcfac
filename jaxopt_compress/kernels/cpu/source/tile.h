// A tile of rows times a panel of columns, for the instructions of `V`.
//
// Included inside the unnamed namespace of a path, after `V`; see panel.h.

#include "panel.h"
#include "sparse.h"

static_assert(V::kMost >= 3, "a row of x is up to three of codes");

// For tiles of up to so many rows narrow codes are expanded in registers; for more they
// are expanded once, into memory.
constexpr int kFew = V::kMost < 4 ? V::kMost : 4;
// Rows and panels of float weights that are expanded at once, and tiles that are then
// multiplied by them: as many as a second-level cache holds.
constexpr int64_t kFloatRows = 128, kFloatPanels = 4, kFloatTiles = 48;

// Adding to a sum takes several cycles. With few rows each column has several sums, to
// which successive units are added in turn, so that no addition waits for the last.
template <int kBits, int kRows>
constexpr int kSums = kBits == 8 && kRows * kRegs <= 4 ? 8 / (kRows * kRegs) : 1;

// How far ahead of its use a weight is asked for: what one row takes least time with.
template <int kBits>
constexpr int kAheadBytes = kBits == 8 ? 2048 : 8192;

// acc[s][r][c] += codes of rows times `units` units.
template <int kBits, bool kTable, int kRows, int kEach = kSums<kBits, kRows>>
inline void product(const uint8_t* w, int64_t units, const int8_t* x,
                    typename V::I table, typename V::I (&acc)[kEach][kRows][kRegs]) {
  constexpr int kUnit = steps_of(kBits);
  for (int64_t u = 0; u < units; u += kEach) {
#pragma GCC unroll 8
    for (int s = 0; s < kEach; ++s) {
      if (s > 0 && u + s == units) return;
      V::prefetch(w + kAheadBytes<kBits>);
#pragma GCC unroll 4
      for (int j = 0; j < kUnit; ++j) {
        typename V::I b[kRegs];
#pragma GCC unroll 8
        for (int c = 0; c < kRegs; ++c) b[c] = spread<kBits, kTable>(w, j, c, table);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const typename V::I a = V::four(x + 4 * r);
#pragma GCC unroll 8
          for (int c = 0; c < kRegs; ++c) acc[s][r][c] = V::dot(acc[s][r][c], b[c], a);
        }
        x += 4 * kRows;
      }
      w += bytes_of(kBits);
    }
  }
}

template <int kBits, bool kTable, int kRows>
void few_rows(const Job& job, const Tiles& t, const Item& item, int64_t panel,
              int64_t tile, const uint8_t* w, int bytes,
              const PanelScales& scales) {
  using I = typename V::I;
  I table = V::none();
  if constexpr (kTable) table = V::table(job.format.table);
  const int8_t* codes = item.codes + tile * t.codes();
  const int32_t* of_x = item.sums + tile * job.groups * t.size;
  const int rows = static_cast<int>(rows_in(job, t, tile));
  const int64_t row = tile * (t.used / job.digits);
  alignas(64) float y[kRows][kColumns];
  alignas(64) int32_t sums[kRows][kColumns];
  for (int64_t g = 0; g < job.groups; ++g) {
    const int64_t units = job.units_of(g);
    constexpr int kEach = kSums<kBits, kRows>;
    I all[kEach][kRows][kRegs];
#pragma GCC unroll 8
    for (int s = 0; s < kEach; ++s) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const I start = V::integers(0);
#pragma GCC unroll 8
        for (int c = 0; c < kRegs; ++c) all[s][r][c] = start;
      }
    }
    // Codes that were expanded already have eight bits.
    const int64_t spread_units = units * job.format.rows / kSteps;
    product<kBits, kTable, kRows>(w, kBits == 8 ? spread_units : units, codes,
                                  table, all);
    I(&acc)[kRows][kRegs] = all[0];
#pragma GCC unroll 8
    for (int s = 1; s < kEach; ++s) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < kRegs; ++c) acc[r][c] = V::sum(acc[r][c], all[s][r][c]);
      }
    }
    w += units * bytes;
    codes += spread_units * kSteps * kRows;
    if (at_once(job)) {
      const int n = columns_of(job, panel);
      float* out = static_cast<float*>(item.out) + row * job.stride + panel * kColumns;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        put_row(job, scales, n, item.scales[tile * t.size + r],
                item.zeros[tile * t.size + r], of_x[r], out + r * job.stride,
                [&acc, r](int c) { return acc[r][c]; });
      }
      if (job.finishes()) finish_rows(job, item, panel, row, rows);
      return;
    }
    if (job.groups > 1 && job.digits == 1 && scales.zero == nullptr) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < kRegs; ++c) {
          const int at = c * V::kLanes;
          const typename V::F sum = g ? V::get(y[r] + at) : V::all(0.0f);
          V::put(y[r] + at, added(job, scales, g, at, acc[r][c],
                                  of_x[g * kRows + r], sum));
        }
      }
      continue;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < kRegs; ++c) V::save(sums[r] + c * V::kLanes, acc[r][c]);
    }
    if (job.act == Act::kCodes) {
      for (int r = 0; r < rows; ++r) {
        store_sums(job, item, panel, row + r, of_x[r], sums[r]);
      }
      return;
    }
    add_group(sums, job.digits, job.format.offset, rows, of_x + g * kRows,
                     scales.scale + g * kColumns,
                     scales.zero ? scales.zero + g * kColumns : nullptr, g == 0,
                     y);
  }
  for (int r = 0; r < rows; ++r) {
    store_row(job, item, panel, scales, row + r, item.scales[tile * t.size + r],
              item.zeros[tile * t.size + r], y[r]);
  }
}

using Few = void (*)(const Job&, const Tiles&, const Item&, int64_t, int64_t,
                     const uint8_t*, int, const PanelScales&);

template <int kBits, bool kTable, int kMost>
Few few_of(int size) {
  if constexpr (kMost == 0) {
    return nullptr;
  } else {
    return size == kMost ? &few_rows<kBits, kTable, kMost>
                         : few_of<kBits, kTable, kMost - 1>(size);
  }
}

inline Few few_for(const Job& job, int size, bool spread_out) {
  if (job.format.bits == 8 || spread_out) return few_of<8, false, V::kMost>(size);
  switch (job.format.bits) {
    case 4:
      return job.format.table ? few_of<4, true, kFew>(size)
                              : few_of<4, false, kFew>(size);
    case 3:
      return few_of<3, false, kFew>(size);
    default:
      return few_of<2, false, kFew>(size);
  }
}

// ------------------------------------------------------- weights that are floats

// Rows `from` to `from + n` of a panel as floats, times their scales: [n][32].
inline void spread_floats(const Job& job, const uint8_t* w,
                          const PanelScales& scales, int64_t g, int64_t unit,
                          int64_t units, float* out) {
  const typename V::Numbers numbers = V::numbers(job.format.numbers);
  const float* scale = scales.scale + g * kColumns;
  const float* zero = scales.zero ? scales.zero + g * kColumns : nullptr;
  for (int64_t u = unit; u < unit + units; ++u) {
    const uint8_t* from = w + u * job.format.bytes;
    for (int c = 0; c < kRegs; ++c) {
      const typename V::I raw = V::load(from + c * kRegBytes);
      const typename V::F s = V::get(scale + c * V::kLanes);
      const typename V::F z =
          zero ? V::get(zero + c * V::kLanes) : V::all(0.0f);
#pragma GCC unroll 8
      for (int row = 0; row < 8; ++row) {
        // Byte i of a lane has row i in its low half, row 4 + i in the high one.
        const int shift = 8 * (row % 4) + 4 * (row / 4);
        const typename V::F v = V::number(numbers, raw, shift);
        V::put(out + row * kColumns + c * V::kLanes,
               V::mul(V::sub(v, z), s));
      }
    }
    out += 8 * kColumns;
  }
}

template <int kRows>
void float_rows(const float* x, int64_t stride, const float* w, int64_t n,
                float (*y)[kColumns]) {
  using F = typename V::F;
  F acc[kRows][kRegs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kRegs; ++c) acc[r][c] = V::get(y[r] + c * V::kLanes);
  }
  for (int64_t i = 0; i < n; ++i) {
    F b[kRegs];
#pragma GCC unroll 8
    for (int c = 0; c < kRegs; ++c) b[c] = V::get(w + i * kColumns + c * V::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F a = V::all(x[r * stride + i]);
#pragma GCC unroll 8
      for (int c = 0; c < kRegs; ++c) acc[r][c] = V::fma(a, b[c], acc[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kRegs; ++c) V::put(y[r] + c * V::kLanes, acc[r][c]);
  }
}

using FloatRows = void (*)(const float*, int64_t, const float*, int64_t,
                           float (*)[kColumns]);

template <int kMost>
FloatRows float_rows_of(int rows) {
  if constexpr (kMost == 0) {
    return nullptr;
  } else {
    return rows == kMost ? &float_rows<kMost> : float_rows_of<kMost - 1>(rows);
  }
}

// Multiplies some panels by tiles whose rows are kept as floats, which lie where codes
// would. `room` holds kFloatRows rows of each panel, and then the results.
inline void multiply_floats(const Job& job, const Tiles& t, const Item& item,
                            int64_t panel, int panels, int64_t first,
                            int64_t last, const PanelScales* scales,
                            float* room) {
  Run runs[kFloatPanels] = {};
  for (int p = 0; job.sparse && p < panels; ++p) {
    runs[p] = run_of(job, item, panel + p);
  }
  const int64_t of_panel = kFloatRows * kColumns, of_tile = t.size * kColumns;
  float* results = room + kFloatPanels * of_panel;  // [tiles][panels][size][32]
  const int64_t tiles = last - first;
  std::memset(results, 0, sizeof(float) * tiles * panels * of_tile);
  const int64_t most = kFloatRows / job.format.rows;
  for (int64_t g = 0; g < job.groups; ++g) {
    const int64_t begin = g * job.group_units(), end = begin + job.units_of(g);
    for (int64_t u = begin; u < end; u += most) {
      const int64_t units = end - u < most ? end - u : most;
      for (int p = 0; p < panels; ++p) {
        float* wide = room + p * of_panel;
        if (job.sparse) {
          spread_rows_any(job, runs[p], u, u + units, wide);
        } else {
          const uint8_t* w =
              item.w + (panel + p) * job.units * job.format.bytes;
          spread_floats(job, w, scales[p], g, u, units, wide);
        }
      }
      // The entries of x for these units: the last unit of a group may be short.
      const int64_t into = (u - begin) * job.format.rows;
      const int64_t at = g * job.group + into;
      int64_t n = units * job.format.rows;
      const int64_t of_group = job.groups > 1 ? job.group - into : n;
      if (n > of_group) n = of_group;
      if (n > job.k - at) n = job.k - at;
      for (int64_t tile = first; tile < last; ++tile) {
        const float* x =
            reinterpret_cast<const float*>(item.codes + tile * t.codes()) + at;
        const int rows = static_cast<int>(rows_in(job, t, tile));
        const FloatRows multiply = float_rows_of<V::kMost>(rows);
        float* y = results + (tile - first) * panels * of_tile;
        for (int p = 0; p < panels; ++p, y += of_tile) {
          multiply(x, float_stride(job), room + p * of_panel, n,
                   reinterpret_cast<float(*)[kColumns]>(y));
        }
      }
    }
  }
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t rows = rows_in(job, t, tile);
    for (int p = 0; p < panels; ++p) {
      float* y = results + ((tile - first) * panels + p) * of_tile;
      for (int64_t r = 0; r < rows; ++r) {
        store_row(job, item, panel + p, scales[p], tile * t.used + r, 1.0f, 0.0f,
                  y + r * kColumns);
      }
    }
  }
}

// ---------------------------------------------------------------------- a path

Tiles tiles(const Job& job) {
  int size = V::kMost;
  int used = size / job.digits * job.digits;
  const int64_t all = job.rows * job.digits;
  if (all < used) {
    size = used = static_cast<int>(all);
  } else {
    // Tiles are of about the same size: 15 rows are 8 and 7, not 14 and 1.
    const int64_t count = (all + used - 1) / used;
    const int64_t even = (job.rows + count - 1) / count * job.digits;
    used = size = static_cast<int>(even);
  }
  Tiles t = {size, used, kSteps, 0, job.steps()};
  if (job.in_floats()) t = {size, used, 4, 0, float_stride(job)};
  const int64_t each = used / job.digits;
  t.count = each > 0 ? (job.rows + each - 1) / each : 0;
  return t;
}

// Whether panels are expanded into memory first.
bool spreads_out(const Job& job, const Tiles& t) {
  return job.sparse ? t.size > few_sparse(job) || !V::kExpandsNarrow
                    : job.format.bits < 8 && t.size > kFew;
}

int64_t workspace(const Job& job, const Tiles& t) {
  int64_t bytes = scales_workspace(job) + 128;
  if (job.in_floats()) {
    const int64_t tiles = t.count < kFloatTiles ? t.count : kFloatTiles;
    bytes += kFloatRows * kColumns * 4 + tiles * t.size * kColumns * 4;
    bytes *= kFloatPanels;
  } else if (spreads_out(job, t)) {
    bytes += job.steps() * kColumns * kSteps;
  }
  const int64_t rows = rows_workspace(job, t);
  return (bytes > rows ? bytes : rows) + 64;
}

void prepare_rows(const Job& job, const Tiles& t, const Item& item,
                  int64_t tile, char* workspace) {
  if (!job.in_floats()) return prepare(job, t, item, tile, workspace);
  // Rows stay floats, where their codes would be.
  const int64_t rows = rows_in(job, t, tile);
  float& scale = item.scales[tile * t.size];  // not finite if a row is not
  scale = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    float* out =
        reinterpret_cast<float*>(item.codes + tile * t.codes()) +
        r * float_stride(job);
    const float* x = row_of(job, item, tile * t.used + r, out);
    if (x != out) std::memcpy(out, x, job.k * 4);
    for (int64_t i = job.k; i < float_stride(job); ++i) out[i] = 0.0f;
    if (job.skips && finite(scale)) scale = largest(out, job.k);
  }
}

void multiply(const Job& job, const Tiles& t, const Item& item, int64_t panel,
              int64_t panels, int64_t first, int64_t last, char* workspace) {
  float* room = reinterpret_cast<float*>(workspace);
  const bool spread_out = spreads_out(job, t);
  const SparseFew in_registers =
      job.sparse ? sparse_few_for(job, t, item, first, last) : nullptr;
  if (job.in_floats() && in_registers == nullptr) {
    const int64_t of_scales = (scales_workspace(job) + 63) / 64 * 16;
    for (int64_t p = panel; p < panel + panels; p += kFloatPanels) {
      const int64_t left = panel + panels - p;
      const int some = static_cast<int>(left < kFloatPanels ? left : kFloatPanels);
      PanelScales scales[kFloatPanels];
      for (int i = 0; i < some; ++i) {
        scales[i] = scales_of(job, item, p + i, room + i * of_scales);
      }
      for (int64_t tile = first; tile < last; tile += kFloatTiles) {
        const int64_t end = tile + kFloatTiles < last ? tile + kFloatTiles : last;
        multiply_floats(job, t, item, p, some, tile, end, scales,
                        room + kFloatPanels * of_scales);
      }
    }
    return;
  }
  for (int64_t p = panel; p < panel + panels; ++p) {
    const PanelScales scales = scales_of(job, item, p, room);
    char* rest = workspace + (scales_workspace(job) + 63) / 64 * 64;
    if (in_registers != nullptr) {
      const Run run = run_of(job, item, p);
      for (int64_t tile = first; tile < last; ++tile) {
        in_registers(job, t, item, p, tile, run, scales);
      }
      continue;
    }
    const uint8_t* w = item.w;
    int bytes = job.format.bytes;
    if (!job.sparse) w += p * job.units * bytes;
    if (spread_out) {
      uint8_t* wide = reinterpret_cast<uint8_t*>(rest);
      if (job.sparse) {
        Run run = run_of(job, item, p);
        spread_codes<V>(run, 0, job.units, wide);
      } else {
        spread_any(job, w, job.units, wide);
      }
      w = wide;
      bytes = job.format.rows / kSteps * kColumns * kSteps;
    }
    const Few few = few_for(job, t.size, spread_out);
    for (int64_t tile = first; tile < last; ++tile) {
      few(job, t, item, p, tile, w, bytes, scales);
    }
  }
}
