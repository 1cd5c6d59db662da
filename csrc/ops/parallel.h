// SPDX-License-Identifier: Apache-2.0
// Threads for the drivers, from whichever OpenMP runtime the process already has.
//
// Nothing here links against an OpenMP runtime: a second one beside torch's would start a second
// set of threads on the same cores. The runtime is looked up among the loaded libraries at first
// use (and again when `rebind_openmp` is called), and only if there is none is one loaded: the
// system's libgomp, or what `load_openmp_from` named. All of libgomp, LLVM's libomp and Intel's
// libiomp5 export GOMP_parallel.
#pragma once

#include <cstdint>
#include <string>

namespace capibara {

// A call may use this many threads: what set_num_threads or CAPIBARA_AXION_NUM_THREADS said, else
// OpenMP's own setting for the calling thread (which torch.set_num_threads changes too).
int num_threads();

// What set_num_threads or CAPIBARA_AXION_NUM_THREADS said; 0: OpenMP's own setting. The first call
// throws std::invalid_argument if the variable is no number of threads.
int num_threads_setting();

// 0 returns to OpenMP's own setting.
void set_num_threads(int threads);

// Path of the OpenMP runtime in use; empty if none was found, and calls then run on one thread.
std::string openmp_library();

// Path of the runtime to load where the process has none by then: that of a torch which may be
// imported later, and whose wheels can bring a libgomp under a name of its own.
void load_openmp_from(const std::string& path);

// Looks for the runtime again: torch may have brought its own since.
void rebind_openmp();

// Threads worth starting for work that touches `bytes` of memory and splits into `items`.
int threads_for(int64_t items, int64_t bytes);

// Runs f(context, begin, end) on up to `threads` contiguous ranges that together are [0, items).
void run_ranges(int64_t items, int threads, void (*f)(void* context, int64_t begin, int64_t end),
                void* context);

// The same for a callable f(begin, end).
template <class F>
void parallel_for(int64_t items, int64_t bytes, F f) {
  const int threads = threads_for(items, bytes);
  if (threads <= 1) {
    f(int64_t{0}, items);
    return;
  }
  run_ranges(
      items, threads,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); },
      &f);
}

}  // namespace capibara
