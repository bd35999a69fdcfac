// Products of several weights with the same rows, and how they are cut into tasks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "call.h"
#include "region.h"

namespace jaxopt_compress {

// A weight of up to so many bytes stays in the second-level cache of every worker: a task
// then makes codes of some rows and multiplies them by all of the weight. Such a task
// has so many rows at least, more if it has to expand the weight for itself.
constexpr int64_t kSharedBytes = 1 << 20, kTaskRows = 32, kSpreadRows = 256;

// Bytes of the weight of a product.
inline int64_t weight_bytes(const Job& job) {
  return job.sparse ? job.stream : job.panels * job.units * job.format.bytes;
}

// How many panels a task has, if `wanted` tasks are wanted. Every task reads its rows
// and its panels; all together they are to read as little as possible.
inline int64_t panels_of_task(const Job& job, const Tiles& t, int64_t wanted) {
  int64_t best = job.panels, least = 0, most_tasks = 0;
  for (int64_t cuts = std::min(wanted, job.panels); cuts > 0; --cuts) {
    const int64_t each = job.panels / cuts, panels = ceil_div(job.panels, each);
    const int64_t tiles = std::min(ceil_div(wanted, panels), t.count);
    const int64_t tasks = std::min(wanted, panels * tiles);
    const int64_t reads = panels * t.count * t.codes() + tiles * weight_bytes(job);
    if (tasks > most_tasks || (tasks == most_tasks && reads < least)) {
      best = each;
      least = reads;
      most_tasks = tasks;
    }
  }
  return best;
}

// One of the weights that rows meet, each of the same stack of products.
struct Weight {
  Operands p;
  Part offsets;  // of a stream
  Part layer;    // which of a stack of matrices it is, if w has an axis of layers
  Job job;
  int set = 0;  // which of the codes of x it meets
  int64_t panels_each = 0, tiles_each = 0;  // of a task
  int64_t panel_tasks = 0, tile_tasks = 0;  // of an item

  int64_t tasks() const { return panel_tasks * tile_tasks; }
  int64_t layers() const { return layer.there() ? p.w.axis(0) : 1; }

  // Cuts each product into about `wanted` tasks of some panels and some tiles.
  void cut(int64_t wanted, const Tiles& t) {
    panels_each = panels_of_task(job, t, wanted);
    panel_tasks = ceil_div(job.panels, panels_each);
    tiles_each = ceil_div(t.count, ceil_div(wanted, panel_tasks));
    tile_tasks = ceil_div(t.count, tiles_each);
  }
};

// A call: in a first round codes are made of rows, in a second one they are multiplied.
struct Call {
  const Path* path = nullptr;
  Tiles tiles = {};
  std::vector<Weight> weights;
  std::vector<int> sets;    // the first weight of each set of codes
  std::vector<Item> items;  // [products][weights]
  int64_t products = 0;
  bool together = false;   // a task is some rows and all panels; there is one round
  int64_t tiles_each = 0;  // of a task, if so
  int64_t tile_tasks = 0;  // of a product
  uint64_t alone = 0;  // number of the call if each thread makes codes of the only tile
  mutable std::atomic<bool> keeps{false};  // if alone: whether a thread keeps norms
  int64_t workspace = 0;                   // bytes

  const Job& job() const { return weights[0].job; }
  const Item& item(int64_t product, size_t weight) const {
    return items[product * weights.size() + weight];
  }

  int64_t first_tasks() const {
    if (together || alone) return 0;
    return products * static_cast<int64_t>(sets.size()) * tiles.count;
  }
  int64_t second_tasks() const {
    if (together) return products * tile_tasks;
    int64_t tasks = 0;
    for (const Weight& weight : weights) tasks += weight.tasks();
    return products * tasks;
  }

  // How many threads products are worth.
  int64_t workers(const ffi::ThreadPool& pool) const {
    int64_t work = 0, bytes = 0;
    for (const Weight& each : weights) {
      work += products * job().rows * job().digits * job().k * each.job.n;
      bytes += products * weight_bytes(each.job);
    }
    return workers_for(pool, work < (1 << 21) && bytes < (1 << 17));
  }

  void plan(int64_t workers) {
    int64_t bytes = 0, panels = 0;
    for (const Weight& each : weights) {
      bytes += weight_bytes(each.job);
      panels += each.job.panels;
    }
    const int64_t wanted = std::max<int64_t>(tasks_for(workers) / products, 1);
    const bool spread = job().sparse || job().format.bits < 8;
    const int64_t rows = spread ? kSpreadRows : kTaskRows;
    together = !alone && bytes <= kSharedBytes && job().rows >= rows * wanted;
    tiles_each = ceil_div(tiles.count, wanted);
    tile_tasks = ceil_div(tiles.count, tiles_each);
    workspace = 0;
    for (Weight& each : weights) {
      workspace = std::max(workspace, path->workspace(each.job, tiles));
      each.cut(ceil_div(wanted * each.job.panels, panels), tiles);
    }
  }

  // An item with the codes of the only tile, in memory of this thread.
  Item own(const Item& item, char* workspace) const {
    thread_local Room room;
    thread_local Item made;
    thread_local uint64_t made_in = 0;
    if (made_in != alone) {
      made = items[0];
      const Layout layout(job(), tiles);
      layout.place(room.of(layout.bytes()), &made);
      // One thread writes the norms, if they are wanted.
      if (made.normed != nullptr && keeps.exchange(true)) made.normed = nullptr;
      path->prepare(job(), tiles, made, 0, workspace);
      made_in = alone;
    }
    Item found = item;
    found.codes = made.codes;
    found.sums = made.sums;
    found.scales = made.scales;
    found.zeros = made.zeros;
    return found;
  }

  void prepare(int64_t product, int set, int64_t tile, char* workspace) const {
    const int weight = sets[set];
    path->prepare(weights[weight].job, tiles, item(product, weight), tile, workspace);
  }

  // Some rows and all panels.
  void run_together(int64_t i, char* workspace) const {
    const int64_t product = i / tile_tasks, first = i % tile_tasks * tiles_each;
    const int64_t last = std::min(first + tiles_each, tiles.count);
    for (size_t set = 0; set < sets.size(); ++set) {
      for (int64_t tile = first; tile < last; ++tile) {
        prepare(product, set, tile, workspace);
      }
    }
    for (size_t w = 0; w < weights.size(); ++w) {
      const Job& job = weights[w].job;
      path->multiply(job, tiles, item(product, w), 0, job.panels, first, last,
                     workspace);
    }
  }

  // Some rows and some panels of one weight.
  void run_apart(int64_t i, char* workspace) const {
    const int64_t each = second_tasks() / products, product = i / each;
    i %= each;
    size_t w = 0;
    for (; i >= weights[w].tasks(); ++w) i -= weights[w].tasks();
    const Weight& weight = weights[w];
    const int64_t panel = i / weight.tile_tasks * weight.panels_each;
    const int64_t first = i % weight.tile_tasks * weight.tiles_each;
    const Item& shared = item(product, w);
    const Item item = alone ? own(shared, workspace) : shared;
    path->multiply(weight.job, tiles, item, panel,
                   std::min(weight.panels_each, weight.job.panels - panel), first,
                   std::min(first + weight.tiles_each, tiles.count), workspace);
  }

  static void task(const void* context, int round, int64_t i) {
    const Call& call = *static_cast<const Call*>(context);
    thread_local Room room;
    char* workspace = room.of(call.workspace);
    if (call.together) return call.run_together(i, workspace);
    if (round == 1) return call.run_apart(i, workspace);
    const int64_t tile = i % call.tiles.count, rest = i / call.tiles.count;
    const int64_t sets = static_cast<int64_t>(call.sets.size());
    call.prepare(rest / sets, static_cast<int>(rest % sets), tile, workspace);
  }
};

}  // namespace jaxopt_compress
