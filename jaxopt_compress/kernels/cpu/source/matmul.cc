// The product of a batch of matrices, as XLA calls it.

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "call.h"
#include "paths.h"
#include "region.h"

namespace jaxopt_compress {
namespace {

// What a call says besides its operands.
struct Options {
  int64_t constant;  // of a stream
  Finish finish;
  std::string_view format;
  int32_t given;  // of the operands that may be missing
  int64_t group;
  int64_t k;
  int64_t n;
  std::string_view path;
  Rounding rounding;
  bool skips;  // of a stream
};

}  // namespace
}  // namespace jaxopt_compress

JAXOPT_COMPRESS_DECODE(
    jaxopt_compress::Options, Field<int64_t>{"constant"},
    Field<jaxopt_compress::Finish>{"finish"},
    Field<std::string_view>{"format"},
    Field<int32_t>{"given"}, Field<int64_t>{"group"},
    Field<int64_t>{"k"},
    Field<int64_t>{"n"},
    Field<std::string_view>{"path"},
    Field<jaxopt_compress::Rounding>{"rounding"},
    Field<bool>{"skips"});

namespace jaxopt_compress {
namespace {

// Weights of up to so many bytes stay in the second-level cache of every worker: a
// task makes codes of some rows and multiplies them by all of it. Of so many rows at
// least; more where each task spreads the weight out for itself.
constexpr int64_t kSharedBytes = 1 << 20, kTaskRows = 32, kSpreadRows = 256;

struct Call {
  Job job;
  Tiles tiles;
  const Path* path;
  std::vector<Item> items;
  int64_t panels_each, tiles_each;  // of a task
  int64_t panel_tasks, tile_tasks;  // of an item
  bool together;   // a task is some rows and all panels, of one round
  uint64_t alone;  // which call it is, if threads each make codes of the only tile

  // The item with codes of its rows in memory of this thread.
  const Item& own(char* workspace) const {
    thread_local Room room;
    thread_local Item item;
    thread_local uint64_t made = 0;
    if (made != alone) {
      item = items[0];
      const Layout layout(job, tiles);
      layout.place(room.of(layout.bytes()), &item);
      path->prepare(job, tiles, item, 0, workspace);
      made = alone;
    }
    return item;
  }

  static void task(const void* context, int round, int64_t i) {
    const Call& call = *static_cast<const Call*>(context);
    thread_local Room room;
    char* workspace = room.of(call.path->workspace(call.job, call.tiles));
    if (call.together) {
      const Item& item = call.items[i / call.tile_tasks];
      const int64_t first = i % call.tile_tasks * call.tiles_each;
      const int64_t last = std::min(first + call.tiles_each, call.tiles.count);
      for (int64_t tile = first; tile < last; ++tile) {
        call.path->prepare(call.job, call.tiles, item, tile, workspace);
      }
      call.path->multiply(call.job, call.tiles, item, 0, call.job.panels, first, last,
                          workspace);
      return;
    }
    if (round == 0) {
      const Item& item = call.items[i / call.tiles.count];
      call.path->prepare(call.job, call.tiles, item, i % call.tiles.count,
                         workspace);
      return;
    }
    const int64_t of_item = call.panel_tasks * call.tile_tasks;
    const Item& item = call.alone ? call.own(workspace) : call.items[i / of_item];
    const int64_t panel =
        i % of_item / call.tile_tasks * call.panels_each;
    const int64_t first = i % call.tile_tasks * call.tiles_each;
    call.path->multiply(
        call.job, call.tiles, item, panel,
        std::min(call.panels_each, call.job.panels - panel), first,
        std::min(first + call.tiles_each, call.tiles.count), workspace);
  }
};

// How many panels a task has, where `wanted` tasks are wanted: every task reads its
// rows and its panels, and all of them as little as may be.
int64_t panels_of_task(const Job& job, const Tiles& t, int64_t wanted, int64_t weight) {
  int64_t best = job.panels, least = 0, most_tasks = 0;
  for (int64_t cuts = std::min(wanted, job.panels); cuts > 0; --cuts) {
    const int64_t each = job.panels / cuts, panels = ceil_div(job.panels, each);
    const int64_t tiles = std::min(ceil_div(wanted, panels), t.count);
    const int64_t tasks = std::min(wanted, panels * tiles);
    const int64_t reads = panels * t.count * t.codes() + tiles * weight;
    if (tasks > most_tasks || (tasks == most_tasks && reads < least)) {
      best = each;
      least = reads;
      most_tasks = tasks;
    }
  }
  return best;
}

// A weight: panels [..., panels, units, bytes], or streams [..., bytes] without
// zeros and the offsets [..., panels + 1] of their runs.
struct Weight {
  ffi::AnyBuffer data;
  const ffi::AnyBuffer* offsets = nullptr;

  size_t inner() const { return offsets == nullptr ? 3 : 1; }
};

// Whether the runs of a stream lie one after the other inside of it and have room
// for what kernels take for granted.
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

ffi::Error product(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer x,
                   const Weight& weight, const ffi::RemainingArgs& rest,
                   ffi::Result<ffi::AnyBuffer> out, const Options& options) {
  if (out->element_count() == 0) return ffi::Error::Success();
  const auto operands = Operands::of(rest, options.given);
  if (!operands) return wrong("operands are missing");
  const auto [scale, zero, totals, bias, act_scale, act_zero, other] =
      *operands;
  const auto& [constant, finish, format, given, group, k, n, path, rounding, skips] = options;
  const bool sparse = weight.offsets != nullptr;
  const ffi::AnyBuffer& w = weight.data;
  const Format* found = sparse ? sparse_format_of(format) : format_of(format);
  if (found == nullptr) return wrong("no format " + std::string(format));
  if (k < 1 || n < 1 || group < 1 || !known(rounding)) {
    return wrong("sizes must be positive");
  }
  const auto x_dims = x.dimensions(), w_dims = w.dimensions();
  const auto out_dims = out->dimensions();
  if (out_dims.size() < 2 || x_dims.size() < 2 || w_dims.size() < weight.inner()) {
    return wrong("x and w must be stacks of matrices");
  }
  const Batch::Dims lead(out_dims.begin(), out_dims.size() - 2);
  const ffi::AnyBuffer* others[] = {&scale,     &zero,     &totals, &bias,
                                    &act_scale, &act_zero};
  bool fits =
      Batch::fits(x_dims, 2, lead) && Batch::fits(w_dims, weight.inner(), lead);
  // A matrix that all products share is multiplied by all rows at once.
  bool shared = Batch::single(w_dims, weight.inner());
  for (const ffi::AnyBuffer* each : others) {
    if (each->element_count() == 0) continue;
    fits = fits && Batch::fits(each->dimensions(), 2, lead);
    shared = shared && Batch::single(each->dimensions(), 2);
  }
  if (other.element_count() > 0) {
    fits = fits && Batch::fits(other.dimensions(), 2, lead);
    shared = shared && Batch::full(other.dimensions(), 2, lead);
  }
  if (!fits) return wrong("leading axes do not fit those of the result");

  auto call = std::make_unique<Call>();
  Job& job = call->job;
  static_cast<Rounding&>(job) = rounding;
  job.format = *found;
  job.x_type = type_of(x);
  job.scale_type = type_of(scale);
  job.zero_type = type_of(zero);
  ffi::AnyBuffer result = *out;
  job.out_type = type_of(result);
  if (!finish_of(finish, other, result, &job)) {
    return wrong("results of this type cannot be finished like this");
  }
  job.digits = 1;
  if (job.act == Act::kFloat && !job.in_floats()) {
    job.digits = job.x_type == Type::kBf16 ? 2 : 3;
  }
  const int64_t m = out_dims[out_dims.size() - 2];
  job.k = k;
  job.n = n;
  job.stride = n;
  job.group = std::min(group, k);
  job.groups = ceil_div(k, job.group);
  job.panels = ceil_div(n, kColumns);
  const int64_t unit_rows = job.format.rows;
  const int64_t last = k - (job.groups - 1) * job.group;
  const int64_t each = ceil_div(job.group, unit_rows);
  job.units = (job.groups - 1) * each + ceil_div(last, unit_rows);
  bool weight_sizes;
  if (sparse) {
    job.sparse = true;
    job.skips = skips;
    job.constant = constant;
    job.stream = w_dims[w_dims.size() - 1];
    const auto at = weight.offsets->dimensions();
    weight_sizes = at.size() == w_dims.size() && at[at.size() - 1] == job.panels + 1 &&
                   std::equal(at.begin(), at.end() - 1, w_dims.begin()) &&
                   job.stream >= job.format.bytes && job.constant >= 0 &&
                   job.constant <= 128;
  } else {
    weight_sizes = w_dims[w_dims.size() - 3] == job.panels &&
                   w_dims[w_dims.size() - 2] == job.units &&
                   w_dims[w_dims.size() - 1] == job.format.bytes;
  }
  const bool sizes =
      x_dims[x_dims.size() - 1] == k && x_dims[x_dims.size() - 2] == m &&
      out_dims[out_dims.size() - 1] == n && weight_sizes;
  if (!sizes) return wrong("shapes do not fit each other");
  const bool codes = job.act == Act::kCodes;
  // Floats whose zeros are left out are their own numbers.
  const bool scaled = !codes && !(sparse && job.in_floats());
  const bool types =
      w.element_type() == ffi::U8 &&
      are_f32(totals, bias, act_scale, act_zero) &&
      (zero.element_count() == 0 || job.zero_type != Type::kNone) &&
      (codes ? job.x_type == Type::kS8 && job.out_type == Type::kS32 &&
                   job.groups == 1 && !job.in_floats()
             : (job.x_type == Type::kF32 || job.x_type == Type::kBf16) &&
                   (job.out_type == Type::kF32 || job.out_type == Type::kBf16) &&
                   (!scaled || job.scale_type == Type::kF32 ||
                    job.scale_type == Type::kBf16 ||
                    job.scale_type == Type::kE8m0)) &&
      (job.zero_type == Type::kNone || job.zero_type == Type::kF32 ||
       job.zero_type == Type::kS8) &&
      (job.act != Act::kStatic || type_of(act_scale) == Type::kF32) &&
      !(job.in_floats() && job.act != Act::kFloat) &&
      (codes || scaled ||
       (scale.element_count() == 0 && zero.element_count() == 0 &&
        totals.element_count() == 0 && job.groups == 1));
  if (!types) return wrong("types do not fit each other");
  if (!job.in_floats() && job.group > kMostSummed) {
    return wrong("sums of so many products do not fit in 32 bits");
  }
  const auto row_of = [&](const ffi::AnyBuffer& b, int64_t rows, int64_t columns) {
    const auto d = b.dimensions();
    return b.element_count() == 0 ||
           (d[d.size() - 2] == rows && d[d.size() - 1] == columns);
  };
  if ((scaled && !row_of(scale, job.groups, n)) || !row_of(zero, job.groups, n) ||
      !row_of(totals, 1, n) || !row_of(bias, 1, n) || !row_of(act_scale, 1, 1) ||
      !row_of(act_zero, 1, 1) || !row_of(other, m, n)) {
    return wrong("shapes of scales do not fit");
  }

  int64_t products = 1;
  for (int64_t d : lead) products *= d;
  const bool whole = static_cast<int64_t>(x.element_count()) == products * m * k;
  const bool merged = shared && whole;
  job.rows = merged ? products * m : m;
  if (merged) products = 1;
  const std::string name(path);
  call->path = path_for(job, name.c_str());
  if (call->path == nullptr) {
    return wrong("no instruction path " + name + " for this product here");
  }
  call->tiles = call->path->tiles(job);
  const Tiles& t = call->tiles;

  const int64_t weight_bytes =
      sparse ? job.stream : job.panels * job.units * job.format.bytes;
  const int64_t work = products * job.rows * job.digits * k * n;
  const bool small = work < (1 << 21) && products * weight_bytes < (1 << 17);
  const int64_t workers = small ? 1 : std::max<int64_t>(pool.num_threads(), 1);
  const bool alone = workers > 1 && products == 1 && t.count == 1;
  static std::atomic<uint64_t> calls{0};
  call->alone = alone ? ++calls : 0;

  // What the rows become, for all products.
  const Layout layout(job, t);
  thread_local Room room;
  char* memory = alone ? nullptr : room.of(products * layout.bytes());
  const auto entry = [&](const ffi::AnyBuffer& b, Type type, int64_t size,
                         int64_t i) -> const char* {
    if (b.element_count() == 0) return nullptr;
    const int64_t at = merged ? 0 : Batch::at(b.dimensions(), 2, lead, i);
    return static_cast<const char*>(b.untyped_data()) + at * size * bytes_of(type);
  };
  call->items.resize(products);
  for (int64_t i = 0; i < products; ++i) {
    Item& item = call->items[i];
    item.x = entry(x, job.x_type, m * k, i);
    const int64_t w_at = merged ? 0 : Batch::at(w_dims, weight.inner(), lead, i);
    item.w = static_cast<const uint8_t*>(w.untyped_data()) +
             w_at * (sparse ? job.stream : job.panels * job.units * job.format.bytes);
    if (sparse) {
      item.offsets = static_cast<const int32_t*>(weight.offsets->untyped_data()) +
                     w_at * (job.panels + 1);
      if (!runs_fit(job, item)) return wrong("offsets do not fit the stream");
    }
    item.scale = entry(scale, job.scale_type, job.groups * n, i);
    item.zero = entry(zero, job.zero_type, job.groups * n, i);
    item.totals = reinterpret_cast<const float*>(entry(totals, Type::kF32, n, i));
    item.bias = reinterpret_cast<const float*>(entry(bias, Type::kF32, n, i));
    const char* s = entry(act_scale, Type::kF32, 1, i);
    const char* z = entry(act_zero, Type::kF32, 1, i);
    item.act_scale = s == nullptr ? 1.0f : *reinterpret_cast<const float*>(s);
    item.act_zero = z == nullptr ? 0.0f : *reinterpret_cast<const float*>(z);
    item.out = static_cast<char*>(out->untyped_data()) +
               i * m * n * bytes_of(job.out_type);
    item.other = entry(other, job.out_type, m * n, i);
    if (!alone) layout.place(memory + i * layout.bytes(), &item);
  }

  const int64_t wanted = workers == 1 ? 1 : 8 * workers;
  // Tasks of a product are so many panels times so many tiles.
  const int64_t runs = std::max<int64_t>(wanted / products, 1);
  const bool spread = sparse || job.format.bits < 8;
  const int64_t task_rows = spread ? kSpreadRows : kTaskRows;
  call->together =
      !alone && weight_bytes <= kSharedBytes && job.rows >= task_rows * runs;
  call->panels_each =
      call->together ? job.panels : panels_of_task(job, t, runs, weight_bytes);
  call->panel_tasks = ceil_div(job.panels, call->panels_each);
  call->tiles_each = ceil_div(t.count, ceil_div(runs, call->panel_tasks));
  call->tile_tasks = ceil_div(t.count, call->tiles_each);
  const Site site = {w.untyped_data(), id.run_id};
  const bool done = run(pool, site, workers - 1, &Call::task, call.get(),
                        call->together || alone ? 0 : products * t.count,
                        products * call->panel_tasks * call->tile_tasks);
  if (!done) return wrong("there is no memory for a product of this size");
  return ffi::Error::Success();
}

ffi::Error matmul(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer x,
                  ffi::AnyBuffer w, ffi::RemainingArgs rest,
                  ffi::Result<ffi::AnyBuffer> out, Options options) {
  return product(pool, id, x, {w}, rest, out, options);
}

ffi::Error sparse_matmul(ffi::ThreadPool pool, ffi::RunId id, ffi::AnyBuffer x,
                         ffi::AnyBuffer stream, ffi::AnyBuffer offsets,
                         ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> out,
                         Options options) {
  if (stream.element_type() != ffi::U8 || offsets.element_type() != ffi::S32) {
    return wrong("a stream is of bytes, its offsets are int32");
  }
  return product(pool, id, x, {stream, &offsets}, rest, out, options);
}

}  // namespace

JAXOPT_COMPRESS_SHOWN XLA_FFI_Error* jaxopt_compress_sparse_matmul(
    XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxopt_compress_sparse_matmul, sparse_matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<Options>());

JAXOPT_COMPRESS_SHOWN XLA_FFI_Error* jaxopt_compress_matmul(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxopt_compress_matmul, matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attrs<Options>());

}  // namespace jaxopt_compress

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
