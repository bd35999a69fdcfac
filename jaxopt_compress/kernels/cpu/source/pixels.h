// Images to codes, and what those add up to. Plain loops, which each instruction path
// compiles for itself.
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
