// What the handlers that XLA calls share: how operands are read and refused.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "attributes.h"
#include "job.h"
#include "xla/ffi/api/ffi.h"

// What the library shows of itself, however the rest is compiled.
#define JAXOPT_COMPRESS_SHOWN extern "C" __attribute__((visibility("default")))

namespace jaxopt_compress {

// What is done with results: Finish of native.py.
struct Finish {
  std::string_view curve;
  float floor;
  bool times;
};

// The operands that may follow x and the weight, in this order. One that is missing has
// no entries.
struct Operands {
  ffi::AnyBuffer scale, zero, totals, bias, act_scale, act_zero, other;

  // From those that are there: bit i of `given` says whether the i-th is.
  static std::optional<Operands> of(const ffi::RemainingArgs& args, int32_t given) {
    static int64_t no_entries = 0;
    static XLA_FFI_Buffer missing = {
        XLA_FFI_Buffer_STRUCT_SIZE, nullptr, XLA_FFI_DataType_F32, nullptr, 1,
        &no_entries};
    size_t next = 0;
    const auto operand = [&](int i) {
      const bool is_there = given >> i & 1;
      return is_there ? args.get<ffi::AnyBuffer>(next++).value()
                      : ffi::AnyBuffer(&missing);
    };
    if (static_cast<size_t>(__builtin_popcount(given)) != args.size()) return {};
    return Operands{operand(0), operand(1), operand(2), operand(3),
                    operand(4), operand(5), operand(6)};
  }
};

inline Type type_of(const ffi::AnyBuffer& buffer) {
  if (buffer.element_count() == 0) return Type::kNone;
  switch (buffer.element_type()) {
    case ffi::F32:
      return Type::kF32;
    case ffi::BF16:
      return Type::kBf16;
    case ffi::S8:
      return Type::kS8;
    case ffi::S32:
      return Type::kS32;
    case ffi::F8E8M0FNU:
      return Type::kE8m0;
    default:
      return Type::kNone;
  }
}

inline int64_t bytes_of(Type type) {
  return type == Type::kF32 || type == Type::kS32 ? 4 : type == Type::kBf16 ? 2 : 1;
}

// Where the operand of each product of a batch begins.
class Batch {
 public:
  using Dims = ffi::AnyBuffer::Dimensions;

  // Whether the leading axes of `dims`, all but `inner`, broadcast to `lead`.
  static bool fits(Dims dims, size_t inner, Dims lead) {
    if (dims.size() < inner || dims.size() - inner > lead.size()) return false;
    const size_t own = dims.size() - inner, skip = lead.size() - own;
    for (size_t i = 0; i < own; ++i) {
      if (dims[i] != 1 && dims[i] != lead[skip + i]) return false;
    }
    return true;
  }

  // Entry of the operand, in units of one product, for product `i`.
  static int64_t at(Dims dims, size_t inner, Dims lead, int64_t i) {
    const size_t own = dims.size() - inner;
    int64_t place = 0, stride = 1;
    for (size_t j = 0; j < lead.size(); ++j) {
      const size_t axis = lead.size() - 1 - j;
      const int64_t index = i % lead[axis];
      i /= lead[axis];
      if (j < own) {
        const int64_t n = dims[own - 1 - j];
        if (n != 1) place += index * stride;
        stride *= n;
      }
    }
    return place;
  }

  // Whether there is an entry for each product.
  static bool full(Dims dims, size_t inner, Dims lead) {
    return dims.size() == inner + lead.size() &&
           std::equal(lead.begin(), lead.end(), dims.begin());
  }

  static bool single(Dims dims, size_t inner) {
    for (size_t i = 0; i + inner < dims.size(); ++i) {
      if (dims[i] != 1) return false;
    }
    return true;
  }
};

inline const Format* format_of(std::string_view name) {
  for (const Format& format : kFormats) {
    if (name == format.name) return &format;
  }
  return nullptr;
}

inline const Format* sparse_format_of(std::string_view name) {
  for (const Format& format : kSparseFormats) {
    if (name == format.name) return &format;
  }
  return nullptr;
}

inline bool known(const Rounding& rounding) {
  return rounding.act >= Act::kCodes && rounding.act <= Act::kFloat;
}

// What a call says of results beyond their floor; false where it makes no sense.
inline bool finish_of(const Finish& finish, const ffi::AnyBuffer& other,
                      const ffi::AnyBuffer& out, Job* job) {
  const std::string_view curve = finish.curve;
  job->floor = finish.floor;
  job->curve = curve == "gelu"   ? Curve::kGelu
               : curve == "silu" ? Curve::kSilu
                                 : Curve::kNone;
  job->joins = other.element_count() > 0;
  job->times = finish.times;
  if (job->curve == Curve::kNone && !curve.empty()) return false;
  if (job->joins && other.element_type() != out.element_type()) return false;
  return !job->finishes() || job->act != Act::kCodes;
}

inline int64_t ceil_div(int64_t n, int64_t parts) { return (n + parts - 1) / parts; }

inline int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// How what is made from the rows of some tiles lies in memory.
struct Layout {
  int64_t codes, sums, scales;  // bytes of each; zeros take as many as scales

  Layout(const Job& job, const Tiles& t)
      : codes(rounded(t.count * t.codes())),
        sums(rounded(t.count * job.groups * t.size * 4)),
        scales(rounded(t.count * t.size * 4)) {}
  int64_t bytes() const { return codes + sums + 2 * scales; }
  void place(char* memory, Item* item) const {
    item->codes = reinterpret_cast<int8_t*>(memory);
    item->sums = reinterpret_cast<int32_t*>(memory + codes);
    item->scales = reinterpret_cast<float*>(memory + codes + sums);
    item->zeros = reinterpret_cast<float*>(memory + codes + sums + scales);
  }
};

// Whether buffers, those that are there, are of float32.
template <typename... Buffers>
bool are_f32(const Buffers&... buffers) {
  return ((buffers.element_count() == 0 || buffers.element_type() == ffi::F32) &&
          ...);
}

inline ffi::Error wrong(const std::string& what) {
  return ffi::Error::InvalidArgument("jaxopt_compress: " + what);
}

}  // namespace jaxopt_compress

XLA_FFI_REGISTER_ENUM_ATTR_DECODING(jaxopt_compress::Act);

JAXOPT_COMPRESS_DECODE(jaxopt_compress::Rounding, Field<jaxopt_compress::Act>{"act"},
                       Field<float>{"bound"}, Field<float>{"high"},
                       Field<float>{"low"}, Field<bool>{"symmetric"});

JAXOPT_COMPRESS_DECODE(jaxopt_compress::Finish, Field<std::string_view>{"curve"},
                       Field<float>{"floor"}, Field<bool>{"times"});
