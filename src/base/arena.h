// Large memory that is ours alone: page-aligned, on huge pages where the kernel gives them, untouched until used.
//
// The address range is reserved at construction; physical memory comes with the first touch, so an arena may be
// made before it is known whether the budget allows it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "base/status.h"

namespace drafthorse {

inline constexpr uint64_t kHugePage = 2 * 1024 * 1024;
inline constexpr uint64_t kSmallPage = 4096;

// kSmall: for memory that is touched and given back in pieces far smaller than a huge page.
enum class Pages { kHuge, kSmall };

class Arena {
 public:
  Arena() = default;
  // `bytes` is rounded up to whole huge pages. kMemory where the address space cannot be had.
  static Result<Arena> reserve(uint64_t bytes, Pages pages = Pages::kHuge);
  // Memory that `owner` keeps alive, aligned to kSmallPage at least.
  static Arena over(std::byte* base, uint64_t bytes, std::shared_ptr<void> owner);
  ~Arena();
  Arena(Arena&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        owner_(std::move(other.owner_)) {}
  Arena& operator=(Arena&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(bytes_, other.bytes_);
    std::swap(owner_, other.owner_);
    return *this;
  }

  // Physical memory of whole pages in [offset, offset + bytes) goes back to the system; they read as zero.
  void give_back(uint64_t offset, uint64_t bytes) const;

  std::byte* data() const { return base_; }  // aligned to kHugePage, where reserve() made it
  uint64_t bytes() const { return bytes_; }

 private:
  std::byte* base_ = nullptr;
  uint64_t bytes_ = 0;
  std::shared_ptr<void> owner_;  // of memory that is not ours
};

}  // namespace drafthorse
