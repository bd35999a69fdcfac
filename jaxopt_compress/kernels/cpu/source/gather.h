// Windows of images to tiles of rows. Plain loops, which each instruction path
// compiles for itself.
//
// Included inside the unnamed namespace of a path.

// Copies `kBytes` bytes, or up to twice as many, for each of some rows.
template <int kBytes>
inline void copy_runs(const char* const* from, int64_t at, int count,
                      int64_t bytes, char* to, int64_t stride) {
  const int64_t rest = bytes - kBytes;
  for (int r = 0; r < count; ++r) {
    const char* p = from[r] + at;
    char* out = to + r * stride;
    std::memcpy(out, p, kBytes);
    // Two copies that may overlap: no loop, and nothing is read past the run.
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

// Sixteen bytes of each of four rows, with four bytes of each row side by side: the
// steps of a tile whose chunks have four bytes.
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

// Makes a tile of rows from windows, for one group of features. `pixel` counts through
// all images and is where the first window lies. If a group of rows ends before its
// last unit, the codes of the rest are zeros already.
void gather(const Job& job, const Tiles& t, const Scene& s, const Stack& stack,
            int64_t features, int64_t pixel, const Item& item, int64_t tile) {
  const char* from[kMostSlots];
  const int32_t* sums_from[kMostSlots];
  const int rows = static_cast<int>(rows_in(job, t, tile));
  const int slots = rows * job.digits;
  const int64_t each = s.pitch * s.entry, plane = s.positions();
  const int64_t out_x = s.x.out(), pixels = s.pixels();
  int64_t image = pixel / pixels;
  int64_t oy = pixel % pixels / out_x, ox = pixel % out_x;
  const char* codes = stack.codes + features * s.own_pitch() * s.entry;
  const int32_t* of_codes = stack.sums;
  if (s.cell > 0) of_codes += features * s.own_pitch() / s.cell;
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
      // Four rows and sixteen bytes at a time; the last of each overlap those before.
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
      // Rows past the last are multiplied as well.
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
