// SPDX-License-Identifier: Apache-2.0
#include "ops/gemm_acl.h"

#if defined(CAPIBARA_HAS_ACL)

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "backends/acl/gemm.h"
#include "base/buffer.h"
#include "cpu/features.h"
#include "kernels/gemm/pack.h"

namespace capibara {
namespace {

std::atomic<uint64_t> g_runs{0};

// Core code of this project prints nothing else: that what was asked for does not happen should not
// go unnoticed, and is no reason to fail.
void say_once(GemmType type, const std::string& reason) {
  static std::mutex mutex;
  static auto* const said = new std::set<std::string>;
  const std::string line = std::string("capibara_axion: Arm Compute Library does not multiply ") +
                           name_of(type) + ", the native kernels do: " + reason;
  const std::lock_guard<std::mutex> lock(mutex);
  if (said->insert(line).second) std::fprintf(stderr, "%s\n", line.c_str());
}

DType dtype_of(GemmType type) {
  return type == GemmType::kBF16  ? DType::kBF16
         : type == GemmType::kF16 ? DType::kF16
                                  : DType::kF32;
}

Packed packed_as(DType dtype) {
  return dtype == DType::kBF16 ? Packed::kBF16 : dtype == DType::kF16 ? Packed::kF16 : Packed::kF32;
}

DType tensors_of(GemmType type) { return type == GemmType::kF16 ? DType::kF16 : DType::kF32; }

void convert(DType from, const void* x, int64_t length, DType to, void* y) {
  static PackFn* const pack = pack_lines_kernels().chosen().run;
  pack({from, x, length, 1, length, packed_as(to), 1, 1, nullptr, y});
}

const char* row_of(const MatrixView& matrix, int64_t row) {
  return static_cast<const char*>(matrix.data) +
         row * matrix.stride * static_cast<int64_t>(size_of(matrix.dtype));
}

// x, or a copy of it: rounded to bf16, if products are of that and x is not. Other roundings are
// those to the tensors' type.
MatrixView rounded(GemmType type, const MatrixView& x, int64_t rows, int64_t cols,
                   Scratch& memory) {
  if (type != GemmType::kBF16 || x.dtype == DType::kBF16) return x;
  auto* const copy =
      static_cast<BF16*>(memory.get(static_cast<size_t>(rows * cols) * sizeof(BF16)));
  for (int64_t r = 0; r < rows; ++r) {
    convert(x.dtype, row_of(x, r), cols, DType::kBF16, copy + r * cols);
  }
  return {DType::kBF16, copy, cols};
}

// A tensor of ACL's, as wide as its stride says.
struct Rows {
  DType dtype;
  char* data;
  int64_t stride;

  char* at(int64_t row, int64_t col) const {
    return data + (row * stride + col) * static_cast<int64_t>(size_of(dtype));
  }
};

void fill_rows(const MatrixView& x, int64_t rows, int64_t cols, const Rows& to) {
  for (int64_t r = 0; r < rows; ++r) convert(x.dtype, row_of(x, r), cols, to.dtype, to.at(r, 0));
}

// x is [cols, rows]. Panels of a depth of 1 are transposes of its lines.
void fill_transposed(const MatrixView& x, int64_t rows, int64_t cols, const Rows& to) {
  constexpr int64_t kLines = 16;
  PackFn* const pack = pack_lines_kernels().chosen().run;
  const auto size = static_cast<int64_t>(size_of(to.dtype));
  Scratch memory;
  char* const panel = static_cast<char*>(memory.get(static_cast<size_t>(rows * kLines * size)));
  for (int64_t col = 0; col < cols; col += kLines) {
    const int64_t lines = std::min(kLines, cols - col);
    pack({x.dtype, row_of(x, col), x.stride, lines, rows, packed_as(to.dtype), kLines, 1, nullptr,
          panel});
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(to.at(r, col), panel + r * kLines * size, static_cast<size_t>(lines * size));
    }
  }
}

void fill_weights(const GemmCall& call, const Rows& to) {
  Scratch values, copy;
  if (!call.packed) {
    const int64_t rows = call.b_transposed ? call.n : call.k;
    const int64_t cols = call.b_transposed ? call.k : call.n;
    const MatrixView b = rounded(call.type, call.b, rows, cols, copy);
    return call.b_transposed ? fill_transposed(b, call.k, call.n, to)
                             : fill_rows(b, call.k, call.n, to);
  }
  const DType dtype = dtype_of(call.type);
  void* const weights = values.get(static_cast<size_t>(call.n * call.k) * size_of(dtype));
  unpack_weights(call.packed, weights, nullptr);
  fill_transposed({dtype, weights, call.k}, call.k, call.n, to);
}

// Null if ACL refuses.
std::unique_ptr<acl::Gemm> prepare(const GemmCall& call) {
  static std::mutex one_at_a_time;
  const DType tensors = tensors_of(call.type);
  const bool fast_math =
      call.type == GemmType::kBF16 && cpu_info().features.contains({Feature::kBf16});
  std::string reason;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  auto gemm = acl::Gemm::prepare(
      {call.m, call.n, call.k, tensors, fast_math},
      [&](void* b, int64_t stride) {
        fill_weights(call, {tensors, static_cast<char*>(b), stride});
      },
      &reason);
  if (!gemm) say_once(call.type, reason);
  return gemm;
}

void finish(const GemmCall& call, int64_t row, int64_t rows, const void* sums, int64_t stride) {
  static EpilogueFn* const epilogue = gemm_epilogue_kernels().chosen().run;
  const auto y_size = static_cast<int64_t>(size_of(call.y_dtype));
  epilogue({rows, call.n, sums, stride, nullptr, nullptr, nullptr, call.bias, call.activation,
            call.residual.data ? row_of(call.residual, row) : nullptr, call.residual.stride,
            call.y_dtype, static_cast<char*>(call.y) + row * call.y_stride * y_size,
            call.y_stride});
}

bool run(acl::Gemm& gemm, const GemmCall& call) {
  thread_local Scratch memory;
  const DType tensors = tensors_of(call.type);
  const MatrixView x = rounded(call.type, call.x, call.m, call.k, memory);
  fill_rows(x, call.m, call.k, {tensors, static_cast<char*>(gemm.a()), gemm.a_stride()});
  std::string reason;
  if (!gemm.run(&reason)) {
    say_once(call.type, reason);
    return false;
  }
  g_runs.fetch_add(1, std::memory_order_relaxed);
  if (tensors == DType::kF32) {
    finish(call, 0, call.m, gemm.y(), gemm.y_stride());
    return true;
  }
  auto* const sums = static_cast<float*>(memory.get(static_cast<size_t>(call.n) * sizeof(float)));
  const MatrixView y = {tensors, gemm.y(), gemm.y_stride()};
  for (int64_t r = 0; r < call.m; ++r) {
    convert(tensors, row_of(y, r), call.n, DType::kF32, sums);
    finish(call, r, 1, sums, call.n);
  }
  return true;
}

// ---------------------------------------------------------------- prepared weights

struct Prepared {
  std::mutex in_use;                // while it is prepared or runs
  std::unique_ptr<acl::Gemm> gemm;  // null: ACL refused
};

class Kept {
 public:
  // The entry and the lock on it, which is not held if another thread is using it. A new one has
  // yet to be prepared.
  struct Found {
    std::shared_ptr<Prepared> entry;
    std::unique_lock<std::mutex> lock;
    bool is_new;
  };

  Found find(uint64_t id, int64_t m) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = std::find_if(items_.begin(), items_.end(),
                                    [&](const Item& item) { return item.id == id && item.m == m; });
    const bool is_new = found == items_.end();
    if (is_new) {
      items_.push_front({id, m, 0, std::make_shared<Prepared>()});
    } else {
      items_.splice(items_.begin(), items_, found);
    }
    std::shared_ptr<Prepared> entry = items_.front().entry;
    std::unique_lock<std::mutex> lock(entry->in_use, std::defer_lock);
    is_new ? lock.lock() : void(lock.try_lock());
    drop_oldest();
    return {std::move(entry), std::move(lock), is_new};
  }

  void set_bytes(const Prepared* entry, int64_t bytes) {
    const std::lock_guard<std::mutex> guard(mutex_);
    for (Item& item : items_) {
      if (item.entry.get() == entry) bytes_ += item.bytes = bytes;
    }
    drop_oldest();
  }

  void set_bounds(const AclBounds& bounds) {
    const std::lock_guard<std::mutex> guard(mutex_);
    bounds_ = bounds;
    drop_oldest();
  }

  AclUse use() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return {g_runs.load(std::memory_order_relaxed), items_.size(), bytes_};
  }

 private:
  struct Item {
    uint64_t id;
    int64_t m, bytes;
    std::shared_ptr<Prepared> entry;
  };

  // One that is running lives on until it has run.
  void drop_oldest() {
    while (items_.size() > bounds_.entries || bytes_ > bounds_.bytes) {
      bytes_ -= items_.back().bytes;
      items_.pop_back();
    }
  }

  std::mutex mutex_;
  std::list<Item> items_;  // the most recently used first
  int64_t bytes_ = 0;
  AclBounds bounds_ = kAclBounds;
};

Kept& kept() {
  static auto* const all = new Kept;  // never destroyed: threads may outlive main
  return *all;
}

}  // namespace

bool gemm_by_acl(const GemmCall& call) {
  if (call.type == GemmType::kInt8 || call.k == 0) return false;
  if (!call.packed) {
    const auto gemm = prepare(call);
    return gemm && run(*gemm, call);
  }
  const auto found = kept().find(static_cast<const PackedHeader*>(call.packed)->id, call.m);
  if (!found.lock) return false;
  Prepared& entry = *found.entry;
  if (found.is_new) {
    entry.gemm = prepare(call);
    if (entry.gemm) kept().set_bytes(&entry, entry.gemm->bytes());
  }
  if (entry.gemm && run(*entry.gemm, call)) return true;
  entry.gemm = nullptr;
  return false;
}

AclUse acl_use() { return kept().use(); }
void set_acl_bounds(const AclBounds& bounds) { kept().set_bounds(bounds); }

}  // namespace capibara

#else

namespace capibara {

bool gemm_by_acl(const GemmCall&) { return false; }
AclUse acl_use() { return {}; }
void set_acl_bounds(const AclBounds&) {}

}  // namespace capibara

#endif
