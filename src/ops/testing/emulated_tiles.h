// The tiles of AMX in plain C++, for tests on processors without them: each operation does what the instruction of
// that name does by Intel's manual (Software Developer's Manual, volume 2), and refuses what the instruction would
// fault on.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "ops/simd/linear_amx.h"

namespace drafthorse::ops::simd {
namespace {  // compiled for several instruction sets

class EmulatedTiles {
 public:
  // LDTILECFG: palette 1 is eight tiles of at most 16 rows of 64 bytes, all cleared.
  explicit EmulatedTiles(const TileConfig& config) : config_(config) {
    CHECK(config.palette == 1 && config.start_row == 0);
    for (const uint8_t byte : config.reserved) CHECK(byte == 0);
    for (int i = 0; i < 16; ++i) {
      CHECK(config.rows[i] <= (i < kTiles ? 16 : 0) && config.row_bytes[i] <= (i < kTiles ? 64 : 0));
      CHECK((config.rows[i] == 0) == (config.row_bytes[i] == 0));
    }
  }
  EmulatedTiles(const EmulatedTiles&) = delete;
  EmulatedTiles& operator=(const EmulatedTiles&) = delete;

  template <int kTile>
  void zero() {
    check_configured<kTile>();
    std::memset(tiles_[kTile], 0, sizeof tiles_[kTile]);
  }
  // TILELOADD: rows and bytes beyond those configured are cleared.
  template <int kTile>
  void load(const void* p, size_t stride) {
    zero<kTile>();
    for (size_t r = 0; r < config_.rows[kTile]; ++r) {
      std::memcpy(tiles_[kTile][r], static_cast<const std::byte*>(p) + r * stride, config_.row_bytes[kTile]);
    }
  }
  // TILESTORED
  template <int kTile>
  void store(void* p, size_t stride) const {
    check_configured<kTile>();
    for (size_t r = 0; r < config_.rows[kTile]; ++r) {
      std::memcpy(static_cast<std::byte*>(p) + r * stride, tiles_[kTile][r], config_.row_bytes[kTile]);
    }
  }

  // TDPBSUD
  template <int kC, int kA, int kB>
  void dot_signed_by_unsigned() {
    check_shapes<kC, kA, kB>();
    for (int m = 0; m < config_.rows[kC]; ++m) {
      for (int k = 0; k < config_.row_bytes[kA] / 4; ++k) {
        const auto a = get<uint32_t>(kA, m, k);
        for (int n = 0; n < config_.row_bytes[kC] / 4; ++n) {
          const auto b = get<uint32_t>(kB, k, n);
          auto c = get<uint32_t>(kC, m, n);
          for (int byte = 0; byte < 32; byte += 8) {
            c += static_cast<uint32_t>(static_cast<int8_t>(a >> byte) * static_cast<int32_t>(b >> byte & 0xFF));
          }
          put(kC, m, n, c);
        }
      }
    }
  }

  // TDPBF16PS
  template <int kC, int kA, int kB>
  void dot_bf16() {
    check_shapes<kC, kA, kB>();
    for (int m = 0; m < config_.rows[kC]; ++m) {
      for (int n = 0; n < config_.row_bytes[kC] / 4; ++n) {
        float even = 0;
        float odd = 0;
        for (int k = 0; k < config_.row_bytes[kA] / 4; ++k) {
          const auto a = get<uint32_t>(kA, m, k);
          const auto b = get<uint32_t>(kB, k, n);
          even = fma(std::bit_cast<float>(a << 16), std::bit_cast<float>(b << 16), even);
          odd = fma(std::bit_cast<float>(a & 0xFFFF0000), std::bit_cast<float>(b & 0xFFFF0000), odd);
        }
        put(kC, m, n, fma(1, get<float>(kC, m, n), fma(1, even, odd)));
      }
    }
  }

 private:
  static constexpr int kTiles = 8;

  // Rounded once, to nearest; subnormal numbers are taken for zero, and so is what rounds to less than a normal one.
  static float fma(float a, float b, float c) {
    a = flushed(a);
    b = flushed(b);
    c = flushed(c);
    const float sum = std::fma(a, b, c);
    const double exact = static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c);
    return std::abs(exact) < 0x1p-126 - 0x1p-151 ? std::copysign(0.0F, sum) : sum;
  }
  static float flushed(float x) { return std::abs(x) < 0x1p-126F ? std::copysign(0.0F, x) : x; }

  template <int kTile>
  void check_configured() const {
    static_assert(kTile < kTiles);
    CHECK(config_.rows[kTile] > 0);
  }
  template <int kC, int kA, int kB>
  void check_shapes() const {
    static_assert(kC != kA && kC != kB && kA != kB);
    check_configured<kC>();
    check_configured<kA>();
    check_configured<kB>();
    CHECK(config_.rows[kA] == config_.rows[kC] && config_.row_bytes[kB] == config_.row_bytes[kC]);
    CHECK(config_.row_bytes[kA] == 4 * config_.rows[kB] && config_.row_bytes[kC] % 4 == 0);
  }

  template <typename T>
  T get(int tile, int row, int dword) const {
    T value;
    std::memcpy(&value, tiles_[tile][row] + 4 * dword, sizeof value);
    return value;
  }
  template <typename T>
  void put(int tile, int row, int dword, T value) {
    std::memcpy(tiles_[tile][row] + 4 * dword, &value, sizeof value);
  }

  TileConfig config_;
  std::byte tiles_[kTiles][16][64] = {};
};

}  // namespace
}  // namespace drafthorse::ops::simd
