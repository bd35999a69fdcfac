// Products of a stack of matrices with one or several weights, as XLA calls them.

#include <algorithm>
#include <atomic>
#include <string>
#include <string_view>
#include <vector>

#include "call.h"
#include "paths.h"
#include "products.h"
#include "region.h"

namespace jaxopt_compress {
namespace {

// `Norm` of kernels/norms.py. What a call says of it besides its operands.
struct Normal {
  bool centered;
  float eps;
  int32_t given;  // which operands are there
  bool keep;      // whether the norm is a result, too
  bool there;
};

// What a call says besides its operands, sorted by name. Spans and names of curves
// have an entry for each weight.
struct Options {
  ffi::Span<const int64_t> constant;  // of streams: values of each unit, or 0
  std::string_view curve;             // names, with commas in between
  ffi::Span<const float> floor;
  std::string_view format;
  ffi::Span<const int32_t> given;  // which operands are there
  int64_t group, k;
  ffi::Span<const int64_t> n;
  Normal norm;
  std::string_view path;
  Rounding rounding;
  bool skips;   // of streams: whether units without entries are left out
  bool sparse;  // whether weights are streams
  ffi::Span<const int32_t> times;

  size_t weights() const { return n.size(); }
  bool fit() const {
    return constant.size() == n.size() && floor.size() == n.size() &&
           given.size() == n.size() && times.size() == n.size() && n.size() > 0;
  }
};

}  // namespace
}  // namespace jaxopt_compress

JAXOPT_COMPRESS_DECODE(jaxopt_compress::Normal, Field<bool>{"centered"},
                       Field<float>{"eps"}, Field<int32_t>{"given"},
                       Field<bool>{"keep"}, Field<bool>{"there"});

JAXOPT_COMPRESS_DECODE(
    jaxopt_compress::Options, Field<Span<const int64_t>>{"constant"},
    Field<std::string_view>{"curve"}, Field<Span<const float>>{"floor"},
    Field<std::string_view>{"format"}, Field<Span<const int32_t>>{"given"},
    Field<int64_t>{"group"}, Field<int64_t>{"k"}, Field<Span<const int64_t>>{"n"},
    Field<jaxopt_compress::Normal>{"norm"}, Field<std::string_view>{"path"},
    Field<jaxopt_compress::Rounding>{"rounding"}, Field<bool>{"skips"},
    Field<bool>{"sparse"}, Field<Span<const int32_t>>{"times"});

namespace jaxopt_compress {
namespace {

// A weight is panels [..., panels, units, bytes]; or one layer of panels [..., layers,
// panels, units, bytes]; or streams [..., bytes] without zeros, with the offsets
// [..., panels + 1] of their runs.
constexpr Own kDense = {2, 3, 2, 2}, kLayers = {2, 4, 2, 2}, kSparse = {2, 1, 2, 2};
// Says in `given` that the number of the layer is there, after all other operands.
constexpr int kLayer = 8;

// Whether the runs of a stream lie one after the other inside it, each as long as the
// kernels assume without checking.
bool runs_fit(const Job& job, const Item& item) {
  const int64_t room = job.stream - job.format.bytes;
  const int64_t words = (job.units + 63) / 64 * 8;
  const int64_t masks = job.units * 16;
  const int64_t values = job.units * job.constant * job.format.bytes / 128;
  const int64_t least = job.skips ? words : masks + values;
  bool fit = item.offsets[0] == 0;
  for (int64_t p = 0; p < job.panels; ++p) {
    const int64_t begin = item.offsets[p], end = item.offsets[p + 1];
    fit = fit && begin >= 0 && (end - begin) * 64 >= least && end * 64 <= room;
  }
  return fit;
}

// Describes the product, once its format is known and operands fit the stack.
ffi::Error describe(const Options& options, size_t i, const Finish& finish,
                    Weight* weight) {
  const Operands& p = weight->p;
  Job* job = &weight->job;
  set_matrix(options.k, options.n[i], options.group, job);
  const int64_t m = p.out.axis(0);
  bool sizes = p.x.there() && p.x.is({m, job->k}) && p.w.there() &&
               p.out.is({m, job->n});
  if (weight->layer.there()) {
    sizes = sizes && !options.sparse && weight->layer.is(Type::kS32) &&
            p.w.is({weight->layers(), job->panels, job->units, job->format.bytes});
  } else if (!options.sparse) {
    sizes = sizes && p.w.is({job->panels, job->units, job->format.bytes});
  } else {
    job->sparse = true;
    job->skips = options.skips;
    job->constant = options.constant[i];
    job->stream = p.w.axis(0);
    const Part& offsets = weight->offsets;
    const Dims streams = p.w.dims(), at = offsets.dims();
    sizes = sizes && offsets.there() && offsets.is({job->panels + 1}) &&
            at.size() == streams.size() &&
            std::equal(at.begin(), at.end() - 1, streams.begin()) &&
            job->stream >= job->format.bytes && job->constant >= 0 &&
            job->constant <= 128;
  }
  if (!sizes) return wrong("shapes do not fit each other");
  const ffi::Error finished = set_finish(p, finish, job);
  if (finished.failure()) return finished;
  // Floats whose zeros are left out are their own numbers.
  const bool floats = job->sparse && job->in_floats();
  const bool bare = !p.scale.there() && !p.zero.there() && !p.totals.there();
  if (!p.w.is(Type::kU8) || (floats && !(bare && job->groups == 1))) {
    return wrong("types do not fit each other");
  }
  return check_operands(p, *job, !floats && job->act != Act::kCodes);
}

// The part of a list of names before the next comma, which is taken off.
std::string_view next_name(std::string_view* names) {
  const size_t end = std::min(names->find(','), names->size());
  const std::string_view name = names->substr(0, end);
  names->remove_prefix(std::min(end + 1, names->size()));
  return name;
}

// Reads operands, results and attributes of all weights. Those without results are left
// out.
ffi::Error read_weights(ffi::AnyBuffer x, Passed* rest, const ffi::RemainingRets& outs,
                        const Options& options, const Format& format,
                        std::vector<Weight>* weights) {
  std::string_view curves = options.curve;
  for (size_t i = 0; i < options.weights(); ++i) {
    if (!rest->has(options.sparse ? 2 : 1)) return wrong("weights are missing");
    const ffi::AnyBuffer w = rest->take();
    Part offsets = rest->take(options.sparse, 1);
    const bool layered = options.given[i] >> kLayer & 1;
    const Own own = options.sparse ? kSparse : layered ? kLayers : kDense;
    const auto p = Operands::of(x, w, rest, options.given[i] & ((1 << kLayer) - 1),
                                **outs.get<ffi::AnyBuffer>(i), own);
    if (!p || !rest->has(layered)) return wrong("operands are missing");
    const Part layer = rest->take(layered, 0);
    if (options.sparse && !offsets.is(Type::kS32)) {
      return wrong("a stream is of bytes, its offsets are int32");
    }
    const Finish finish = {next_name(&curves), options.floor[i], options.times[i] != 0};
    if (!p->out.there()) continue;
    if (options.n[i] < 1) return wrong("sizes must be positive");
    if (!p->out.has_own() || !p->x.has_own() || !p->w.has_own()) {
      return wrong("x and w must be stacks of matrices");
    }
    weights->push_back({*p, offsets, layer, job_of(*p, options.rounding, format)});
    const ffi::Error described = describe(options, i, finish, &weights->back());
    if (described.failure()) return described;
  }
  return rest->all() ? ffi::Error::Success() : wrong("there are too many operands");
}

// What goes in front of all products.
struct Front {
  Part scale, shift, normed;
};

// Whether norms of rows can be computed, and kept where they are wanted.
ffi::Error check_norm(const Normal& norm, const Front& front, const Operands& p,
                      Dims lead) {
  if (!norm.there) {
    return norm.keep ? wrong("there is no norm to keep") : ffi::Error::Success();
  }
  const int64_t k = p.x.axis(1);
  for (const Part* each : {&front.scale, &front.shift}) {
    if (!each->is(Type::kF32) || !each->is({k}) || !each->fits(lead)) {
      return wrong("scale and shift of a norm must be float32, one for each column");
    }
  }
  const bool kept = front.normed.is(p.x.type()) && front.normed.full(lead) &&
                    front.normed.is({p.out.axis(0), k});
  if (p.x.is(Type::kS8) || !kept) return wrong("the norm does not fit the rows");
  return ffi::Error::Success();
}

// Whether two weights of a stack meet the same codes of x.
bool same_codes(const Weight& a, const Weight& b, Dims lead, int64_t products) {
  if (a.job.act != Act::kStatic) return true;
  for (int64_t i = 0; i < products; ++i) {
    if (a.p.act_scale.number(lead, i, 1.0f) != b.p.act_scale.number(lead, i, 1.0f) ||
        a.p.act_zero.number(lead, i, 0.0f) != b.p.act_zero.number(lead, i, 0.0f)) {
      return false;
    }
  }
  return true;
}

// Gives each weight the codes of the first one that meets the same.
void make_sets(Dims lead, Call* call) {
  for (size_t i = 0; i < call->weights.size(); ++i) {
    Weight& weight = call->weights[i];
    size_t set = 0;
    while (set < call->sets.size() &&
           !same_codes(weight, call->weights[call->sets[set]], lead, call->products)) {
      ++set;
    }
    weight.set = static_cast<int>(set);
    if (set == call->sets.size()) call->sets.push_back(static_cast<int>(i));
  }
}

// Says what each product reads and writes, and where its codes go if threads share them.
ffi::Error fill(const Front& front, Dims lead, Call* call) {
  const Layout layout(call->job(), call->tiles);
  thread_local Room room;
  const int64_t sets = static_cast<int64_t>(call->sets.size());
  char* memory =
      call->alone ? nullptr : room.of(call->products * sets * layout.bytes());
  for (int64_t i = 0; i < call->products; ++i) {
    for (const Weight& weight : call->weights) {
      Item item = item_of(weight.p, weight.job, lead, i);
      if (weight.layer.there()) {
        item.w += layer_at(weight.layer, lead, i, weight.layers()) *
                  weight_bytes(weight.job);
      }
      item.norm_scale = front.scale.floats(lead, i);
      item.norm_shift = front.shift.floats(lead, i);
      // The first set of codes is made with the norms that are kept.
      if (weight.set == 0) item.normed = front.normed.at(lead, i);
      if (weight.job.sparse) {
        item.offsets = reinterpret_cast<const int32_t*>(weight.offsets.at(lead, i));
        if (!runs_fit(weight.job, item)) return wrong("offsets do not fit the stream");
      }
      if (!call->alone) {
        layout.place(memory + (i * sets + weight.set) * layout.bytes(), &item);
      }
      call->items.push_back(item);
    }
  }
  return ffi::Error::Success();
}

// A matrix that all products share is multiplied by all rows at once.
bool can_merge(const std::vector<Weight>& weights, const Front& front, Dims lead,
               int64_t rows) {
  if (!front.scale.single() || !front.shift.single()) return false;
  return std::all_of(weights.begin(), weights.end(), [&](const Weight& each) {
    return each.p.share_weight(lead) && each.layer.single() &&
           each.p.x.entries() == rows * each.job.k;
  });
}

ffi::Error run_products(ffi::ThreadPool pool, ffi::RunId id, const Front& front,
                        const Options& options, Call* call) {
  std::vector<Weight>& weights = call->weights;
  const Operands& p = weights[0].p;
  const Dims lead = p.lead();
  for (const Weight& each : weights) {
    const Dims other = each.p.lead();
    if (!each.p.fit(lead) || !each.layer.fits(lead) ||
        !std::equal(lead.begin(), lead.end(), other.begin(), other.end())) {
      return wrong("leading axes do not fit those of the result");
    }
  }
  const ffi::Error normal = check_norm(options.norm, front, p, lead);
  if (normal.failure()) return normal;

  const int64_t m = p.out.axis(0), stack = count_of(lead);
  const bool merged = can_merge(weights, front, lead, stack * m);
  call->products = merged ? 1 : stack;
  const std::string name(options.path);
  for (Weight& each : weights) {
    Job& job = each.job;
    job.rows = merged ? stack * m : m;
    job.norm = {options.norm.there, options.norm.centered, options.norm.eps};
    if (&each == &weights[0]) call->path = path_for(job, name.c_str());
    if (call->path == nullptr) {
      return wrong("no instruction path " + name + " for this product here");
    }
  }
  call->tiles = call->path->tiles(call->job());
  make_sets(lead, call);

  const int64_t workers = call->workers(pool);
  static std::atomic<uint64_t> calls{0};
  const bool alone = workers > 1 && call->products == 1 && call->tiles.count == 1 &&
                     call->sets.size() == 1;
  call->alone = alone ? ++calls : 0;
  call->keeps = false;
  const ffi::Error filled = fill(front, lead, call);
  if (filled.failure()) return filled;
  call->plan(workers);
  const Site site = {call->items[0].w, id.run_id};
  const bool done = run(pool, site, workers - 1, &Call::task, call,
                        call->first_tasks(), call->second_tasks());
  if (!done) return wrong("there is no memory for a product of this size");
  return ffi::Error::Success();
}

ffi::Error matmul(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer x,
                  ffi::RemainingArgs args, ffi::RemainingRets outs,
                  const Options& options) {
  const Format* format = options.sparse ? format_of(kSparseFormats, options.format)
                                        : format_of(kFormats, options.format);
  if (format == nullptr) return wrong("no format " + std::string(options.format));
  const Normal& norm = options.norm;
  if (!options.fit() || outs.size() != options.weights() + norm.keep) {
    return wrong("there are not as many weights everywhere");
  }
  if (options.k < 1 || options.group < 1 || !known(options.rounding)) {
    return wrong("sizes must be positive");
  }
  Passed rest(args);
  if (!rest.has(__builtin_popcount(norm.given))) return wrong("operands are missing");
  Part scale = rest.take(norm.given & 1, 1), shift = rest.take(norm.given >> 1 & 1, 1);
  Part normed = norm.keep ? Part(**outs.get<ffi::AnyBuffer>(options.weights()), 2)
                          : Passed::missing(2);
  // What a call consists of, whose memory is used again.
  thread_local Call call;
  call.weights.clear();
  call.sets.clear();
  call.items.clear();
  const ffi::Error read =
      read_weights(x, &rest, outs, options, *format, &call.weights);
  if (read.failure()) return read;
  if (call.weights.empty()) {
    // Norms are computed on the way to a product.
    return normed.there() ? wrong("there is no product to keep the norm of") : read;
  }
  return run_products(pool, id, {scale, shift, normed}, options, &call);
}

}  // namespace

JAXOPT_COMPRESS_SHOWN XLA_FFI_Error* jaxopt_compress_matmul(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxopt_compress_matmul, matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attrs<Options>());

}  // namespace jaxopt_compress

// Which operands and attributes calls have: `_INTERFACE` in `native.py`.
JAXOPT_COMPRESS_SHOWN int jaxopt_compress_interface() { return 8; }

// Names of the instruction paths that this machine has, best first.
JAXOPT_COMPRESS_SHOWN const char* jaxopt_compress_paths() {
  static const std::string names = [] {
    std::string all;
    for (int i = 0; i < jaxopt_compress::paths().count; ++i) {
      all += (i ? " " : "");
      all += jaxopt_compress::paths().all[i]->name;
    }
    return all;
  }();
  return names.c_str();
}
