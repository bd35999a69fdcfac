// The instruction paths, best first.
#pragma once

#include "job.h"

namespace jaxopt_compress {

// Those that were compiled and that this machine has.
struct Paths {
  const Path* all[8];
  int count;
};

const Paths& paths();

// The path of that name if it can do the job, else the first that can; null if this
// machine has none of that name.
const Path* path_for(const Job& job, const char* name);

}  // namespace jaxopt_compress
