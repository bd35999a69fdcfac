// Convolutions that keep channels apart, sixteen channels at a time.
//
// Four rows of an image are laid side by side, byte by byte, so that four taps of
// sixteen channels are one four-way product:
//
//   quad[q][x][c][i] = code(y + (4 q + i) dilation, x, c) + 128
//
// Weights lie likewise, as layout.py has it: [quads, taps, columns, 4] signed. With x
// the codes of a window and b the code of zero, which padding has,
//
//   sum (w - z) (x - b) = sum w (x + 128) - (128 + b) sum w - z sum (x - b).
//
// Included inside the unnamed namespace of a path, after panel.h.

constexpr int kDepthBytes = kDepthColumns * kSteps;  // of a position of a quad

// Pixels that are multiplied by a register of a weight.
constexpr int kDepthPixels = V::kMost < 6 ? 6 : 8;

// Lays sixteen channels of some rows side by side; for taps that are missing the weight
// is zero. Up to fifteen bytes after a row are read.
template <int kRows>
void lay_quad(const int8_t* const* rows, int64_t positions, int64_t pitch,
              uint8_t* out) {
  for (int64_t x = 0; x < positions; ++x, out += kDepthBytes) {
    const uint8_t* from[kRows];
    for (int i = 0; i < kRows; ++i) {
      from[i] = reinterpret_cast<const uint8_t*>(rows[i]) + x * pitch;
    }
    uint32_t four[kDepthColumns];
    for (int c = 0; c < kDepthColumns; ++c) {
      uint32_t bytes = from[0][c];
      if constexpr (kRows > 1) bytes |= from[1][c] << 8;
      if constexpr (kRows > 2) bytes |= from[2][c] << 16;
      if constexpr (kRows > 3) bytes |= static_cast<uint32_t>(from[3][c]) << 24;
      four[c] = bytes ^ 0x80808080u;
    }
    std::memcpy(out, four, kDepthBytes);
  }
}

// The same of channels that several columns have in common: `channel` of each column.
inline void lay_repeated(const int8_t* const* rows, int64_t count, int64_t positions,
                         int64_t pitch, const int64_t* channel, uint8_t* out) {
  for (int64_t x = 0; x < positions; ++x) {
    for (int c = 0; c < kDepthColumns; ++c) {
      for (int i = 0; i < kSteps; ++i) {
        const int8_t code = i < count ? rows[i][x * pitch + channel[c]] : int8_t{0};
        *out++ = static_cast<uint8_t>(code ^ -128);
      }
    }
  }
}

// Sixteen columns of a weight, and the quads of the pixels that they meet.
struct Depth {
  const uint8_t* quads;  // of the first tap of the first pixel
  const uint8_t* w;
  int64_t planes, count, taps, taps_y;
  // Bytes of quads from a plane, a count, a tap, a pixel to the next.
  int64_t plane, rows, columns, step;
  int64_t w_tap;  // bytes of a tap of the weight
  bool codes, zeros;
  // Of the columns; `start` is what sums begin with.
  alignas(64) float scale[kColumns], zero[kColumns], bias[kColumns];
  alignas(64) int32_t start[kDepthColumns];
  int32_t start_window;
  float a, floor;
  float* y;
  int64_t stride;  // from a result to the next
  int n;           // columns that there are
};

// acc += products of a register of columns with the windows of some pixels; or, with
// ones for the rows that are taps, the sums of windows.
template <int kRows, bool kOnes>
inline void depth_sums(const Depth& d, const uint8_t* quads, const uint8_t* w,
                       typename V::I start, typename V::I (&acc)[kRows]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) acc[r] = start;
  for (int64_t q = 0; q < d.count; ++q) {
    int8_t ones[kSteps];
    for (int i = 0; i < kSteps; ++i) ones[i] = q * kSteps + i < d.taps_y;
    const uint8_t* x = quads + q * d.rows;
    for (int64_t k = 0; k < d.taps; ++k, x += d.columns, w += d.w_tap) {
      typename V::I b;
      if constexpr (kOnes) {
        b = V::four(ones);
      } else {
        b = V::load(w);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        acc[r] = V::dot(acc[r], V::load(x + r * d.step), b);
      }
    }
  }
}

// Results of some pixels side by side.
template <int kRows>
void depth_pixels(const Depth& d) {
  using I = typename V::I;
  using F = typename V::F;
  for (int c = 0; c < d.n; c += V::kLanes) {
    const uint8_t *quads = d.quads + c * kSteps, *w = d.w + c * kSteps;
    const int n = d.n - c;
    const I start = V::load(d.start + c);
    I acc[kRows];
    depth_sums<kRows, false>(d, quads, w, start, acc);
    if (d.codes) {
      for (int r = 0; r < kRows; ++r) {
        float some[V::kLanes];
        V::save(some, acc[r]);
        const int64_t bytes = 4 * (n < V::kLanes ? n : V::kLanes);
        std::memcpy(d.y + r * d.stride + c, some, bytes);
      }
      continue;
    }
    F v[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) v[r] = V::floats(acc[r]);
    for (int64_t p = 1; p < d.planes; ++p) {
      depth_sums<kRows, false>(d, quads + p * d.plane, w, start, acc);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        v[r] = V::fma(v[r], V::all(256.0f), V::floats(acc[r]));
      }
    }
    if (d.zeros) {
      F total[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) total[r] = V::all(0.0f);
      for (int64_t p = 0; p < d.planes; ++p) {
        depth_sums<kRows, true>(d, quads + p * d.plane, w,
                                V::integers(d.start_window), acc);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          total[r] = V::fma(total[r], V::all(256.0f), V::floats(acc[r]));
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        v[r] = V::sub(v[r], V::mul(V::get(d.zero + c), total[r]));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F scaled = V::mul(v[r], V::get(d.scale + c));
      const F y = V::fma(scaled, V::all(d.a), V::get(d.bias + c));
      V::put(d.y + r * d.stride + c, V::at_least(V::all(d.floor), y), n);
    }
  }
}

using DepthPixels = void (*)(const Depth&);

template <int kMost = kDepthPixels>
DepthPixels depth_pixels_of(int64_t rows) {
  if constexpr (kMost == 0) {
    return nullptr;
  } else {
    return rows == kMost ? &depth_pixels<kMost> : depth_pixels_of<kMost - 1>(rows);
  }
}

// What is of sixteen columns from one on: numbers of columns, and what sums begin with,
// -(128 + b) times the sum of each column of the weight.
inline void begin_columns(const Job& job, const Item& item, int64_t first,
                          int32_t zero, Depth* d) {
  const int64_t left = job.n - first;
  d->n = static_cast<int>(left < kDepthColumns ? left : kDepthColumns);
  d->w = item.w + first * kSteps;
  if (!d->codes) to_floats(job.scale_type, item.scale, first, d->n, d->scale);
  if (d->zeros) to_floats(job.zero_type, item.zero, first, d->n, d->zero);
  std::memset(d->bias, 0, sizeof(d->bias));
  if (item.bias != nullptr) std::memcpy(d->bias, item.bias + first, d->n * 4);
  const typename V::I ones = V::integers(0x01010101);
  for (int c = 0; c < kDepthColumns; c += V::kLanes) {
    typename V::I sum = V::integers(0);
    for (int64_t k = 0; k < d->count * d->taps; ++k) {
      sum = V::dot(sum, ones, V::load(d->w + k * d->w_tap + c * kSteps));
    }
    V::save(d->start + c, sum);
  }
  for (int c = 0; c < kDepthColumns; ++c) {
    const uint32_t sum = static_cast<uint32_t>(d->start[c]);
    d->start[c] =
        static_cast<int32_t>(0u - static_cast<uint32_t>(128 + zero) * sum);
  }
}

// Lays the rows side by side that a row of results sees, of sixteen columns.
inline void lay_rows(const Scene& s, const int8_t* codes, int64_t oy, int64_t first,
                     int64_t n, const Depth& d, uint8_t* quads) {
  const int64_t row = s.wide() * s.channels, repeats = n / s.channels;
  int64_t channel[kDepthColumns];
  for (int64_t c = 0; c < kDepthColumns; ++c) {
    channel[c] = (first + c < n ? first + c : n - 1) / repeats;
  }
  for (int64_t p = 0; p < d.planes * d.count; ++p, quads += d.rows) {
    const int8_t* plane = codes + p / d.count * s.tall() * row;
    const int64_t tap = p % d.count * kSteps;
    const int64_t count = d.taps_y - tap < kSteps ? d.taps_y - tap : kSteps;
    const int8_t* rows[kSteps];
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = plane + (oy * s.y.stride + (tap + i) * s.y.dilation) * row;
      if (repeats == 1) rows[i] += first;
    }
    if (repeats > 1) {
      lay_repeated(rows, count, s.wide(), s.channels, channel, quads);
    } else if (count == 4) {
      lay_quad<4>(rows, s.wide(), s.channels, quads);
    } else if (count == 3) {
      lay_quad<3>(rows, s.wide(), s.channels, quads);
    } else if (count == 2) {
      lay_quad<2>(rows, s.wide(), s.channels, quads);
    } else {
      lay_quad<1>(rows, s.wide(), s.channels, quads);
    }
  }
}

void depthwise(const Job& job, const Scene& s, const Stack& stack,
               const Item& item, int64_t image, int64_t first, int64_t last,
               int64_t column, int64_t end, char* workspace) {
  const int64_t n = job.n, out_x = s.x.out();
  Depth d;
  d.planes = s.planes;
  d.count = (s.y.taps + kSteps - 1) / kSteps;
  d.taps = s.x.taps;
  d.taps_y = s.y.taps;
  d.rows = s.wide() * kDepthBytes;
  d.plane = d.count * d.rows;
  d.columns = s.x.dilation * kDepthBytes;
  d.step = s.x.stride * kDepthBytes;
  d.w_tap = depth_columns(n) * kSteps;
  d.codes = job.act == Act::kCodes;
  d.zeros = item.zero != nullptr;
  d.a = stack.scales[image];
  d.floor = job.finishes() ? -__builtin_inff() : job.floor;
  const int32_t of_zero = static_cast<int32_t>(stack.zeros[image]);
  d.start_window = -(128 + of_zero) * static_cast<int32_t>(s.taps());

  uint8_t* quads = reinterpret_cast<uint8_t*>(workspace);
  float* room = reinterpret_cast<float*>(workspace + d.planes * d.plane);
  const int8_t* codes = reinterpret_cast<const int8_t*>(stack.codes) +
                        image * s.planes * s.positions() * s.channels;
  // Results of 32 bits are stored where they belong.
  const bool straight = job.out_type != Type::kBf16;
  d.stride = straight ? n : kDepthColumns;
  const int64_t runs = (out_x + kDepthPixels - 1) / kDepthPixels;
  const int64_t even = (out_x + runs - 1) / runs;
  for (int64_t c = column; c < end; c += kDepthColumns) {
    begin_columns(job, item, c, of_zero, &d);
    for (int64_t oy = first; oy < last; ++oy) {
      lay_rows(s, codes, oy, c, n, d, quads);
      const int64_t at = (image * s.y.out() + oy) * out_x * n + c;
      float* y = straight ? static_cast<float*>(item.out) + at : room;
      d.quads = quads;
      d.y = y;
      for (int64_t x = 0; x < out_x; x += even) {
        const int64_t pixels = out_x - x < even ? out_x - x : even;
        depth_pixels_of(pixels)(d);
        d.quads += pixels * d.step;
        d.y += pixels * d.stride;
      }
      if (job.finishes()) {
        finish(job, item, at, static_cast<int>(out_x), d.n, d.stride, y);
      }
      for (int64_t x = 0; !straight && x < out_x; ++x) {
        uint16_t* out = static_cast<uint16_t*>(item.out) + at + x * n;
        for (int i = 0; i < d.n; ++i) out[i] = to_bf16(y[x * kDepthColumns + i]);
      }
    }
  }
}
