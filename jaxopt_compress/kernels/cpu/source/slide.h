// Multiplies windows where they lie in the codes of images, without copying them:
//
//   sums[x, n] = sum over pieces of w[k, n] codes[x * step + k's place]
//
// for some windows side by side. Plain loops over registers of `V`, after panel.h.
//
// Included inside the unnamed namespace of a path.

// A panel that is half empty needs half the accumulators, so it takes twice the rows.
template <int kCols>
constexpr int most_windows() {
  constexpr int most = V::kMost * kRegs / kCols;
  return most < 14 ? most : 14;
}

// What the windows of a row of pixels have in common.
struct Line {
  const int8_t* codes;  // of the first window, first digit
  const int32_t* sums;
  int64_t step, sum_step;    // from a window to the next
  int64_t plane, sum_plane;  // from a digit to the next
  float scale, zero;         // of the image
  int64_t row;               // of the results
};

// acc += the codes of windows times those of a panel, over the pieces of a group.
template <int kCols, int kRows>
inline void add_pieces(const Piece* piece, const Piece* end, const int8_t* codes,
                       int64_t step, const uint8_t* w,
                       typename V::I (&acc)[kRows][kCols]) {
  for (; piece < end; ++piece) {
    const int8_t* x = codes + piece->from;
    const int8_t* const last = x + piece->bytes;
    const uint8_t* from = w + piece->to * kColumns;
    for (; x < last; x += kSteps, from += kColumns * kSteps) {
      typename V::I b[kCols];
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c) b[c] = V::load(from + c * kRegBytes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename V::I a = V::four(x + r * step);
#pragma GCC unroll 8
        for (int c = 0; c < kCols; ++c) acc[r][c] = V::dot(acc[r][c], b[c], a);
      }
    }
  }
}

template <int kCols, int kRows>
inline void clear(typename V::I (&acc)[kRows][kCols]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const typename V::I start = V::integers(0);
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) acc[r][c] = start;
  }
}

// Float results with one group of rows and one digit: what `add_group` and `store_row`
// compute, without leaving registers.
template <int kCols, int kRows>
void windows_at_once(const Job& job, const Scene& s, const Item& item,
                     int64_t panel, const uint8_t* w, const PanelScales& scales,
                     const Line& line) {
  using F = typename V::F;
  typename V::I acc[kRows][kCols];
  clear<kCols, kRows>(acc);
  add_pieces<kCols, kRows>(s.pieces.data(), s.pieces.data() + s.pieces.size(),
                           line.codes, line.step, w, acc);
  const int n = columns_of(job, panel);
  const F a = V::all(line.scale), minus_b = V::all(-line.zero);
  float* out =
      static_cast<float*>(item.out) + line.row * job.stride + panel * kColumns;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const int32_t of_x = line.sums[r * line.sum_step];
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      const int at = c * V::kLanes;
      if (at >= n) break;
      const F v = number(job, scales, at, acc[r][c], of_x);
      V::put(out + r * job.stride + at, result(scales, at, a, minus_b, v), n - at);
    }
  }
  if (job.finishes()) finish_rows(job, item, panel, line.row, kRows);
}

// Results of any kind.
template <int kCols, int kRows>
void windows(const Job& job, const Scene& s, const Item& item, int64_t panel,
             const uint8_t* w, const PanelScales& scales, const Line& line) {
  alignas(64) int32_t sums[kRows * 3][kColumns] = {};
  alignas(64) float y[kRows][kColumns];
  int32_t of_x[kRows * 3];
  const bool adds =
      job.digits == 1 && scales.zero == nullptr && job.act != Act::kCodes;
  for (int64_t g = 0; g < job.groups; ++g) {
    const Piece* pieces = s.pieces.data();
    const Piece* first = pieces + (g > 0 ? s.ends[g - 1] : 0);
    for (int d = 0; d < job.digits; ++d) {
      typename V::I acc[kRows][kCols];
      clear<kCols, kRows>(acc);
      add_pieces<kCols, kRows>(first, pieces + s.ends[g],
                               line.codes + d * line.plane, line.step, w, acc);
      if (adds) {
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const int32_t x = line.sums[r * line.sum_step + s.parts[g]];
#pragma GCC unroll 8
          for (int c = 0; c < kCols; ++c) {
            const int at = c * V::kLanes;
            const typename V::F sum = g ? V::get(y[r] + at) : V::all(0.0f);
            V::put(y[r] + at, added(job, scales, g, at, acc[r][c], x, sum));
          }
        }
        break;
      }
      for (int r = 0; r < kRows; ++r) {
        const int at = r * job.digits + d;
        of_x[at] = line.sums[d * line.sum_plane + r * line.sum_step + s.parts[g]];
        for (int c = 0; c < kCols; ++c) V::save(sums[at] + c * V::kLanes, acc[r][c]);
      }
    }
    if (adds) continue;
    if (job.act == Act::kCodes) {
      for (int r = 0; r < kRows; ++r) {
        store_sums(job, item, panel, line.row + r, of_x[r], sums[r]);
      }
      return;
    }
    add_group(sums, job.digits, job.format.offset, kRows, of_x,
              scales.scale + g * kColumns,
              scales.zero ? scales.zero + g * kColumns : nullptr, g == 0, y);
  }
  for (int r = 0; r < kRows; ++r) {
    store_row(job, item, panel, scales, line.row + r, line.scale, line.zero, y[r]);
  }
}

using Windows = void (*)(const Job&, const Scene&, const Item&, int64_t,
                         const uint8_t*, const PanelScales&, const Line&);

template <int kCols, int kMost = most_windows<kCols>()>
Windows windows_of(int rows, bool straight) {
  if constexpr (kMost == 0) {
    return nullptr;
  } else {
    if (rows < kMost) return windows_of<kCols, kMost - 1>(rows, straight);
    return straight ? &windows_at_once<kCols, kMost> : &windows<kCols, kMost>;
  }
}

// Rewrites a panel so that the channels of each tap begin a step of their own.
inline void begin_steps(const Scene& s, const uint8_t* w, uint8_t* out) {
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    for (int64_t i = 0; i < s.pitch; i += kSteps) {
      const int64_t k = tap * s.channels + i, past = k % kSteps;
      const int64_t left = s.channels - i < kSteps ? s.channels - i : kSteps;
      const uint8_t* from = w + (k - past) * kColumns;
      const uint32_t mask = left == kSteps ? ~0u : (1u << 8 * left) - 1;
      const bool more = past + left > kSteps;
      for (int c = 0; c < kColumns; ++c, out += kSteps) {
        uint32_t a, b = 0;
        std::memcpy(&a, from + c * kSteps, kSteps);
        if (more) std::memcpy(&b, from + (kColumns + c) * kSteps, kSteps);
        const uint64_t both = (static_cast<uint64_t>(b) << 32 | a) >> 8 * past;
        a = static_cast<uint32_t>(both) & mask;
        std::memcpy(out, &a, kSteps);
      }
    }
  }
}

void slide(const Job& job, const Scene& s, const Stack& stack, const Item& item,
           int64_t features, int64_t panel, int64_t panels, int64_t first,
           int64_t last, char* workspace) {
  const int64_t out_y = s.y.out(), out_x = s.x.out();
  const int64_t plane = s.positions() * s.pitch;
  const int64_t own = features * s.own_pitch();
  const int64_t own_cell = own / s.cell;
  const bool straight = at_once(job);
  uint8_t* wide = reinterpret_cast<uint8_t*>(workspace) +
                  (scales_workspace(job) + 63) / 64 * 64;
  for (int64_t p = panel; p < panel + panels; ++p) {
    const PanelScales scales =
        scales_of(job, item, p, reinterpret_cast<float*>(workspace));
    const uint8_t* w = item.w + p * job.units * job.format.bytes;
    if (job.format.bits < 8) {
      spread_any(job, w, job.units, wide);
      w = wide;
    }
    if (s.pitch != s.channels) {
      uint8_t* apart = wide + job.steps() * kColumns * kSteps;
      begin_steps(s, w, apart);
      w = apart;
    }
    constexpr int kHalf = kRegs / 2;
    const bool half = columns_of(job, p) <= kHalf * V::kLanes;
    const int most = half ? most_windows<kHalf>() : most_windows<kRegs>();
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i / s.cuts, image = row / out_y, oy = row % out_y;
      const int64_t begin = i % s.cuts * out_x / s.cuts;
      const int64_t end = (i % s.cuts + 1) * out_x / s.cuts;
      // Runs are of about the same size: 15 windows are 8 and 7, not 14 and 1.
      const int64_t count = (end - begin + most - 1) / most;
      const int64_t even = (end - begin + count - 1) / count;
      const int64_t at = oy * s.y.stride * s.wide() + begin * s.x.stride;
      const int64_t of_sums =
          s.of_windows ? (oy * out_x + begin) * s.features + features
                       : at * s.cells() + own_cell;
      Line line;
      line.plane = plane;
      line.sum_plane = s.plane_sums();
      line.codes = reinterpret_cast<const int8_t*>(stack.codes) +
                   image * s.planes * plane + at * s.pitch + own;
      line.sums = stack.sums + image * s.planes * line.sum_plane + of_sums;
      line.step = s.x.stride * s.pitch;
      line.sum_step = s.of_windows ? s.features : s.x.stride * s.cells();
      line.scale = stack.scales[image];
      line.zero = stack.zeros[image];
      line.row = row * out_x + begin;
      for (int64_t x = begin; x < end; x += even) {
        const int rows = static_cast<int>(end - x < even ? end - x : even);
        const Windows f = half ? windows_of<kHalf>(rows, straight)
                               : windows_of<kRegs>(rows, straight);
        f(job, s, item, p, w, scales, line);
        line.codes += rows * line.step;
        line.sums += rows * line.sum_step;
        line.row += rows;
      }
    }
  }
}
