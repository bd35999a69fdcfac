// What the handlers that XLA calls share: how operands are read and refused.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

#include "attributes.h"
#include "job.h"
#include "operands.h"
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

inline int64_t ceil_div(int64_t n, int64_t parts) { return (n + parts - 1) / parts; }

inline int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

inline ffi::Error wrong(const std::string& what) {
  return ffi::Error::InvalidArgument("jaxopt_compress: " + what);
}

// The format of that name in a table; null if there is none.
template <size_t kCount>
const Format* format_of(const Format (&formats)[kCount], std::string_view name) {
  for (const Format& format : formats) {
    if (name == format.name) return &format;
  }
  return nullptr;
}

// The place of a curve among all; kNoCurve for a name that none has.
inline int curve_of(std::string_view name) {
  int at = 0;
  for (const char* curve : kCurves) {
    if (name == curve) return at;
    ++at;
  }
  return kNoCurve;
}

inline bool known(const Rounding& rounding) {
  return rounding.act >= Act::kCodes && rounding.act <= Act::kFloat;
}

// ------------------------------------------------------------- operands to a job

// A job as far as the types of operands and what becomes of x say it.
inline Job job_of(const Operands& p, const Rounding& rounding, const Format& format) {
  Job job = {};
  static_cast<Rounding&>(job) = rounding;
  job.format = format;
  job.x_type = p.x.type();
  if (!p.x.there()) {
    // Nothing but padding: of any type.
    job.x_type = job.act == Act::kCodes ? Type::kS8 : Type::kF32;
  }
  job.scale_type = p.scale.type();
  job.zero_type = p.zero.type();
  job.out_type = p.out.type();
  job.digits = 1;
  if (job.act == Act::kFloat && !job.in_floats()) {
    job.digits = job.x_type == Type::kBf16 ? 2 : 3;
  }
  return job;
}

// The matrix of k rows and n columns as groups of rows, units and panels.
inline void set_matrix(int64_t k, int64_t n, int64_t group, Job* job) {
  job->k = k;
  job->n = job->stride = n;
  job->group = std::min(group, k);
  job->groups = ceil_div(k, job->group);
  job->panels = ceil_div(n, kColumns);
  // Each group begins with a unit of its own.
  const int64_t last = k - (job->groups - 1) * job->group;
  job->units = (job->groups - 1) * ceil_div(job->group, job->format.rows) +
               ceil_div(last, job->format.rows);
}

// What is done with results; an error where it makes no sense.
inline ffi::Error set_finish(const Operands& p, const Finish& finish, Job* job) {
  job->floor = finish.floor;
  job->curve = curve_of(finish.curve);
  job->after = p.after.there();
  job->joins = p.other.there();
  job->times = finish.times;
  if (job->curve == kNoCurve && !finish.curve.empty()) {
    return wrong("no curve " + std::string(finish.curve));
  }
  if (!p.other.is(job->out_type)) {
    return wrong("the other operand does not fit the type of the result");
  }
  if (job->finishes() && job->act == Act::kCodes) {
    return wrong("results of this type cannot be finished like this");
  }
  return ffi::Error::Success();
}

// Whether the types of operands suit each other. `scaled`: whether numbers of the
// weight have scales.
inline bool types_fit(const Operands& p, const Job& job, bool scaled) {
  const auto floating = [](Type t) { return t == Type::kF32 || t == Type::kBf16; };
  const bool codes = job.act == Act::kCodes;
  const bool results = codes ? job.x_type == Type::kS8 && job.out_type == Type::kS32
                             : floating(job.x_type) && floating(job.out_type);
  const bool scales = !scaled || floating(job.scale_type) ||
                      job.scale_type == Type::kE8m0 || job.scale_type == Type::kE4m3;
  const bool zeros = job.zero_type == Type::kNone || job.zero_type == Type::kF32 ||
                     job.zero_type == Type::kS8;
  const bool floats = p.totals.is(Type::kF32) && p.bias.is(Type::kF32) &&
                      p.after.is(Type::kF32) &&
                      p.act_scale.is(Type::kF32) && p.act_zero.is(Type::kF32);
  return results && scales && zeros && floats &&
         !(codes && (job.groups > 1 || p.zero.there())) &&
         !(job.act == Act::kStatic && !p.act_scale.there()) &&
         !(job.in_floats() && job.act != Act::kFloat);
}

// Whether operands of columns are of that many, and of all groups of rows; in
// convolutions, of each group of features.
inline bool scales_fit(const Operands& p, const Job& job, int64_t features = 1) {
  const auto fits = [&](const Part& part, int64_t rows) {
    return part.own() == 3 ? part.is({features, rows, job.n}) : part.is({rows, job.n});
  };
  return fits(p.scale, job.groups) && fits(p.zero, job.groups) && fits(p.totals, 1) &&
         fits(p.bias, 1) && fits(p.after, 2) && p.act_scale.is({1, 1}) && p.act_zero.is({1, 1});
}

// What is the same of all operands, once a job is described.
inline ffi::Error check_operands(const Operands& p, const Job& job, bool scaled,
                                 int64_t features = 1) {
  if (!types_fit(p, job, scaled)) return wrong("types do not fit each other");
  if (!job.in_floats() && job.group > kMostSummed) {
    return wrong("sums of so many products do not fit in 32 bits");
  }
  if (!scales_fit(p, job, features)) return wrong("shapes of scales do not fit");
  const Dims out = p.out.dims();
  if (p.other.there() &&
      !std::equal(out.end() - p.out.own(), out.end(),
                  p.other.dims().end() - p.out.own())) {
    return wrong("the other operand does not fit the result");
  }
  return ffi::Error::Success();
}

// Operands of entry `i` of a stack.
inline Item item_of(const Operands& p, const Job& job, Dims lead, int64_t i) {
  Item item = {};
  item.x = p.x.at(lead, i);
  item.w = reinterpret_cast<const uint8_t*>(p.w.at(lead, i));
  item.scale = p.scale.at(lead, i);
  item.zero = p.zero.at(lead, i);
  item.totals = p.totals.floats(lead, i);
  item.bias = p.bias.floats(lead, i);
  item.after = p.after.floats(lead, i);
  item.act_scale = p.act_scale.number(lead, i, 1.0f);
  item.act_zero = p.act_zero.number(lead, i, 0.0f);
  // Where x has no range that is given, the operand is that of the scales.
  item.global_scale = job.act == Act::kFloat ? item.act_scale : 1.0f;
  item.out = p.out.at(lead, i);
  item.other = p.other.at(lead, i);
  return item;
}

// How many entries a stack has.
inline int64_t count_of(Dims lead) {
  int64_t count = 1;
  for (int64_t n : lead) count *= n;
  return count;
}

// ---------------------------------------------------------------- a job to tasks

// Threads for a call: the calling one alone if there is little to do.
inline int64_t workers_for(const ffi::ThreadPool& pool, bool small) {
  return small ? 1 : std::max<int64_t>(pool.num_threads(), 1);
}

// Tasks to cut a call into: enough that no worker waits long for the last.
inline int64_t tasks_for(int64_t workers) { return workers == 1 ? 1 : 8 * workers; }

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

}  // namespace jaxopt_compress

XLA_FFI_REGISTER_ENUM_ATTR_DECODING(jaxopt_compress::Act);

JAXOPT_COMPRESS_DECODE(jaxopt_compress::Rounding, Field<jaxopt_compress::Act>{"act"},
                       Field<float>{"bound"}, Field<float>{"high"},
                       Field<float>{"low"}, Field<bool>{"symmetric"});

JAXOPT_COMPRESS_DECODE(jaxopt_compress::Finish, Field<std::string_view>{"curve"},
                       Field<float>{"floor"}, Field<bool>{"times"});
