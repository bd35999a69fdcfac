// Images to codes, and windows of them to tiles of rows. Plain loops, which each
// instruction path compiles for itself.
//
// Included inside the unnamed namespace of a path, after rows.h.

// Sums of each `n` bytes.
inline void add_up(const int8_t* p, int64_t count, int64_t n, int32_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    int32_t sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += p[i * n + j];
    out[i] = sum;
  }
}

// Writes a row of an image where its entries belong.
inline void spread_row(const Scene& s, const char* row, int64_t y, char* plane) {
  const int64_t each = s.channels * s.entry;
  char* out =
      plane + ((s.y.low + y * s.y.spread) * s.wide() + s.x.low) * each;
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
  int8_t* digits[3];
  for (int d = 0; d < 3; ++d) {
    digits[d] = reinterpret_cast<int8_t*>(room + n + 64) + d * (n + 64);
  }
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
    if (job.act == Act::kCodes) {
      const char* x = static_cast<const char*>(stack.x) + (first + y) * n;
      spread_row(s, x, y, codes);
      continue;
    }
    const float* x = floats_of(job, stack.x, first + y, room);
    if (job.in_floats()) {
      spread_row(s, reinterpret_cast<const char*>(x), y, codes);
      continue;
    }
    codes_of(job, range, x, n, digits);
    for (int64_t d = 0; d < s.planes; ++d) {
      spread_row(s, reinterpret_cast<const char*>(digits[d]), y,
                 codes + d * plane);
    }
  }
  if (s.cell > 0) {
    const int64_t sums = s.planes * s.positions() * s.cells();
    add_up(reinterpret_cast<const int8_t*>(codes), sums, s.cell,
           stack.sums + image * sums);
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
      const int64_t at = (image * s.planes + d) * plane + in_plane;
      from[r * job.digits + d] = codes + at * each;
      sums_from[r * job.digits + d] = of_codes + at * s.cells();
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
    for (int64_t i = 0; i < piece.bytes;) {
      const int64_t at = piece.to + i, inside = at % t.chunk;
      const int64_t left = piece.bytes - i, most = t.chunk - inside;
      const int64_t run = left < most ? left : most;
      copy_any(from, piece.from + i, slots, run,
               to + (at - inside) * t.size + inside, t.chunk);
      i += run;
    }
  }

  int32_t* sums = item.sums + tile * job.groups * t.size;
  std::memset(sums, 0, sizeof(int32_t) * job.groups * t.size);
  for (const Part& part : s.parts) {
    int32_t* out = sums + part.group * t.size;
    for (int r = 0; r < slots; ++r) out[r] += sums_from[r][part.from];
  }
  if (s.cell > 0) return;
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
