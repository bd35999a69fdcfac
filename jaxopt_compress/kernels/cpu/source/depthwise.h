// Convolutions that keep channels apart.
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

// Lays rows side by side, each channel as many times as it has outputs.
inline void interleave(const int8_t* const* rows, int64_t entries,
                       int64_t repeats, uint8_t* out) {
  if (repeats == 1) {
    const int8_t *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
    for (int64_t j = 0; j < entries; ++j) {
      out[4 * j] = static_cast<uint8_t>(a[j] ^ -128);
      out[4 * j + 1] = static_cast<uint8_t>(b[j] ^ -128);
      out[4 * j + 2] = static_cast<uint8_t>(c[j] ^ -128);
      out[4 * j + 3] = static_cast<uint8_t>(d[j] ^ -128);
    }
    return;
  }
  for (int64_t j = 0; j < entries; ++j) {
    for (int64_t m = 0; m < repeats; ++m) {
      for (int i = 0; i < 4; ++i) {
        *out++ = static_cast<uint8_t>(rows[i][j] ^ -128);
      }
    }
  }
}

// Where a window of quads and a weight meet.
struct Depth {
  const uint8_t* quads;  // of the first tap
  const uint8_t* w;
  int64_t count, taps;
  int64_t rows, columns;  // bytes of quads from one count, one tap to the next
  int64_t w_tap;          // bytes of a tap of the weight
};

// `acc` plus the products of one register of channels.
inline typename V::I depth_sum(const Depth& d, typename V::I acc) {
  for (int64_t q = 0; q < d.count; ++q) {
    const uint8_t* x = d.quads + q * d.rows;
    const uint8_t* w = d.w + q * d.taps * d.w_tap;
    for (int64_t k = 0; k < d.taps; ++k) {
      acc = V::dot(acc, V::load(x + k * d.columns), V::load(w + k * d.w_tap));
    }
  }
  return acc;
}

// `acc` plus the codes of a window, of one register of channels: products with ones, for
// those rows of the last quad that are taps.
inline typename V::I window_sum(const Depth& d, int64_t taps_y,
                                typename V::I acc) {
  for (int64_t q = 0; q < d.count; ++q) {
    const int64_t left = taps_y - q * kSteps;
    int8_t ones[kSteps];
    for (int i = 0; i < kSteps; ++i) ones[i] = i < left;
    const uint8_t* x = d.quads + q * d.rows;
    for (int64_t k = 0; k < d.taps; ++k) {
      acc = V::dot(acc, V::load(x + k * d.columns), V::four(ones));
    }
  }
  return acc;
}

// What sums begin with: -(128 + b) times the sum of each column of the weight.
inline void depth_starts(const Depth& d, int64_t n, int32_t zero, int32_t* out) {
  const int8_t* w = reinterpret_cast<const int8_t*>(d.w);
  for (int64_t c = 0; c < depth_columns(n); ++c) {
    uint32_t sum = 0;
    for (int64_t k = 0; k < d.count * d.taps; ++k) {
      for (int i = 0; i < kSteps; ++i) sum += w[k * d.w_tap + c * kSteps + i];
    }
    out[c] = static_cast<int32_t>(0u - static_cast<uint32_t>(128 + zero) * sum);
  }
}

void depthwise(const Job& job, const Scene& s, const Stack& stack,
               const Item& item, int64_t image, int64_t first, int64_t last,
               char* workspace) {
  using I = typename V::I;
  using F = typename V::F;
  const int64_t n = job.n, repeats = n / s.channels;
  const int64_t row = s.wide() * s.channels, plane = s.tall() * row;
  Depth d;
  d.count = (s.y.taps + kSteps - 1) / kSteps;
  d.taps = s.x.taps;
  d.columns = s.x.dilation * n * kSteps;
  d.rows = s.wide() * n * kSteps;
  d.w_tap = depth_columns(n) * kSteps;

  const int64_t room = (n + 2 * kColumns) / kColumns * kColumns;
  float* scale = reinterpret_cast<float*>(workspace);
  float* zero = scale + room;
  float* bias = zero + room;
  float* y = bias + room;
  int32_t* start = reinterpret_cast<int32_t*>(y + room);
  uint8_t* quads = reinterpret_cast<uint8_t*>(start + room);
  const bool codes = job.act == Act::kCodes, zeros = item.zero != nullptr;
  for (int64_t c = 0; c < n; c += kColumns) {
    const int some = static_cast<int>(n - c < kColumns ? n - c : kColumns);
    if (!codes) to_floats(job.scale_type, item.scale, c, some, scale + c);
    if (zeros) to_floats(job.zero_type, item.zero, c, some, zero + c);
    if (item.bias != nullptr) {
      to_floats(Type::kF32, item.bias, c, some, bias + c);
    } else {
      std::memset(bias + c, 0, kColumns * 4);
    }
  }
  const float a = stack.scales[image];
  const int32_t of_zero = static_cast<int32_t>(stack.zeros[image]);
  d.w = item.w;
  depth_starts(d, n, of_zero, start);
  const int32_t start_window =
      -(128 + of_zero) * static_cast<int32_t>(s.taps());
  // Registers at the end of a row of quads reach past it.
  std::memset(quads + s.planes * d.count * d.rows, 0, 64);

  const int8_t* image_codes =
      reinterpret_cast<const int8_t*>(stack.codes) + image * s.planes * plane;
  const int64_t out_x = s.x.out();
  const float floor = job.finishes() ? -__builtin_inff() : job.floor;
  // Registers are stored straight to the results if those are whole registers of 32 bits.
  const bool straight = n % V::kLanes == 0 && job.out_type != Type::kBf16;
  for (int64_t oy = first; oy < last; ++oy) {
    for (int64_t p = 0; p < s.planes * d.count; ++p) {
      const int8_t* of_plane = image_codes + p / d.count * plane;
      const int8_t* rows[kSteps];
      for (int i = 0; i < kSteps; ++i) {
        // Taps past the last meet weights of zero: any row will do.
        const int64_t tap = p % d.count * kSteps + i;
        const int64_t known = tap < s.y.taps ? tap : 0;
        rows[i] = of_plane + (oy * s.y.stride + known * s.y.dilation) * row;
      }
      interleave(rows, row, repeats, quads + p * d.rows);
    }
    for (int64_t ox = 0; ox < out_x; ++ox) {
      const int64_t at = ((image * s.y.out() + oy) * out_x + ox) * n;
      const uint8_t* window = quads + ox * s.x.stride * n * kSteps;
      if (straight) y = static_cast<float*>(item.out) + at;
      for (int64_t c = 0; c < n; c += V::kLanes) {
        d.w = item.w + c * kSteps;
        d.quads = window + c * kSteps;
        const I begin = V::load(start + c);
        I acc = depth_sum(d, begin);
        if (codes) {
          V::save(y + c, acc);
          continue;
        }
        F v = V::floats(acc), total = V::all(0.0f);
        for (int64_t p = 1; p < s.planes; ++p) {
          d.quads += d.count * d.rows;
          v = V::fma(v, V::all(256.0f), V::floats(depth_sum(d, begin)));
        }
        if (zeros) {
          for (int64_t p = 0; p < s.planes; ++p) {
            d.quads = window + c * kSteps + p * d.count * d.rows;
            const I of_x = window_sum(d, s.y.taps, V::integers(start_window));
            total = V::fma(total, V::all(256.0f), V::floats(of_x));
          }
          v = V::sub(v, V::mul(V::get(zero + c), total));
        }
        v = V::mul(v, V::get(scale + c));
        v = V::fma(v, V::all(a), V::get(bias + c));
        V::put(y + c, V::at_least(V::all(floor), v));
      }
      if (job.finishes()) finish(job, item, at, static_cast<int>(n), y);
      if (job.out_type == Type::kBf16) {
        uint16_t* out = static_cast<uint16_t*>(item.out) + at;
        for (int64_t c = 0; c < n; ++c) out[c] = to_bf16(y[c]);
      } else if (!straight) {
        std::memcpy(static_cast<char*>(item.out) + at * 4, y, n * 4);
      }
    }
  }
}
