// SPDX-License-Identifier: Apache-2.0
#include "support/guarded_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace capibara::test {
namespace {

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

void GuardedBuffer::map() {
  const size_t page = page_bytes();
  pages_bytes_ = (bytes_ + page - 1) / page * page;
  void* mapped =
      mmap(nullptr, pages_bytes_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  pages_ = static_cast<char*>(mapped) + page;
  if (pages_bytes_ && mprotect(pages_, pages_bytes_, PROT_READ | PROT_WRITE)) {
    munmap(mapped, pages_bytes_ + 2 * page);
    throw std::bad_alloc();
  }
  data_ = guard_ == Guard::kAfter ? pages_ + pages_bytes_ - bytes_ : pages_;
}

GuardedBuffer::GuardedBuffer(size_t bytes, Guard guard) : bytes_(bytes), guard_(guard) {
  map();
  std::memset(pages_, kCanary, pages_bytes_);
}

GuardedBuffer::GuardedBuffer(const GuardedBuffer& other)
    : bytes_(other.bytes_), guard_(other.guard_) {
  map();
  std::memcpy(pages_, other.pages_, pages_bytes_);
}

GuardedBuffer::~GuardedBuffer() { munmap(pages_ - page_bytes(), pages_bytes_ + 2 * page_bytes()); }

bool is_canary(const char* begin, const char* end) {
  return std::all_of(
      begin, end, [](char byte) { return static_cast<uint8_t>(byte) == GuardedBuffer::kCanary; });
}

}  // namespace capibara::test
