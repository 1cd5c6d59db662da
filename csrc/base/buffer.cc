// SPDX-License-Identifier: Apache-2.0
#include "base/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace capibara {
namespace {

constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;

}  // namespace

void* allocate_aligned(size_t bytes) {
  const bool huge = bytes >= kHugePage;
  const size_t alignment = huge ? kHugePage : kLine;
  const size_t whole = (bytes + alignment - 1) / alignment * alignment;
  void* data = whole < bytes ? nullptr : std::aligned_alloc(alignment, whole ? whole : alignment);
  if (!data) throw std::bad_alloc();
  if (huge) madvise(data, whole, MADV_HUGEPAGE);  // a wish: nothing depends on its success
  return data;
}

void free_aligned(void* data) noexcept { std::free(data); }

void Scratch::grow(size_t bytes) {
  free_aligned(data_);
  data_ = nullptr;
  bytes_ = 0;
  data_ = allocate_aligned(bytes);
  bytes_ = bytes;
}

}  // namespace capibara
