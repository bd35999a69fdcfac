// What a product is made of. Handlers (matmul.cc, conv.cc, depthwise.cc) check a call
// and describe it as a Job; instruction paths compute it.
//
//   out[r, n] = a[r] (sum_g s[g, n] sum_{k in g} (w[k, n] - z[g, n]) x[r, k])
//               - a[r] b[r] t[n] + bias[n]
//
// followed by
//
//   y -> max(floor, gain[n] curve(y) + shift[n] + other[r, n])    or times other[r, n]
//
// with x int8 codes of a row, or of its norm (norm.h), a its scale and b its zero point;
// w codes of the weight, s and z its scales and zero points, t the sums of its columns.
#pragma once

#include <cstdint>

#include "codes.h"
#include "course.h"
#include "image.h"

namespace jaxopt_compress {

// How the rows of x become the codes that meet the weight.
//
//   kCodes     x is int8 already; the result is int32
//   kDynamic   the range of each row is measured
//   kStatic    scale and zero point are given
//   kFloat     x = a (2^16 d0 + 2^8 d1 + d2) with int8 digits d: three rows of
//              codes, which keep x to 2^-23 of max|row| (two for bfloat16, 2^-15);
//              or, where numbers of the weight are not integers, float32 products
enum class Act : int { kCodes = 0, kDynamic = 1, kStatic = 2, kFloat = 3 };

// Curves that results may go through, each bend_NAME in curves.h.
#define JAXOPT_COMPRESS_CURVES(X)                                                    \
  X(gelu) X(exact_gelu) X(silu) X(sigmoid) X(tanh) X(relu6) X(hard_sigmoid)          \
  X(hard_swish) X(leaky_relu) X(squared_relu) X(elu) X(softplus) X(mish)
#define JAXOPT_COMPRESS_NAME(name) #name,
constexpr const char* kCurves[] = {JAXOPT_COMPRESS_CURVES(JAXOPT_COMPRESS_NAME)};
#undef JAXOPT_COMPRESS_NAME
// A place in kCurves, or this: results go through nothing.
constexpr int kNoCurve = -1;

enum class Type { kNone, kF32, kBf16, kS8, kS32, kE8m0, kE4m3, kU8, kOther };

// The most products of codes whose sum fits in 32 bits. (Codes of weights are unsigned;
// their offset is taken off the sum afterwards.)
constexpr int64_t kMostSummed = (1 << 17) - 1;

// One product of a batch.
struct Item {
  const void* x;        // [rows, k]
  const uint8_t* w;     // [panels, units, bytes], or a stream: sparse.h
  const void* scale;    // [groups, n]
  const void* zero;     // [groups, n] or null
  const float* totals;  // [n] or null
  const float* bias;    // [n] or null
  const float* after;   // [2, n] or null: gain and shift
  float act_scale, act_zero;  // where they are given
  float global_scale;  // a factor of all s
  const float *norm_scale, *norm_shift;  // [k] or null
  void* normed;         // where norms of rows are wanted, of the type of x; or null
  void* out;            // [rows, n]
  const void* other;    // of the type and shape of out, or null
  // Made from x, tile by tile.
  int8_t* codes;   // [tiles][chunks][size][chunk]
  int32_t* sums;   // [tiles][groups][size], of the codes
  float* scales;   // [tiles][size], a
  float* zeros;    // [tiles][size], b
  const int32_t* offsets = nullptr;  // [panels + 1], of a stream
};

// How x becomes codes: Rounding of native.py.
struct Rounding {
  Act act;
  float bound, high, low;
  bool symmetric;  // whether codes have no zero point
};

// What is done with rows of x before: norm.h, and `Norm` of kernels/norms.py.
struct Norm {
  bool there, centered;
  float eps;
};

struct Job : Rounding {
  Norm norm;
  Format format;
  Type x_type, scale_type, zero_type, out_type;
  float floor;             // the least that a result may be
  int curve;               // in kCurves
  bool after;              // whether a gain and a shift follow the curve
  bool joins, times;       // whether there is another operand; whether it is a factor
  int digits;              // rows of codes that a row of x becomes
  int64_t rows, k, n;
  int64_t stride;         // from a row of results to the next
  int64_t group, groups;  // rows that share a scale; how many such groups
  int64_t units, panels;
  // For a weight whose zeros are left out: sparse.h.
  bool sparse = false;
  bool skips = false;    // whether units without entries are left out, too
  int64_t constant = 0;  // values of each unit; 0 if they differ
  int64_t stream = 0;    // bytes

  // Whether anything but a floor follows the bias.
  bool finishes() const { return joins || after || curve != kNoCurve; }
  bool in_floats() const { return format.numbers != nullptr || format.bits > 8; }
  int64_t group_units() const {
    return groups > 1 ? (group + format.rows - 1) / format.rows : units;
  }
  int64_t group_steps() const { return group_units() * format.rows / kSteps; }
  int64_t steps() const { return units * format.rows / kSteps; }
  int64_t units_of(int64_t g) const {
    const int64_t rest = units - g * group_units();
    return rest < group_units() ? rest : group_units();
  }
};

// How rows are cut into tiles, and how the codes of a tile lie in memory.
struct Tiles {
  int size;       // rows of codes that a tile has room for
  int used;       // those of them that whole rows of x take
  int chunk;      // consecutive bytes of a row
  int64_t count;  // tiles
  int64_t chunks;
  int64_t codes() const { return chunks * size * chunk; }  // bytes of a tile
};

// Rows of x in a tile.
inline int64_t rows_in(const Job& job, const Tiles& t, int64_t tile) {
  const int64_t most = t.used / job.digits, rest = job.rows - tile * most;
  return rest < most ? rest : most;
}

// Bytes for the scales, zero points, totals and bias of a panel, as floats.
inline int64_t scales_workspace(const Job& job) {
  return (2 * job.groups + 2) * kColumns * 4;
}

// Bytes for the lines of a task of a convolution of floats: float_conv in floats.h.
inline int64_t float_workspace(const FloatScene& s, const Job& job) {
  const int64_t lines = (s.lines + 1) * s.line(job.stride);
  const int64_t row = s.row() + depth_columns(job.n);
  return 4 * (lines + row) + 8 * (s.block * s.y.taps + s.lines + 2) + 64;
}
struct Heads;
struct Head;
struct Keys;

// An instruction path.
struct Path {
  const char* name;
  bool (*here)();  // whether this machine has it
  // How it cuts rows into tiles; of size 0 if it cannot do the job.
  Tiles (*tiles)(const Job&);
  int64_t (*workspace)(const Job&, const Tiles&);  // bytes that a worker needs
  void (*prepare)(const Job&, const Tiles&, const Item&, int64_t tile,
                  char* workspace);
  // Multiplies tiles `first` to `last` by some panels.
  void (*multiply)(const Job&, const Tiles&, const Item&, int64_t panel,
                   int64_t panels, int64_t first, int64_t last, char* workspace);
  // Makes the codes of a strip of an image, of which `strip` counts all, in rounds: what
  // its range is made from, codes, sums of windows. Where images are one strip, the
  // second round is all. The job's k is the length of a row of the image.
  void (*image)(const Job&, const Scene&, const Stack&, int64_t strip, int round,
                char* workspace);
  // Copies windows into a tile of codes, for one group of features. `pixel` counts
  // through all images and is where the first window lies.
  void (*gather)(const Job&, const Tiles&, const Scene&, const Stack&,
                 int64_t features, int64_t pixel, const Item&, int64_t tile);
  // Multiplies windows where they lie, if conv.cc finds that they can be: parts of rows
  // of pixels `first` to `last`, counted through all images, by some panels.
  void (*slide)(const Job&, const Scene&, const Stack&, const Item&,
                int64_t features, int64_t panel, int64_t panels, int64_t first,
                int64_t last, char* workspace);
  // Rows `first` to `last` of the results for an image, each channel on its own, of the
  // columns from one, a multiple of 16, to `end`.
  void (*depthwise)(const Job&, const Scene&, const Stack&, const Item&,
                    int64_t image, int64_t first, int64_t last, int64_t column,
                    int64_t end, char* workspace);
  // Some results of a convolution whose weight is of floats; null if the path leaves
  // those to another.
  void (*float_conv)(const Job&, const FloatScene&, const Item&, const FloatPart&,
                     char* workspace);
  // Attention of rows `first` to `last` of a head.
  int64_t (*attention_workspace)(const Heads&, int64_t rows);  // bytes
  void (*attend)(const Heads&, const Head&, int64_t first, int64_t last,
                 char* workspace);
  // What few rows of a head find in a run of keys, and the results of several such.
  void (*find)(const Heads&, const Head&, Keys keys, float* found, char* workspace);
  void (*merge)(const Heads&, const Head&, int64_t count, const float* found,
                char* workspace);
};

extern const Path kAmx, kAvx512Vbmi2, kAvx512Vnni, kAvxVnni, kAvx2, kNeonDot, kPortable;

}  // namespace jaxopt_compress
