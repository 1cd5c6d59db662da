// SPDX-License-Identifier: Apache-2.0
// Memory whose edges are checked: a page that may not be touched on either side, the data flush
// against one of them, and every other byte of the pages between them a canary.
#pragma once

#include <cstddef>
#include <cstdint>

namespace capibara::test {

// Which neighbour of the data is the forbidden page; at the other end, the canary notices writes.
enum class Guard { kAfter, kBefore };
constexpr Guard kGuards[] = {Guard::kAfter, Guard::kBefore};

class GuardedBuffer {
 public:
  static constexpr uint8_t kCanary = 0xa5;

  // All bytes, those of the data too, are canaries at first. Throws std::bad_alloc.
  GuardedBuffer(size_t bytes, Guard guard);
  GuardedBuffer(const GuardedBuffer& other);  // the same bytes at the same edge
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;
  ~GuardedBuffer();

  char* data() const { return data_; }
  // Everything that may be touched: [pages_begin, pages_end), which contains the data.
  const char* pages_begin() const { return pages_; }
  const char* pages_end() const { return pages_ + pages_bytes_; }

 private:
  void map();

  size_t bytes_;
  Guard guard_;
  char *pages_, *data_;
  size_t pages_bytes_;
};

// True if all of [begin, end) are canaries.
bool is_canary(const char* begin, const char* end);

}  // namespace capibara::test
