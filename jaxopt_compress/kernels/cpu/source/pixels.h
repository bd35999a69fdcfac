// Images to codes, and windows of them to tiles of rows. Plain loops, which each
// instruction path compiles for itself.
//
// Included inside the unnamed namespace of a path, after panel.h.

// Sums of each four bytes.
inline void add_fours(const int8_t* p, int64_t fours, int32_t* out) {
  const typename V::I ones = V::integers(0x01010101);
  int64_t i = 0;
  for (; i + V::kLanes <= fours; i += V::kLanes) {
    V::save(out + i, V::dot(V::integers(0), ones, V::load(p + kSteps * i)));
  }
  for (; i < fours; ++i) {
    const int8_t* four = p + kSteps * i;
    out[i] = four[0] + four[1] + four[2] + four[3];
  }
}

// Sums of each `n` bytes.
inline void add_up(const int8_t* p, int64_t count, int64_t n, int32_t* out) {
  constexpr int64_t kMost = 1024;
  int32_t fours[kMost];
  const int64_t each = n / kSteps;
  if (n % kSteps != 0 || each > kMost) {
    for (int64_t i = 0; i < count; ++i) {
      int32_t sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += p[i * n + j];
      out[i] = sum;
    }
    return;
  }
  const int64_t most = kMost / each;
  for (int64_t i = 0; i < count; i += most) {
    const int64_t some = count - i < most ? count - i : most;
    add_fours(p + i * n, some * each, fours);
    int64_t left = each;
    for (; left % 2 == 0; left /= 2) {
      for (int64_t j = 0; j < some * left / 2; ++j) {
        fours[j] = fours[2 * j] + fours[2 * j + 1];
      }
    }
    for (int64_t j = 0; j < some; ++j) {
      int32_t sum = 0;
      for (int64_t l = 0; l < left; ++l) sum += fours[j * left + l];
      out[i + j] = sum;
    }
  }
}

// Sums of windows from those of their cells.
inline void add_windows(const Scene& s, const int32_t* cells, int32_t* out) {
  const int64_t n = s.features, row = s.x.out() * n;
  for (int64_t y = 0; y < s.y.out(); ++y, out += row) {
    std::memset(out, 0, row * 4);
    for (int64_t tap = 0; tap < s.taps(); ++tap) {
      const int64_t at = y * s.y.stride + tap / s.x.taps * s.y.dilation;
      const int32_t* from =
          cells + (at * s.wide() + tap % s.x.taps * s.x.dilation) * n;
      if (s.x.stride == 1) {
        for (int64_t i = 0; i < row; ++i) out[i] += from[i];
        continue;
      }
      for (int64_t x = 0; x < s.x.out(); ++x) {
        for (int64_t f = 0; f < n; ++f) {
          out[x * n + f] += from[x * s.x.stride * n + f];
        }
      }
    }
  }
}

// Where row `y` of an image begins in a plane.
inline int64_t row_begins(const Scene& s, int64_t y) {
  const int64_t position = (s.y.low + y * s.y.spread) * s.wide() + s.x.low;
  return position * s.channels * s.entry;
}

// Writes a row of an image, each entry where it belongs.
inline void spread_row(const Scene& s, const char* row, char* out) {
  const int64_t each = s.channels * s.entry;
  if (s.x.spread == 1) {
    std::memcpy(out, row, s.x.size * each);
    return;
  }
  for (int64_t x = 0; x < s.x.size; ++x) {
    std::memcpy(out + x * s.x.spread * each, row + x * each, each);
  }
}

// Makes the codes of one image. `job.k` is the length of a row of the image.
void prepare_image(const Job& job, const Scene& s, const Stack& stack,
                   int64_t image, char* workspace) {
  const int64_t n = job.k, height = n > 0 ? s.y.size : 0;
  const int64_t first = image * height;
  float* room = reinterpret_cast<float*>(workspace);
  int32_t* of_cells = reinterpret_cast<int32_t*>(room + n + 64);
  const int64_t cells = s.positions() * s.cells();
  int8_t* made = reinterpret_cast<int8_t*>(of_cells + (s.of_windows ? cells : 0));
  Range range = {1.0f, 0.0f, false};
  if (job.act != Act::kCodes && !job.in_floats()) {
    Extent extent;
    for (int64_t y = 0; y < height; ++y) {
      extend(job, floats_of(job, stack.x, first + y, room), n, extent);
    }
    Item given = {};
    given.act_scale = stack.act_scale;
    given.act_zero = stack.act_zero;
    range = range_of(job, given, extent);
  }
  stack.scales[image] = range.bad ? __builtin_nanf("") : range.scale;
  stack.zeros[image] = range.zero;

  const int64_t plane = s.positions() * s.channels * s.entry;
  char* codes = stack.codes + image * s.planes * plane;
  if (!s.y.plain() || !s.x.plain()) {
    // An entry of zero is, as a float and as a digit, bytes of zero.
    std::memset(codes, static_cast<int>(range.zero) & 255, s.planes * plane);
  }
  for (int64_t y = 0; y < height; ++y) {
    char* out = codes + row_begins(s, y);
    if (job.act == Act::kCodes) {
      spread_row(s, static_cast<const char*>(stack.x) + (first + y) * n, out);
      continue;
    }
    const float* x = floats_of(job, stack.x, first + y, room);
    if (job.in_floats()) {
      spread_row(s, reinterpret_cast<const char*>(x), out);
      continue;
    }
    // Straight to where they belong, or by way of a row.
    const bool together = s.x.spread == 1;
    int8_t* digits[3] = {nullptr, nullptr, nullptr};
    for (int64_t d = 0; d < s.planes; ++d) {
      digits[d] = together ? reinterpret_cast<int8_t*>(out + d * plane)
                           : made + d * (n + 64);
    }
    codes_of(job, range, x, n, digits);
    for (int64_t d = 0; d < s.planes && !together; ++d) {
      spread_row(s, reinterpret_cast<const char*>(digits[d]), out + d * plane);
    }
  }
  if (s.cell == 0) return;
  for (int64_t d = 0; d < s.planes; ++d) {
    int32_t* sums = stack.sums + (image * s.planes + d) * s.plane_sums();
    add_up(reinterpret_cast<const int8_t*>(codes + d * plane), cells, s.cell,
           s.of_windows ? of_cells : sums);
    if (s.of_windows) add_windows(s, of_cells, sums);
  }
}

// Copies `kBytes` bytes, or `bytes` up to twice as many, for each of some rows.
template <int kBytes>
inline void copy_runs(const char* const* from, int64_t at, int count,
                      int64_t bytes, char* to, int64_t stride) {
  const int64_t rest = bytes - kBytes;
  for (int r = 0; r < count; ++r) {
    const char* p = from[r] + at;
    char* out = to + r * stride;
    std::memcpy(out, p, kBytes);
    // The end overlaps the beginning: no loop, and nothing past the run.
    if (rest > 0) std::memcpy(out + rest, p + rest, kBytes);
  }
}

inline void copy_any(const char* const* from, int64_t at, int count,
                     int64_t bytes, char* to, int64_t stride) {
  if (bytes > 128) {
    for (int r = 0; r < count; ++r) {
      std::memcpy(to + r * stride, from[r] + at, bytes);
    }
  } else if (bytes >= 64) {
    copy_runs<64>(from, at, count, bytes, to, stride);
  } else if (bytes >= 32) {
    copy_runs<32>(from, at, count, bytes, to, stride);
  } else if (bytes >= 16) {
    copy_runs<16>(from, at, count, bytes, to, stride);
  } else if (bytes >= 8) {
    copy_runs<8>(from, at, count, bytes, to, stride);
  } else if (bytes >= 4) {
    copy_runs<4>(from, at, count, bytes, to, stride);
  } else if (bytes >= 2) {
    copy_runs<2>(from, at, count, bytes, to, stride);
  } else {
    copy_runs<1>(from, at, count, bytes, to, stride);
  }
}

// Entries of two vectors of four.
#if defined(__clang__)
#define JAXOPT_COMPRESS_MIXED(a, b, i, j, k, l) \
  __builtin_shufflevector(a, b, i, j, k, l)
#else
#define JAXOPT_COMPRESS_MIXED(a, b, i, j, k, l) \
  __builtin_shuffle(a, b, Four{i, j, k, l})
#endif

// Sixteen bytes of each of four rows, four bytes of each side by side: steps of a tile
// whose chunks are of four.
inline void turn(const char* const* from, int64_t at, char* to, int64_t step) {
  typedef int32_t Four __attribute__((vector_size(16)));
  Four a, b, c, d;
  std::memcpy(&a, from[0] + at, 16);
  std::memcpy(&b, from[1] + at, 16);
  std::memcpy(&c, from[2] + at, 16);
  std::memcpy(&d, from[3] + at, 16);
  const Four ab0 = JAXOPT_COMPRESS_MIXED(a, b, 0, 4, 1, 5);
  const Four ab1 = JAXOPT_COMPRESS_MIXED(a, b, 2, 6, 3, 7);
  const Four cd0 = JAXOPT_COMPRESS_MIXED(c, d, 0, 4, 1, 5);
  const Four cd1 = JAXOPT_COMPRESS_MIXED(c, d, 2, 6, 3, 7);
  const Four r0 = JAXOPT_COMPRESS_MIXED(ab0, cd0, 0, 1, 4, 5);
  const Four r1 = JAXOPT_COMPRESS_MIXED(ab0, cd0, 2, 3, 6, 7);
  const Four r2 = JAXOPT_COMPRESS_MIXED(ab1, cd1, 0, 1, 4, 5);
  const Four r3 = JAXOPT_COMPRESS_MIXED(ab1, cd1, 2, 3, 6, 7);
  std::memcpy(to, &r0, 16);
  std::memcpy(to + step, &r1, 16);
  std::memcpy(to + 2 * step, &r2, 16);
  std::memcpy(to + 3 * step, &r3, 16);
}

// Makes a tile of rows from windows. Where groups end before their units do, its
// codes are zeros already.
//
// `pixel` is the first, of those of all images; `features` the group of features.
void gather(const Job& job, const Tiles& t, const Scene& s, const Stack& stack,
            int64_t features, int64_t pixel, const Item& item, int64_t tile) {
  const char* from[kMostSlots];
  const int32_t* sums_from[kMostSlots];
  const int rows = static_cast<int>(rows_in(job, t, tile));
  const int slots = rows * job.digits;
  const int64_t each = s.channels * s.entry, plane = s.positions();
  const int64_t out_x = s.x.out(), pixels = s.pixels();
  int64_t image = pixel / pixels;
  int64_t oy = pixel % pixels / out_x, ox = pixel % out_x;
  const char* codes = stack.codes + features * s.own_channels() * s.entry;
  const int32_t* of_codes = stack.sums;
  if (s.cell > 0) of_codes += features * s.own_channels() / s.cell;
  float* scales = item.scales + tile * t.size;
  float* zeros = item.zeros + tile * t.size;
  for (int r = 0; r < rows; ++r) {
    const int64_t in_plane = oy * s.y.stride * s.wide() + ox * s.x.stride;
    for (int d = 0; d < job.digits; ++d) {
      const int64_t p = image * s.planes + d, slot = r * job.digits + d;
      from[slot] = codes + (p * plane + in_plane) * each;
      sums_from[slot] =
          of_codes + p * s.plane_sums() +
          (s.of_windows ? (oy * out_x + ox) * s.features : in_plane * s.cells());
    }
    scales[r] = stack.scales[image];
    zeros[r] = stack.zeros[image];
    if (++ox == out_x) {
      ox = 0;
      if (++oy == s.y.out()) {
        oy = 0;
        ++image;
      }
    }
  }

  char* to = reinterpret_cast<char*>(item.codes) + tile * t.codes();
  if (job.in_floats()) {
    for (const Piece& piece : s.pieces) {
      copy_any(from, piece.from, slots, piece.bytes, to + piece.to,
               float_stride(job) * 4);
    }
    return;
  }
  for (const Piece& piece : s.pieces) {
    int64_t i = 0;
    const int64_t fours = piece.bytes / kSteps * kSteps;
    if (t.chunk == kSteps && piece.to % kSteps == 0 && fours >= 16 && slots >= 4) {
      // The last of four rows, and of sixteen bytes, overlap those before them.
      for (; i < fours; i += 16) {
        const int64_t at = i < fours - 16 ? i : fours - 16;
        char* out = to + (piece.to + at) * t.size;
        for (int r = 0; r < slots; r += 4) {
          const int first = r < slots - 4 ? r : slots - 4;
          turn(from + first, piece.from + at, out + first * kSteps,
               t.size * kSteps);
        }
      }
      i = fours;
    }
    while (i < piece.bytes) {
      const int64_t at = piece.to + i, inside = at % t.chunk;
      const int64_t left = piece.bytes - i, most = t.chunk - inside;
      const int64_t run = left < most ? left : most;
      copy_any(from, piece.from + i, slots, run,
               to + (at - inside) * t.size + inside, t.chunk);
      i += run;
    }
  }

  int32_t* sums = item.sums + tile * job.groups * t.size;
  if (s.cell > 0) {
    for (const int64_t part : s.parts) {
      for (int r = 0; r < slots; ++r) sums[r] = sums_from[r][part];
      // Rows past the last are multiplied, too.
      for (int r = slots; r < t.size; ++r) sums[r] = 0;
      sums += t.size;
    }
    return;
  }
  std::memset(sums, 0, sizeof(int32_t) * job.groups * t.size);
  const int64_t width = job.group_steps() * kSteps;
  for (int64_t g = 0; g < job.groups; ++g) {
    const int64_t end = g + 1 < job.groups ? (g + 1) * width : job.steps() * kSteps;
    for (int64_t at = g * width; at < end; at += kSteps) {
      const int64_t inside = at % t.chunk;
      const char* four = to + (at - inside) * t.size + inside;
      for (int r = 0; r < slots; ++r) {
        for (int i = 0; i < kSteps; ++i) {
          sums[g * t.size + r] += static_cast<int8_t>(four[r * t.chunk + i]);
        }
      }
    }
  }
}
