#include "base/arena.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "base/units.h"

namespace drafthorse {

Result<Arena> Arena::reserve(uint64_t bytes, Pages pages) {
  Arena arena;
  if (bytes == 0) return arena;
  const uint64_t rounded = align_up(bytes, kHugePage);
  // One huge page more than needed, so that an aligned start can be cut out of it.
  void* address =
      mmap(nullptr, rounded + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    return memory_error(fmt::format("cannot reserve {} of address space: {}; lower --ram or raise the process's limit",
                                    format_size(rounded), std::strerror(errno)));
  }
  auto* const start = static_cast<std::byte*>(address);
  const uint64_t skip = align_up(reinterpret_cast<uintptr_t>(start), kHugePage) - reinterpret_cast<uintptr_t>(start);
  if (skip != 0) munmap(start, skip);
  if (skip != kHugePage) munmap(start + skip + rounded, kHugePage - skip);
  arena.base_ = start + skip;
  arena.bytes_ = rounded;
  // Only a hint: without huge pages everything works, with slower direct I/O and more TLB misses.
  madvise(arena.base_, arena.bytes_, pages == Pages::kHuge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  return arena;
}

void Arena::give_back(uint64_t offset, uint64_t bytes) const {
  CHECK(offset + bytes <= bytes_);
  const uint64_t first = align_up(offset, kSmallPage);
  const uint64_t end = (offset + bytes) / kSmallPage * kSmallPage;
  if (first < end) CHECK(madvise(base_ + first, end - first, MADV_DONTNEED) == 0);
}

Arena Arena::over(std::byte* base, uint64_t bytes, std::shared_ptr<void> owner) {
  CHECK(owner != nullptr && reinterpret_cast<uintptr_t>(base) % kSmallPage == 0);
  Arena arena;
  arena.base_ = base;
  arena.bytes_ = bytes;
  arena.owner_ = std::move(owner);
  return arena;
}

Arena::~Arena() {
  if (base_ != nullptr && owner_ == nullptr) munmap(base_, bytes_);
}

}  // namespace drafthorse
