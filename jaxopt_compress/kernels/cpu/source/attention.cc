// Attention, as XLA calls it.

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>

#include "call.h"
#include "heads.h"
#include "paths.h"
#include "region.h"

namespace jaxopt_compress {
namespace {

// Form of attention.py, sorted by name.
struct Form {
  bool causal;
  std::string_view key;
  int64_t left;
  float masked;
  std::string_view out, query;
  int64_t right;
  float scale;
  std::string_view value;
};

struct Options {
  Form form;
  int32_t given;  // which operands are there
  std::string_view path;
};

}  // namespace
}  // namespace jaxopt_compress

JAXOPT_COMPRESS_DECODE(
    jaxopt_compress::Form, Field<bool>{"causal"}, Field<std::string_view>{"key"},
    Field<int64_t>{"left"}, Field<float>{"masked"}, Field<std::string_view>{"out"},
    Field<std::string_view>{"query"}, Field<int64_t>{"right"}, Field<float>{"scale"},
    Field<std::string_view>{"value"});

JAXOPT_COMPRESS_DECODE(jaxopt_compress::Options,
                       Field<jaxopt_compress::Form>{"form"}, Field<int32_t>{"given"},
                       Field<std::string_view>{"path"});

namespace jaxopt_compress {
namespace {

// Rows of a task, at most: their queries and results stay in a second-level cache.
constexpr int64_t kMostRows = 256, kLeastRows = 32;
// Keys of a task of few queries, at least.
constexpr int64_t kLeastKeys = 256;

// Sizes of an operand along batch, place, head and feature, and entries from one to the
// next; 0 where there is but one.
struct Axes {
  int64_t b = 0, t = 0, h = 0, d = 0;
  int64_t b_step = 0, t_step = 0, h_step = 0, d_step = 0;
  bool good = false;
};

Axes axes_of(const Part& p, std::string_view order) {
  Axes a;
  if (!p.has_own() || order.size() != 4) return a;
  int64_t step = 1;
  int found = 0;
  for (int i = 3; i >= 0; --i) {
    const int64_t n = p.axis(p.own() - 4 + i), own = n == 1 ? 0 : step;
    switch (order[i]) {
      case 'b':
        a.b = n, a.b_step = own, found |= 1;
        break;
      case 't':
        a.t = n, a.t_step = own, found |= 2;
        break;
      case 'h':
        a.h = n, a.h_step = own, found |= 4;
        break;
      case 'd':
        a.d = n, a.d_step = own, found |= 8;
    }
    step *= n;
  }
  a.good = found == 15;
  return a;
}

struct Call {
  Heads heads;
  const Path* path;
  Part query, key, value, out, bias, mask, wanted, known, key_scale, value_scale, layer;
  Axes q, k, v, o, of_bias, of_mask, of_key_scale, of_value_scale;
  Dims lead;
  int64_t groups;            // heads of keys of the whole call
  int64_t each, parts;       // rows of a task, or keys; tasks of a head
  float* found = nullptr;    // by parts of heads, if few rows are split

  Head head(int64_t i) const {
    const int64_t kh = i % k.h, b = i / k.h % q.b, s = i / k.h / q.b;
    const int64_t h = kh * heads.share;
    const auto at = [&](const Part& p, int64_t entries) {
      const char* base = p.at(lead, s);
      return base == nullptr ? nullptr : base + entries * bytes_of(p.type());
    };
    const auto of_head = [&](const Axes& a, int64_t h) {
      return b * a.b_step + h * a.h_step;
    };
    const auto length = [&](const Part& p, int64_t all) {
      if (!p.there()) return all;
      int32_t n;
      std::memcpy(&n, at(p, p.axis(0) == 1 ? 0 : b), 4);
      return std::clamp<int64_t>(n, 0, all);
    };
    // Of a stack of layers, the one that is asked for.
    const int64_t of_layer =
        layer.there() ? layer_at(layer, lead, s, key.axis(0)) : 0;
    const auto cached = [&](const Part& p, const Axes& a, int64_t entries) {
      const int64_t n = p.there() && p.own() == 5 ? a.b * a.t * a.h * a.d : 0;
      return at(p, of_layer * n + entries);
    };
    Head found = {};
    found.query = at(query, of_head(q, h));
    found.key = cached(key, k, of_head(k, kh));
    found.value = cached(value, v, of_head(v, kh));
    found.bias = at(bias, of_head(of_bias, h));
    found.mask = reinterpret_cast<const uint8_t*>(at(mask, of_head(of_mask, h)));
    found.key_scale = reinterpret_cast<const float*>(
        cached(key_scale, of_key_scale, of_head(of_key_scale, kh)));
    found.value_scale = reinterpret_cast<const float*>(
        cached(value_scale, of_value_scale, of_head(of_value_scale, kh)));
    found.out = out.at(lead, s) + of_head(o, h) * bytes_of(out.type());
    found.wanted = length(wanted, heads.queries);
    found.known = length(known, heads.keys);
    return found;
  }

  static void task(const void* context, int round, int64_t i) {
    const Call& call = *static_cast<const Call*>(context);
    const Heads& a = call.heads;
    thread_local Room room;
    const int64_t rows = std::min(call.each, a.rows());
    char* const workspace =
        room.of(rounded(call.path->attention_workspace(a, rows)) + found_floats(a) * 4);
    const int64_t index = round == 0 || !few(a) ? i / call.parts : i;
    const Head h = call.head(index);
    if (!few(a)) {
      const int64_t first = i % call.parts * call.each;
      call.path->attend(a, h, first, std::min(first + call.each, a.rows()), workspace);
      return;
    }
    const Keys some = seen(a, h, 0, a.queries);
    if (round == 0) {
      const int64_t from = std::min(some.from + i % call.parts * call.each, some.to);
      call.path->find(a, h, {from, std::min(from + call.each, some.to)},
                      call.found + i * found_floats(a), workspace);
      return;
    }
    if (call.parts > 1) {
      call.path->merge(a, h, call.parts, call.found + i * call.parts * found_floats(a),
                       workspace);
      return;
    }
    float* const found = reinterpret_cast<float*>(
        workspace + rounded(call.path->attention_workspace(a, rows)));
    call.path->find(a, h, some, found, workspace);
    call.path->merge(a, h, 1, found, workspace);
  }
};

// Whether an operand broadcasts to scores.
bool broadcasts(const Part& p, const Axes& a, const Call& c) {
  const auto fits = [](int64_t n, int64_t all) { return n == 1 || n == all; };
  return !p.there() || (a.good && fits(a.b, c.q.b) && fits(a.h, c.q.h) &&
                        fits(a.t, c.q.t) && fits(a.d, c.k.t));
}

// Whether scales are those of rows of an operand.
bool scales(const Part& p, const Axes& a, const Axes& of) {
  const auto fits = [](int64_t n, int64_t all) { return n == 1 || n == all; };
  return !p.there() || (p.is(Type::kF32) && a.good && fits(a.b, of.b) &&
                        fits(a.h, of.h) && fits(a.t, of.t) && a.d == 1);
}

// `masks`: whether a mask is of bool.
ffi::Error check(const Call& c, bool masks) {
  const Axes &q = c.q, &k = c.k, &v = c.v, &o = c.o;
  if (!q.good || !k.good || !v.good || !o.good) {
    return wrong("operands of attention have four axes in an order");
  }
  const bool sizes = c.query.there() && c.key.there() && c.value.there() &&
                     q.b == k.b && q.d == k.d && q.h % k.h == 0 && v.b == k.b &&
                     v.t == k.t && v.h == k.h && o.b == q.b && o.t == q.t &&
                     o.h == q.h && o.d == v.d && k.t < int64_t{1} << 31;
  const auto lengths = [&](const Part& p) {
    return !p.there() || (p.has_own() && p.is(Type::kS32) &&
                          (p.axis(0) == 1 || p.axis(0) == q.b));
  };
  // Each is read at the same layer.
  const auto layers = [&](const Part& p) {
    return !p.there() || p.own() < 5 || p.axis(0) == c.key.axis(0);
  };
  if (!sizes || !broadcasts(c.bias, c.of_bias, c) || !broadcasts(c.mask, c.of_mask, c) ||
      !scales(c.key_scale, c.of_key_scale, k) ||
      !scales(c.value_scale, c.of_value_scale, v) || !lengths(c.wanted) ||
      !lengths(c.known) || !layers(c.value) || !layers(c.key_scale) ||
      !layers(c.value_scale)) {
    return wrong("shapes of attention do not fit each other");
  }
  const auto floating = [](const Part& p) {
    return p.is(Type::kF32) || p.is(Type::kBf16);
  };
  const auto readable = [&](const Part& p) { return floating(p) || p.is(Type::kS8); };
  if (!floating(c.query) || !readable(c.key) || !readable(c.value) || !floating(c.out) ||
      !floating(c.bias) || !masks || !c.layer.is(Type::kS32) || q.d_step > 1 ||
      v.d_step > 1 || o.d_step > 1) {
    return wrong("types or orders of attention do not fit each other");
  }
  for (const Part* p : {&c.query, &c.key, &c.value, &c.bias, &c.mask, &c.wanted, &c.known,
                        &c.key_scale, &c.value_scale, &c.layer}) {
    if (!p->fits(c.lead)) return wrong("leading axes do not fit those of the result");
  }
  return ffi::Error::Success();
}

Heads heads_of(const Call& c, const Form& form) {
  Heads a = {};
  a.queries = c.q.t;
  a.share = c.q.h / c.k.h;
  a.keys = c.k.t;
  a.d = c.q.d;
  a.dv = c.v.d;
  a.query_type = c.query.type();
  a.key_type = c.key.type();
  a.value_type = c.value.type();
  a.bias_type = c.bias.type();
  a.out_type = c.out.type();
  a.query_place = c.q.t_step;
  a.query_head = c.q.h_step;
  a.key_place = c.k.t_step;
  a.key_head = c.k.h_step;
  a.value_head = c.v.h_step;
  // One feature lies at any step.
  a.key_feature = form.key == "bhdt" && a.d > 1 ? c.k.d_step : 1;
  a.value_place = c.v.t_step;
  a.out_place = c.o.t_step;
  a.out_head = c.o.h_step;
  a.bias_head = c.of_bias.h_step;
  a.bias_query = c.of_bias.t_step;
  a.bias_key = c.of_bias.d_step;
  a.mask_head = c.of_mask.h_step;
  a.mask_query = c.of_mask.t_step;
  a.mask_key = c.of_mask.d_step;
  a.key_scale = c.of_key_scale.t_step;
  a.value_scale = c.of_value_scale.t_step;
  a.scale = form.scale;
  a.masked = form.masked;
  a.causal = form.causal;
  a.left = form.left;
  a.right = form.right;
  return a;
}

// Cuts heads into tasks: by rows, or of few rows by keys.
void plan(int64_t workers, Call* call) {
  const Heads& a = call->heads;
  const int64_t wanted =
      workers == 1 ? 1 : ceil_div(4 * workers, std::max<int64_t>(call->groups, 1));
  const int64_t size = few(a) ? a.keys : a.rows();
  const int64_t most = ceil_div(size, few(a) ? kLeastKeys : kLeastRows);
  int64_t parts = std::min(wanted, most);
  if (!few(a)) parts = std::max(parts, ceil_div(size, kMostRows));
  call->each = ceil_div(size, parts);
  if (!few(a)) call->each = ceil_div(call->each, kLeastRows) * kLeastRows;
  call->parts = ceil_div(size, call->each);
}

ffi::Error attention(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer query,
                     ffi::AnyBuffer key, ffi::AnyBuffer value, ffi::RemainingArgs rest,
                     ffi::Result<ffi::AnyBuffer> out, const Options& options) {
  if (static_cast<size_t>(__builtin_popcount(options.given)) != rest.size()) {
    return wrong("operands are missing");
  }
  Passed passed(rest);
  const auto operand = [&](int i, size_t own) {
    return passed.take(options.given >> i & 1, own);
  };
  const Form& form = options.form;
  // Bit 6 says whether there is a layer, and so an axis of layers.
  const size_t cached = options.given >> 6 & 1 ? 5 : 4;
  const bool masks = (options.given >> 1 & 1) == 0 ||
                     rest.get<ffi::AnyBuffer>(options.given & 1)->element_type() ==
                         ffi::PRED;
  const Part result(*out, 4);
  if (!result.there()) return ffi::Error::Success();
  if (!result.has_own()) return wrong("a result of attention has four axes");
  // Braces evaluate from left to right, the order in which operands are passed.
  auto call = std::unique_ptr<Call>(new Call{
      {}, nullptr, {query, 4}, {key, cached}, {value, cached}, result, operand(0, 4),
      operand(1, 4), operand(2, 1), operand(3, 1), operand(4, cached),
      operand(5, cached), operand(6, 0), {}, {}, {}, {}, {}, {}, {}, {},
      Dims(result.dims().begin(), result.dims().size() - 4), 0, 0, 0});
  Call& c = *call;
  c.q = axes_of(c.query, form.query);
  c.k = axes_of(c.key, form.key);
  c.v = axes_of(c.value, form.value);
  c.o = axes_of(c.out, form.out);
  // Keys are the features of what is added to scores.
  if (c.bias.there()) c.of_bias = axes_of(c.bias, "bhtd");
  if (c.mask.there()) c.of_mask = axes_of(c.mask, "bhtd");
  if (c.key_scale.there()) c.of_key_scale = axes_of(c.key_scale, form.key);
  if (c.value_scale.there()) c.of_value_scale = axes_of(c.value_scale, form.value);
  const ffi::Error checked = check(c, masks);
  if (checked.failure()) return checked;
  c.heads = heads_of(c, form);
  for (int i = 0; i < paths().count && c.path == nullptr; ++i) {
    const Path* path = paths().all[i];
    if (options.path.empty() || options.path == path->name) c.path = path;
  }
  if (c.path == nullptr) {
    return wrong("no instruction path " + std::string(options.path) + " here");
  }

  const Heads& a = c.heads;
  c.groups = count_of(c.lead) * c.q.b * c.k.h;
  // Counted in products; an exponential function is as many as 32.
  const double work = 1.0 * c.groups * a.rows() * a.keys * (a.d + a.dv + 32);
  const int64_t workers = workers_for(pool, work < (1 << 19));
  plan(workers, &c);
  thread_local Room room;
  const bool split = few(a) && c.parts > 1;
  if (split) {
    c.found = reinterpret_cast<float*>(
        room.of(c.groups * c.parts * found_floats(a) * 4));
  }
  const Site site = {key.untyped_data(), id.run_id};
  const bool done = run(pool, site, workers - 1, &Call::task, call.get(),
                        split ? c.groups * c.parts : 0,
                        few(a) ? c.groups : c.groups * c.parts);
  if (!done) return wrong("there is no memory for attention of this size");
  return ffi::Error::Success();
}

}  // namespace

JAXOPT_COMPRESS_SHOWN XLA_FFI_Error* jaxopt_compress_attention(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxopt_compress_attention, attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<Options>());

}  // namespace jaxopt_compress
