// SPDX-License-Identifier: Apache-2.0
#include "ops/parallel.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>

#include "cpu/environment.h"

namespace capibara {
namespace {

// Below this, a second thread costs more than it saves: on an AMD EPYC 9005 with libgomp, entering
// and leaving a team of two that is awake takes 0.5 us on an idle machine and 1.3 us on a busy one,
// so that two threads break even at 60 to 180 KiB in all; idle, they gain 1.4 times at 128 KiB.
// tests/cpp/parallel_bench.cc repeats the measurement.
constexpr int64_t kBytesPerThread = 64 << 10;

struct OpenMp {
  // The ABI that GCC compiles `#pragma omp parallel` to, unchanged since GCC 4.9.
  void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
  int (*max_threads)() = nullptr;
  int (*thread_num)() = nullptr;
  int (*team_size)() = nullptr;
  int (*in_parallel)() = nullptr;
  std::string path;
};

int find_runtime(dl_phdr_info* info, size_t, void* found) {
  const char* slash = std::strrchr(info->dlpi_name, '/');
  const char* name = slash ? slash + 1 : info->dlpi_name;
  for (const char* runtime : {"libgomp", "libomp", "libiomp5"}) {
    const size_t length = std::strlen(runtime);
    const char next = std::strncmp(name, runtime, length) == 0 ? name[length] : '\0';
    if (next == '.' || next == '-') {  // libgomp.so.1, libgomp-a1b2c3.so.1
      *static_cast<std::string*>(found) = info->dlpi_name;
      return 1;
    }
  }
  return 0;
}

template <class F>
bool resolve(void* library, const char* symbol, F*& function) {
  function = reinterpret_cast<F*>(dlsym(library, symbol));
  return function != nullptr;
}

// To load where the process has no runtime yet.
std::string& runtime_to_load() {
  static std::string path = "libgomp.so.1";
  return path;
}

// What is bound stays for ever: a call may be using it, and the threads of a runtime never end.
const OpenMp* bind_openmp() {
  std::string path;
  dl_iterate_phdr(find_runtime, &path);
  void* library = path.empty() ? dlopen(runtime_to_load().c_str(), RTLD_NOW | RTLD_LOCAL)
                               : dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (path.empty()) dl_iterate_phdr(find_runtime, &path);
  static auto* const bound = new std::deque<OpenMp>;  // reachable, and never destroyed
  OpenMp* openmp = &bound->emplace_back();
  if (library && resolve(library, "GOMP_parallel", openmp->parallel) &&
      resolve(library, "omp_get_max_threads", openmp->max_threads) &&
      resolve(library, "omp_get_thread_num", openmp->thread_num) &&
      resolve(library, "omp_get_num_threads", openmp->team_size) &&
      resolve(library, "omp_in_parallel", openmp->in_parallel)) {
    openmp->path = path;
  } else {
    *openmp = OpenMp{};
  }
  return openmp;
}

std::atomic<const OpenMp*> g_openmp{nullptr};
std::mutex g_binding;

const OpenMp& openmp() {
  const OpenMp* bound = g_openmp.load(std::memory_order_acquire);
  if (bound) return *bound;
  const std::lock_guard<std::mutex> lock(g_binding);
  bound = g_openmp.load(std::memory_order_relaxed);
  if (!bound) {
    bound = bind_openmp();
    g_openmp.store(bound, std::memory_order_release);
  }
  return *bound;
}

std::atomic<int>& thread_limit() {
  static std::atomic<int> limit{requested_threads()};
  return limit;
}

struct Ranges {
  int64_t items;
  void (*f)(void*, int64_t, int64_t);
  void* context;
  const OpenMp* openmp;
};

void run_own_range(void* data) {
  const auto& ranges = *static_cast<const Ranges*>(data);
  // The runtime may give fewer threads than were asked for: split by the team there is.
  const int64_t team = ranges.openmp->team_size(), index = ranges.openmp->thread_num();
  const int64_t begin = ranges.items * index / team, end = ranges.items * (index + 1) / team;
  if (begin < end) ranges.f(ranges.context, begin, end);
}

}  // namespace

int num_threads_setting() { return thread_limit().load(std::memory_order_relaxed); }

int num_threads() {
  const int limit = num_threads_setting();
  const OpenMp& runtime = openmp();
  if (!runtime.parallel) return 1;
  return limit > 0 ? limit : std::max(1, runtime.max_threads());
}

void set_num_threads(int threads) { thread_limit().store(threads, std::memory_order_relaxed); }

std::string openmp_library() { return openmp().path; }

void load_openmp_from(const std::string& path) {
  const std::lock_guard<std::mutex> lock(g_binding);
  runtime_to_load() = path;
}

void rebind_openmp() {
  const std::lock_guard<std::mutex> lock(g_binding);
  g_openmp.store(nullptr, std::memory_order_release);
}

int threads_for(int64_t items, int64_t bytes) {
  const int64_t worth = std::min(items, bytes / kBytesPerThread);
  if (worth <= 1) return 1;
  const OpenMp& runtime = openmp();
  if (!runtime.parallel || runtime.in_parallel()) return 1;
  return static_cast<int>(std::min<int64_t>(worth, num_threads()));
}

void run_ranges(int64_t items, int threads, void (*f)(void*, int64_t, int64_t), void* context) {
  Ranges ranges{items, f, context, &openmp()};
  ranges.openmp->parallel(run_own_range, &ranges, static_cast<unsigned>(threads), 0);
}

}  // namespace capibara
