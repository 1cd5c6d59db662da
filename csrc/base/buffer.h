// SPDX-License-Identifier: Apache-2.0
// Memory for packed operands: aligned to a cache line, in huge pages where it is large.
#pragma once

#include <cstddef>

namespace capibara {

// Uninitialised; throws std::bad_alloc. From 2 MiB on at a multiple of that, with huge pages asked
// for: a matrix of tens of megabytes read through 4 KiB pages misses the TLB all the time.
void* allocate_aligned(size_t bytes);
void free_aligned(void* data) noexcept;

// Kept from call to call, growing to the largest that was asked for.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free_aligned(data_); }

  void* get(size_t bytes) {
    if (bytes > bytes_) grow(bytes);
    return data_;
  }

 private:
  void grow(size_t bytes);

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace capibara
