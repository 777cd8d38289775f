// Where the rows of a tile lie, and what will be read after them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drafthorse::ops::simd {

// Not std::min and std::max: what is no template over the vector would be shared between instruction sets.
template <typename V>
int64_t lesser(int64_t a, int64_t b) {
  return a < b ? a : b;
}
template <typename V>
int64_t greater(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// Row r begins at row(r); offsets are bytes into each row.
//
// Few registers hold all of it: a pointer per four rows. They are hidden from the compiler, which would otherwise
// keep a sum for every row and spill them.
template <typename V>
class Rows {
 public:
  void set(const std::byte* first, size_t stride) {
    stride_ = stride;
    three_strides_ = 3 * stride;
    for (int i = 0; i < V::kLanes / 4; ++i) {
      group_[i] = first + static_cast<size_t>(4 * i) * stride;
      asm("" : "+r"(group_[i]));
    }
  }
  void set_next(const std::byte* next) { next_ = next; }

  const std::byte* row(int r) const {
    const std::byte* group = group_[r / 4];
    switch (r % 4) {
      case 0:
        return group;
      case 1:
        return group + stride_;
      case 2:
        return group + 2 * stride_;
      default:
        return group + three_strides_;
    }
  }

  // Asks for the following kBytes of what comes next. Called as often as as many bytes of the rows are read, so that
  // memory is asked steadily and in the order it lies, which is not the order in which rows side by side are read.
  template <int kBytes>
  void prefetch() {
    for (int i = 0; i < kBytes; i += 64) V::prefetch(next_ + i);
    next_ += kBytes;
  }

 private:
  const std::byte* group_[V::kLanes / 4];
  size_t stride_;
  size_t three_strides_;
  const std::byte* next_;
};

}  // namespace drafthorse::ops::simd
