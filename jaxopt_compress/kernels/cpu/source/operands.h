// The operands of a call: stacks of arrays, of which some may be missing.
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <optional>

#include "job.h"
#include "xla/ffi/api/ffi.h"

namespace jaxopt_compress {

namespace ffi = xla::ffi;

using Dims = ffi::AnyBuffer::Dimensions;

inline int64_t bytes_of(Type type) {
  return type == Type::kF32 || type == Type::kS32 ? 4 : type == Type::kBf16 ? 2 : 1;
}

inline Type type_of(const ffi::AnyBuffer& buffer) {
  switch (buffer.element_type()) {
    case ffi::F32:
      return Type::kF32;
    case ffi::BF16:
      return Type::kBf16;
    case ffi::S8:
      return Type::kS8;
    case ffi::U8:
      return Type::kU8;
    case ffi::S32:
      return Type::kS32;
    case ffi::F8E8M0FNU:
      return Type::kE8m0;
    case ffi::F8E4M3FN:
      return Type::kE4m3;
    default:
      return Type::kOther;
  }
}

// A stack of arrays, [*lead, *own]: axes of `lead` broadcast to those of the result, and
// the first of them may be left out. What has no entries is missing, and fits.
class Part {
 public:
  Part(ffi::AnyBuffer buffer, size_t own)
      : data_(static_cast<char*>(buffer.untyped_data())),
        dims_(buffer.dimensions()),
        entries_(buffer.element_count()),
        own_(own),
        type_(type_of(buffer)) {}

  const void* data() const { return data_; }
  int64_t entries() const { return entries_; }
  bool there() const { return entries_ > 0; }
  const Dims& dims() const { return dims_; }
  size_t own() const { return own_; }
  // Whether it has enough axes for those of its own.
  bool has_own() const { return dims_.size() >= own_; }
  // Size of one of its own axes, counted from the first of them.
  int64_t axis(size_t i) const { return dims_[dims_.size() - own_ + i]; }

  Type type() const { return there() ? type_ : Type::kNone; }
  bool is(Type type) const { return !there() || type_ == type; }

  // Whether its own axes have these sizes.
  bool is(std::initializer_list<int64_t> sizes) const {
    return !there() || (sizes.size() == own_ && has_own() &&
                        std::equal(sizes.begin(), sizes.end(), dims_.end() - own_));
  }

  // Whether its leading axes broadcast to `lead`.
  bool fits(Dims lead) const {
    if (!there()) return true;
    if (!has_own() || dims_.size() - own_ > lead.size()) return false;
    const size_t mine = dims_.size() - own_, skip = lead.size() - mine;
    for (size_t i = 0; i < mine; ++i) {
      if (dims_[i] != 1 && dims_[i] != lead[skip + i]) return false;
    }
    return true;
  }

  // Whether there is one for the whole stack.
  bool single() const {
    if (!there()) return true;
    return std::all_of(dims_.begin(), dims_.end() - own_,
                       [](int64_t n) { return n == 1; });
  }

  // Whether there is one for each entry of the stack.
  bool full(Dims lead) const {
    return !there() || (dims_.size() == own_ + lead.size() &&
                        std::equal(lead.begin(), lead.end(), dims_.begin()));
  }

  // Where that of entry `i` of the stack begins; null if it is missing.
  char* at(Dims lead, int64_t i) const {
    if (!there()) return nullptr;
    if (i == 0) return data_;
    const size_t mine = dims_.size() - own_;
    int64_t place = 0, stride = bytes_of(type_);
    for (size_t j = 0; j < own_; ++j) stride *= axis(j);
    // From the last axis to the first, as the digits of i come out.
    for (size_t j = 0; j < lead.size(); ++j) {
      const int64_t size = lead[lead.size() - 1 - j];
      const int64_t index = i % size;
      i /= size;
      if (j < mine) {
        const int64_t n = dims_[mine - 1 - j];
        if (n != 1) place += index * stride;
        stride *= n;
      }
    }
    return data_ + place;
  }

  const float* floats(Dims lead, int64_t i) const {
    return reinterpret_cast<const float*>(at(lead, i));
  }

  float number(Dims lead, int64_t i, float if_missing) const {
    const char* p = at(lead, i);
    float x = if_missing;
    if (p != nullptr) std::memcpy(&x, p, 4);
    return x;
  }

 private:
  char* data_;
  Dims dims_;
  int64_t entries_;
  size_t own_;
  Type type_;
};

// Which of `count` layers is asked for, as JAX indexes: from the end if negative, and the
// nearest one that there is. The first where no number says.
inline int64_t layer_at(const Part& layer, Dims lead, int64_t i, int64_t count) {
  const char* p = layer.at(lead, i);
  if (p == nullptr) return 0;
  int32_t number;
  std::memcpy(&number, p, 4);
  return std::clamp<int64_t>(number < 0 ? number + count : number, 0, count - 1);
}

// How many axes operands have of their own.
struct Own {
  size_t x, w;
  size_t columns;  // numbers of the columns of the weight
  size_t out;      // also what is joined with results
};

// Operands that are passed one after the other.
class Passed {
 public:
  explicit Passed(const ffi::RemainingArgs& args) : args_(args) {}

  bool all() const { return next_ == args_.size(); }
  bool has(size_t count) const { return next_ + count <= args_.size(); }
  ffi::AnyBuffer take() { return args_.get<ffi::AnyBuffer>(next_++).value(); }

  // The next one if it is there, or one without entries.
  Part take(bool is_there, size_t own) {
    return is_there ? Part(take(), own) : missing(own);
  }

  static Part missing(size_t own) {
    static int64_t no_entries = 0;
    static XLA_FFI_Buffer buffer = {
        XLA_FFI_Buffer_STRUCT_SIZE, nullptr, XLA_FFI_DataType_F32, nullptr, 1,
        &no_entries};
    return {ffi::AnyBuffer(&buffer), own};
  }

 private:
  const ffi::RemainingArgs& args_;
  size_t next_ = 0;
};

struct Operands {
  Part x, w, scale, zero, totals, bias, act_scale, act_zero, other, after, out;

  // Those after x and the weight are passed if they are there: bit i of `given` says
  // whether the i-th is.
  static std::optional<Operands> of(ffi::AnyBuffer x, ffi::AnyBuffer w, Passed* rest,
                                    int32_t given, ffi::AnyBuffer out, Own own) {
    if (!rest->has(__builtin_popcount(given))) return {};
    const auto operand = [&](int i, size_t own) -> Part {
      return rest->take(given >> i & 1, own);
    };
    // Braces evaluate from left to right, the order in which operands are passed.
    return Operands{{x, own.x},
                    {w, own.w},
                    operand(0, own.columns),
                    operand(1, own.columns),
                    operand(2, own.columns),
                    operand(3, own.columns),
                    operand(4, 2),
                    operand(5, 2),
                    operand(6, own.out),
                    operand(7, own.columns),
                    {out, own.out}};
  }

  // The same where nothing comes after them.
  static std::optional<Operands> of(ffi::AnyBuffer x, ffi::AnyBuffer w,
                                    const ffi::RemainingArgs& rest, int32_t given,
                                    ffi::AnyBuffer out, Own own) {
    Passed passed(rest);
    const auto found = of(x, w, &passed, given, out, own);
    return passed.all() ? found : std::nullopt;
  }

  // The leading axes of the result, which has enough of them.
  Dims lead() const {
    return Dims(out.dims().begin(), out.dims().size() - out.own());
  }

  bool fit(Dims lead) const {
    for (const Part* each : {&x, &w, &scale, &zero, &totals, &bias, &act_scale,
                             &act_zero, &other, &after}) {
      if (!each->fits(lead)) return false;
    }
    return true;
  }

  // Whether entries of the stack differ in x and what is joined with results only: they
  // may be computed as one, with the rows of all.
  bool share_weight(Dims lead) const {
    for (const Part* each :
         {&w, &scale, &zero, &totals, &bias, &act_scale, &act_zero, &after}) {
      if (!each->single()) return false;
    }
    return other.full(lead);
  }
};

}  // namespace jaxopt_compress
