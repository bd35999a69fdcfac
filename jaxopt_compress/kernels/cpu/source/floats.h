// Convolutions whose weight is of floats. Windows are read where they lie, in lines of
// the image that are copied with their padding, or not at all.
//
//   y[p, n] = sum over pieces of w[k, n] x[p step + k's place]
//
// Weights lie in panels of sixteen columns, [panels][k][16], and two panels are
// multiplied at once; those of channels kept apart as [taps][columns].
//
// Included inside the unnamed namespace of a path, after panel.h.

constexpr int kPanelRegs = kDepthColumns / V::kLanes;  // registers of a narrow panel

// Some pixels of a row of results, and what they are made of.
struct FloatTile {
  const FloatPiece* pieces;
  const FloatPiece* end;
  const float* const* lines;
  int64_t at;    // floats that the first window lies past its pieces
  int64_t step;  // floats from a window to the next
  const float* w[2];
  const float* bias;  // of the columns, filled up
  float floor;
  float* out;
  int64_t stride;  // floats from a result to the next
  int n;           // columns
};

template <int kPanels>
constexpr int most_pixels() {
  constexpr int most = V::kMost * kRegs / (kPanels * kPanelRegs);
  return most < 14 ? most : 14;
}

template <int kRows, int kPanels>
void float_tile(const FloatTile& t) {
  using F = typename V::F;
  constexpr int kCols = kPanels * kPanelRegs;
  F acc[kRows][kCols];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) acc[r][c] = V::get(t.bias + c * V::kLanes);
  }
  const int64_t s = t.step;
  for (const FloatPiece* piece = t.pieces; piece < t.end; ++piece) {
    // Every third window has a pointer, from which those beside it are reached.
    const float* x[(kRows + 2) / 3];
#pragma GCC unroll 8
    for (int i = 0; i < (kRows + 2) / 3; ++i) {
      x[i] = t.lines[piece->line] + piece->from + t.at + (3 * i + 1) * s;
    }
    const float* w[kPanels];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) w[p] = t.w[p] + piece->to * kDepthColumns;
    for (int64_t i = 0; i < piece->n; ++i) {
      F b[kCols];
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c) {
        b[c] = V::get(w[c / kPanelRegs] + i * kDepthColumns +
                      c % kPanelRegs * V::kLanes);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const F a = V::all(x[r / 3][i + (r % 3 - 1) * s]);
#pragma GCC unroll 8
        for (int c = 0; c < kCols; ++c) acc[r][c] = V::fma(a, b[c], acc[r][c]);
      }
    }
  }
  const F floor = V::all(t.floor);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      const int at = c * V::kLanes;
      if (at >= t.n) break;
      V::put(t.out + r * t.stride + at, V::at_least(floor, acc[r][c]), t.n - at);
    }
  }
}

// One register of channels of some pixels, of channels kept apart.
template <int kRows>
inline void depth_tile(const FloatTile& t, int64_t columns, int64_t c) {
  using F = typename V::F;
  F acc[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) acc[r] = V::get(t.bias + c);
  for (const FloatPiece* piece = t.pieces; piece < t.end; ++piece) {
    const float* x = t.lines[piece->line] + piece->from + t.at + c;
    const F w = V::get(t.w[0] + piece->to * columns + c);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      acc[r] = V::fma(w, V::get(x + r * t.step), acc[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    V::put(t.out + r * t.stride + c, V::at_least(V::all(t.floor), acc[r]),
           static_cast<int>(t.n - c < V::kLanes ? t.n - c : V::kLanes));
  }
}

template <int kRows>
void depth_tiles(const FloatTile& t) {
  const int64_t columns = depth_columns(t.n);
  for (int64_t c = 0; c < t.n; c += V::kLanes) depth_tile<kRows>(t, columns, c);
}

using FloatTiles = void (*)(const FloatTile&);

template <int kPanels, int kMost = most_pixels<kPanels>()>
FloatTiles float_tile_of(int rows) {
  if constexpr (kMost == 0) {
    return nullptr;
  } else {
    return rows == kMost ? &float_tile<kMost, kPanels>
                         : float_tile_of<kPanels, kMost - 1>(rows);
  }
}

template <int kMost = kDepthPixels>
FloatTiles depth_tile_of(int rows) {
  if constexpr (kMost == 0) {
    return nullptr;
  } else {
    return rows == kMost ? &depth_tiles<kMost> : depth_tile_of<kMost - 1>(rows);
  }
}

// The lines of an image that windows of some results meet.
class Lines {
 public:
  Lines(const Job& job, const FloatScene& s, const void* x, int64_t image,
        float* room)
      : job_(job), of_lines_(job), s_(s), x_(x), image_(image), line_(s.line(job.stride)),
        zeros_(room), room_(room + line_),
        row_(room + (s.lines + 1) * line_) {
    of_lines_.k = s.x.size * s.channels;  // what it calls a row
    std::memset(zeros_, 0, line_ * sizeof(float));
    held_ = reinterpret_cast<int64_t*>(row_ + s.row());
    for (int64_t i = 0; i < s.lines; ++i) held_[i] = -1;
  }

  // Where the first entry of a line lies; padding is below it.
  const float* of(int64_t y) {
    const int64_t low = s_.columns.low * s_.pitch(job_.stride);
    // An image without columns has no memory to read.
    if (y < 0 || y >= s_.y.size || s_.x.size == 0) return zeros_ + low;
    const int64_t row = image_ * s_.y.size + y;
    const int64_t n = s_.x.size * s_.channels;
    if (s_.direct) return static_cast<const float*>(x_) + row * n;
    const int64_t slot = y % s_.lines;
    float* line = room_ + slot * line_;
    if (held_[slot] == y) return line + low;
    held_[slot] = y;
    const int64_t end = low + s_.x.size * s_.pitch(job_.stride);
    std::memset(line, 0, low * sizeof(float));
    std::memset(line + end, 0, (line_ - end) * sizeof(float));
    const float* from = floats_of(of_lines_, x_, row, row_);
    const int64_t repeats = s_.pitch(job_.stride) / s_.channels;
    if (repeats == 1) {
      std::memcpy(line + low, from, n * sizeof(float));
    } else {
      float* to = line + low;
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < repeats; ++j) *to++ = from[i];
      }
    }
    return line + low;
  }

 private:
  const Job& job_;
  Job of_lines_;
  const FloatScene& s_;
  const void* x_;
  int64_t image_, line_;
  float *zeros_, *room_, *row_;
  int64_t* held_;
};

// What some rows of results read, and the weight of some columns.
struct FloatPanel {
  int64_t panel;
  const float* w[2];
  float bias[kColumns];
  int n;
};

inline void float_line(const Job& job, const FloatScene& s, const Item& item,
                       const FloatPart& part, const FloatPanel& panel, int64_t y,
                       int64_t x_first, int64_t x_last, const float* const* lines) {
  const Course& columns = s.columns;
  const int64_t out_x = s.x.out(), pitch = s.pitch(job.stride);
  const int64_t row = (part.image * s.y.out() + y) * out_x;
  const bool narrow = panel.n <= kDepthColumns;
  const int most = s.apart ? kDepthPixels
                   : narrow ? most_pixels<1>() : most_pixels<2>();
  for (const Phase& phase : columns.phases) {
    const auto& pieces =
        s.pieces[y % s.rows.period * columns.period + phase.first];
    const int64_t begin = (x_first - phase.first + columns.period - 1) / columns.period;
    const int64_t end = (x_last - phase.first + columns.period - 1) / columns.period;
    if (end <= begin) continue;
    FloatTile t;
    t.pieces = pieces.data();
    t.end = pieces.data() + pieces.size();
    t.lines = lines;
    t.step = columns.step * pitch;
    t.at = begin * t.step + (s.apart ? 0 : part.features * (s.channels / s.features));
    t.w[0] = panel.w[0];
    t.w[1] = panel.w[1];
    t.bias = s.apart ? item.bias : panel.bias;
    t.floor = job.finishes() ? -__builtin_inff() : job.floor;
    t.n = panel.n;
    t.stride = columns.period * job.stride;
    const int64_t count = (end - begin + most - 1) / most;
    const int64_t even = (end - begin + count - 1) / count;
    for (int64_t x = begin; x < end; x += even) {
      const int rows = static_cast<int>(end - x < even ? end - x : even);
      const int64_t first = row + phase.first + x * columns.period;
      const int64_t at = first * job.stride + panel.panel * kColumns;
      t.out = static_cast<float*>(item.out) + at;
      const FloatTiles f = s.apart ? depth_tile_of(rows)
                           : narrow ? float_tile_of<1>(rows) : float_tile_of<2>(rows);
      f(t);
      for (int r = 0; job.finishes() && r < rows; ++r) {
        finish(job, item, at + r * t.stride, t.n, t.out + r * t.stride);
      }
      t.at += rows * t.step;
    }
  }
}

// Pixels of a line that are multiplied by a panel before the next panel.
constexpr int64_t kPixels = 8 * V::kMost;

void float_conv(const Job& job, const FloatScene& s, const Item& item,
                const FloatPart& part, char* workspace) {
  float* room = reinterpret_cast<float*>(workspace);
  // Bias as long as the columns are, filled up.
  Item with = item;
  const int64_t columns = depth_columns(job.n);
  if (s.apart) {
    std::memset(room, 0, columns * sizeof(float));
    if (item.bias) std::memcpy(room, item.bias, job.n * sizeof(float));
    with.bias = room;
    room += columns;
  }
  const size_t taps = s.y.taps;
  const float** lines = reinterpret_cast<const float**>(room);
  room += 2 * (s.block * taps + 1);
  Lines all(job, s, item.x, part.image, room);
  const int64_t narrow = columns / kDepthColumns;
  for (int64_t y = part.y_first; y < part.y_last; y += s.block) {
    const int64_t last = y + s.block < part.y_last ? y + s.block : part.y_last;
    for (int64_t i = y; i < last; ++i) {
      for (size_t tap = 0; tap < s.rows.of(i).taps.size(); ++tap) {
        lines[(i - y) * taps + tap] = all.of(s.rows.entry(i, tap));
      }
    }
    for (int64_t x = part.x_first; x < part.x_last; x += kPixels) {
      const int64_t end = x + kPixels < part.x_last ? x + kPixels : part.x_last;
      for (int64_t p = part.panel; p < part.panel + part.panels; ++p) {
        FloatPanel panel;
        const float* w = reinterpret_cast<const float*>(item.w);
        panel.panel = p;
        panel.n = s.apart ? job.n : columns_of(job, p);
        panel.w[0] = w + (s.apart ? 0 : 2 * p * job.k * kDepthColumns);
        const bool pair = 2 * p + 1 < narrow;
        panel.w[1] = panel.w[0] + (pair ? job.k * kDepthColumns : 0);
        if (!s.apart) {
          std::memset(panel.bias, 0, sizeof(panel.bias));
          if (item.bias) {
            std::memcpy(panel.bias, item.bias + p * kColumns, panel.n * 4);
          }
        }
        for (int64_t i = y; i < last; ++i) {
          float_line(job, s, with, part, panel, i, x, end, lines + (i - y) * taps);
        }
      }
    }
  }
}
