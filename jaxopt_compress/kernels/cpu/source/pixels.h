// Makes codes of images, and sums of those. Plain loops, which each instruction path
// compiles for itself.
//
// Included inside the unnamed namespace of a path, after panel.h.

// Sums of every four bytes.
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

// The sum of some bytes.
inline int32_t total_of(const int8_t* p, int64_t n) {
  const typename V::I ones = V::integers(0x01010101);
  typename V::I sums = V::integers(0);
  const int8_t* const end = p + n;
  for (; end - p >= V::kLanes * kSteps; p += V::kLanes * kSteps) {
    sums = V::dot(sums, ones, V::load(p));
  }
  int32_t all[V::kLanes], sum = 0;
  V::save(all, sums);
  for (int32_t x : all) sum += x;
  for (; p < end; ++p) sum += *p;
  return sum;
}

// Sums of every `n` bytes.
inline void add_up(const int8_t* p, int64_t count, int64_t n, int32_t* out) {
  constexpr int64_t kMost = 1024;
  int32_t fours[kMost];
  const int64_t each = n / kSteps;
  if (n % kSteps != 0 || each > kMost) {
    for (int64_t i = 0; i < count; ++i) out[i] = total_of(p + i * n, n);
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

// to[i] is the sum of from[i + tap * step] over some taps. Returns how many of the `n`
// entries have all taps.
inline int64_t add_taps(const int32_t* from, int64_t n, int64_t taps, int64_t step,
                        int32_t* to) {
  const int64_t count = n - (taps - 1) * step;
  std::memcpy(to, from, count * 4);
  for (int64_t tap = 1; tap < taps; ++tap) {
    const int32_t* more = from + tap * step;
    for (int64_t i = 0; i < count; ++i) to[i] += more[i];
  }
  return count;
}

// Some rows of an image, or of its windows: those of a strip.
struct Strip {
  int64_t first, last;
};

inline Strip strip_of(const Scene& s, int64_t rows, int64_t strip) {
  return {rows * strip / s.strips, rows * (strip + 1) / s.strips};
}

// Sums of some rows of windows from those of their cells. Cells are added up along rows,
// then along columns, for all positions as if they were one line; the sums at positions
// where windows begin are then taken out.
inline void add_windows(const Scene& s, Strip rows, const int32_t* cells,
                        int32_t* room, int32_t* out) {
  if (rows.last == rows.first) return;
  const int64_t n = s.features, each = n * s.x.stride, line = s.wide() * n;
  const int64_t begin = rows.first * s.y.stride;
  const int64_t tall = (rows.last - 1) * s.y.stride + s.y.reach() - begin;
  int32_t* const sums = room + tall * line;
  const int64_t along =
      add_taps(cells + begin * line, tall * line, s.x.taps, s.x.dilation * n, room);
  add_taps(room, along, s.y.taps, s.y.dilation * line, sums);
  out += rows.first * s.x.out() * n;
  for (int64_t y = rows.first; y < rows.last; ++y, out += s.x.out() * n) {
    const int32_t* from = sums + (y * s.y.stride - begin) * line;
    if (n == 1) {
      for (int64_t x = 0; x < s.x.out(); ++x) out[x] = from[x * each];
      continue;
    }
    for (int64_t x = 0; x < s.x.out(); ++x) {
      std::memcpy(out + x * n, from + x * each, n * 4);
    }
  }
}

// The same of windows that are one run of bytes, which may be long: from these.
inline void add_runs(const Scene& s, Strip rows, const int8_t* codes, int32_t* out) {
  out += rows.first * s.x.out();
  for (int64_t y = rows.first; y < rows.last; ++y) {
    const int8_t* from = codes + y * s.y.stride * s.wide() * s.pitch;
    for (int64_t x = 0; x < s.x.out(); ++x, ++out, from += s.x.stride * s.pitch) {
      *out = total_of(from, s.pieces[0].bytes);
    }
  }
}

// Where row `y` of an image begins in a plane.
inline int64_t row_begins(const Scene& s, int64_t y) {
  const int64_t position = (s.y.low + y * s.y.spread) * s.wide() + s.x.low;
  return position * s.pitch * s.entry;
}

// Writes a row of an image, each entry where it belongs. Up to three codes that follow
// the row are read.
inline void spread_row(const Scene& s, const char* row, char* out) {
  const int64_t each = s.channels * s.entry, step = s.x.spread * s.pitch * s.entry;
  if (s.pitch == s.channels) {
    if (s.x.spread == 1) {
      std::memcpy(out, row, s.x.size * each);
      return;
    }
    for (int64_t x = 0; x < s.x.size; ++x) {
      std::memcpy(out + x * step, row + x * each, each);
    }
    return;
  }
  const int64_t last = s.pitch - kSteps;
  const uint32_t mask = (1u << 8 * (each - last)) - 1;
  for (int64_t x = 0; x < s.x.size; ++x, row += each, out += step) {
    uint32_t four;
    for (int64_t i = 0; i < last; i += kSteps) {
      std::memcpy(&four, row + i, kSteps);
      std::memcpy(out + i, &four, kSteps);
    }
    std::memcpy(&four, row + last, kSteps);
    four &= mask;
    std::memcpy(out + last, &four, kSteps);
  }
}

// Fills some positions of a plane with the code of a real zero.
inline void fill(const Scene& s, int zero, char* from, int64_t positions) {
  const bool all = zero == 0 || s.pitch == s.channels;
  std::memset(from, all ? zero : 0, positions * s.pitch * s.entry);
  if (all) return;
  for (int64_t i = 0; i < positions; ++i) {
    std::memset(from + i * s.pitch, zero, s.channels);
  }
}

// What the range of an image is made from, of some of its rows.
inline Extent extent_of(const Job& job, const Scene& s, const Stack& stack,
                        int64_t image, Strip rows, float* room) {
  Extent extent;
  const int64_t first = image * s.y.size + rows.first, n = job.k;
  const int64_t count = rows.last - rows.first;
  if (job.x_type == Type::kF32) {
    extend(job, floats_of(job, stack.x, first, room), count * n, extent);
    return extent;
  }
  for (int64_t y = 0; y < count; ++y) {
    extend(job, floats_of(job, stack.x, first + y, room), n, extent);
  }
  return extent;
}

// That of an image from those of its strips.
inline Extent joined(const float* extents, int64_t strips) {
  Extent all;
  for (int64_t i = 0; i < strips; ++i, extents += 3) {
    // NaN stays.
    if (all.most == all.most && !(extents[0] <= all.most)) all.most = extents[0];
    all.low = extents[1] < all.low ? extents[1] : all.low;
    all.high = extents[2] > all.high ? extents[2] : all.high;
  }
  return all;
}

// Makes the codes of some rows of an image. Of three rows of codes there is room at
// `made`, of one of floats at `room`.
inline void make_codes(const Job& job, const Scene& s, const Stack& stack,
                       int64_t image, Strip rows, const Range& range, float* room,
                       int8_t* made) {
  const int64_t n = job.k, plane = s.positions() * s.pitch * s.entry;
  char* const codes = stack.codes + image * s.planes * plane;
  for (int64_t y = rows.first; y < rows.last; ++y) {
    const int64_t row = image * s.y.size + y;
    char* out = codes + row_begins(s, y);
    if (job.act == Act::kCodes) {
      const char* x = static_cast<const char*>(stack.x) + row * n;
      if (s.pitch != s.channels) {
        std::memcpy(made, x, n);  // which may be read past its end
        x = reinterpret_cast<const char*>(made);
      }
      spread_row(s, x, out);
      continue;
    }
    const float* x = floats_of(job, stack.x, row, room);
    if (job.in_floats()) {
      spread_row(s, reinterpret_cast<const char*>(x), out);
      continue;
    }
    // Straight to where they belong if they lie together there, else through a row.
    const bool together = s.x.spread == 1 && s.pitch == s.channels;
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
}

// The positions of a plane that belong to a strip, padding included, as rows.
inline Strip filled_by(const Scene& s, Strip rows, int64_t strip) {
  return {strip == 0 ? 0 : s.y.low + rows.first * s.y.spread,
          strip + 1 == s.strips ? s.tall() : s.y.low + rows.last * s.y.spread};
}

// Makes codes of a strip of an image: `image` of job.h. `job.k` is the length of a row.
void prepare_image(const Job& job, const Scene& s, const Stack& stack, int64_t i,
                   int round, char* workspace) {
  const int64_t image = i / s.strips, strip = i % s.strips;
  const Strip rows = strip_of(s, job.k > 0 ? s.y.size : 0, strip);
  const int64_t cells = s.plane_cells(), plane = s.positions() * s.pitch * s.entry;
  float* room = reinterpret_cast<float*>(workspace);
  int32_t* of_cells = reinterpret_cast<int32_t*>(room + job.k + 64);
  int8_t* made = reinterpret_cast<int8_t*>(of_cells + (s.of_cells() ? 3 * cells : 0));
  char* codes = stack.codes + image * s.planes * plane;
  int32_t* sums = stack.sums + image * s.planes * s.plane_sums();
  if (round == 0) {
    const Extent found = extent_of(job, s, stack, image, rows, room);
    const float extent[] = {found.most, found.low, found.high};
    std::memcpy(stack.extents + 3 * i, extent, sizeof(extent));
    return;
  }
  const Strip filled = filled_by(s, rows, strip);
  if (round == 1) {
    Range range = {1.0f, 0.0f, false};
    if (job.act != Act::kCodes && !job.in_floats()) {
      const Extent extent =
          s.strips > 1 ? joined(stack.extents + 3 * s.strips * image, s.strips)
                       : extent_of(job, s, stack, image, rows, room);
      Item given = {};
      given.act_scale = stack.act_scale;
      given.act_zero = stack.act_zero;
      range = range_of(job, given, extent);
    }
    if (strip == 0) {
      stack.scales[image] = range.bad ? __builtin_nanf("") : range.scale;
      stack.zeros[image] = range.zero;
    }
    for (int64_t d = 0; d < s.planes && !(s.y.plain() && s.x.plain()); ++d) {
      // Zero is made of zero bytes, both as a float and as a digit.
      fill(s, static_cast<int>(range.zero) & 255,
           codes + d * plane + filled.first * s.wide() * s.pitch * s.entry,
           (filled.last - filled.first) * s.wide());
    }
    make_codes(job, s, stack, image, rows, range, room, made);
  }
  if (s.cell == 0) return;
  for (int64_t d = 0; d < s.planes; ++d) {
    const int8_t* of_plane = reinterpret_cast<const int8_t*>(codes + d * plane);
    int32_t* of_sums = sums + d * s.plane_sums();
    // Cells that windows of other strips see are kept for those.
    int32_t* mine = !s.of_cells() ? of_sums
                    : s.strips > 1 ? stack.cells + (image * s.planes + d) * cells
                                   : of_cells;
    if (round == 1 && !s.of_runs()) {
      const int64_t first = filled.first * s.wide(), last = filled.last * s.wide();
      add_up(of_plane + first * s.pitch, (last - first) * s.cells(), s.cell,
             mine + first * s.cells());
    }
    if (round == 1 && s.strips > 1) continue;
    const Strip windows = strip_of(s, s.y.out(), strip);
    if (s.of_runs()) add_runs(s, windows, of_plane, of_sums);
    if (s.of_cells()) add_windows(s, windows, mine, of_cells + cells, of_sums);
  }
}
