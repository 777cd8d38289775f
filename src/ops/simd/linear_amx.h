// What an instruction set with matrix tiles (Intel AMX) does better than vectors: products of many tokens with the
// sixteen rows of a tile in one instruction. For vectors that say which Tiles they have (TiledVector).
//
// Tiles are used as the processor's manual describes them: A holds a token per row, as its bytes lie in memory; B holds
// dword k of all weight rows in its row k, which is how weights are unpacked anyway; C gets a token per row and a
// weight row per column.
//
// Whole numbers are summed by tiles and scaled by vectors, in the order of linear_tile.h: the same bits. BF16 weights
// have an order of their own, that of TDPBF16PS, from one token on: per 32 columns the even ones and the odd ones are
// summed by fma, the two added, and that added to the output; subnormal numbers are taken for zero, and made zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

#include "ops/activation.h"
#include "ops/simd/linear_tile.h"

namespace drafthorse::ops::simd {
namespace {  // code of one instruction set must never stand in for another's: internal on purpose

// What LDTILECFG reads.
struct TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

inline constexpr int kTileRows = 16;

// Part of up to kTileRows tokens' rows, one after the other: the tokens of an expert lie anywhere.
template <int kBytes>
struct TokenCopy {
  alignas(64) std::byte row[kTileRows][kBytes] = {};
  void take(const std::byte* const* x, int64_t tokens, size_t offset, size_t bytes) {
    for (int64_t t = 0; t < tokens; ++t) std::memcpy(row[t], x[t] + offset, bytes);
  }
};

}  // namespace

// A vector with tiles. T{config} configures the calling thread's tiles until it is destroyed; its operations are the
// instructions, the tiles' numbers being template arguments.
template <typename V, typename T>
struct TiledVector : V {
  static_assert(V::kSignedBias == 128, "bytes of weights are unsigned in B");
  using Tiles = T;
};
template <typename V>
concept HasTiles = requires {
  typename V::Tiles;
};

// Two sets of C, A and B, used in turn, so that one can be loaded while the other multiplies.
template <typename V, int kColumnBytes>
TileConfig two_sets(int64_t tokens) {
  TileConfig config;
  for (int first = 0; first < 6; first += 3) {
    config.rows[first] = config.rows[first + 1] = static_cast<uint8_t>(lesser<V>(tokens, kTileRows));
    config.rows[first + 2] = kColumnBytes / 4;
    config.row_bytes[first] = config.row_bytes[first + 2] = sizeof(typename V::I);
    config.row_bytes[first + 1] = kColumnBytes;
  }
  return config;
}

template <typename V, int kColumns, typename Format>
requires HasTiles<V>
class GroupSums<V, kColumns, Format> {
  using I = typename V::I;

 public:
  static constexpr int64_t kTokens = kTileRows;

  explicit GroupSums(int64_t tokens) {
    if (tokens > kFewTokens) tiles_.emplace(two_sets<V, kColumns>(tokens));
  }

  void prepare(const I* weights, int groups, const std::byte* const* x, int64_t tokens, size_t column) {
    prepared_ = tokens > kFewTokens;
    if (!prepared_) return;
    x_.take(x, tokens, column, static_cast<size_t>(groups * kColumns));
    for (int g = 0; g < groups; ++g) g % 2 == 0 ? multiply<0>(weights, g) : multiply<3>(weights, g);
  }

  template <int T>
  __attribute__((always_inline)) void add(I (&sum)[T], int group, const I* weights, const std::byte* const (&x)[T],
                                          size_t column, int64_t token) const {
    if (!prepared_) return dot_group<V, T, kColumns / 4, Format>(sum, weights, x, column);
    for (int t = 0; t < T; ++t) sum[t] = V::add_int(sum[t], V::load_int(&sums_[group][token + t]));
  }

 private:
  // Fewer tokens than this many, or as many, are multiplied as quickly by vectors, without a copy.
  static constexpr int64_t kFewTokens = 4;

  template <int kC>
  void multiply(const I* weights, int group) {
    tiles_->template zero<kC>();
    tiles_->template load<kC + 1>(x_.row[0] + group * kColumns, kChunk);
    tiles_->template load<kC + 2>(weights + group * (kColumns / 4), sizeof(I));
    tiles_->template dot_signed_by_unsigned<kC, kC + 1, kC + 2>();
    tiles_->template store<kC>(sums_[group], sizeof(I));
  }

  std::optional<typename V::Tiles> tiles_;
  bool prepared_ = false;
  TokenCopy<kChunk> x_;
  alignas(64) I sums_[kChunk / kColumns][kTileRows];
};

template <typename V>
void tile_of_bf16_pairs(const TileArguments& a) {
  using I = typename V::I;
  constexpr int kColumns = 32;  // of one multiplication, zeros after the last: as many stand in the activations
  static_assert(kColumns == kFloatPadding);
  constexpr int kStepBytes = 2 * kColumns;
  constexpr int kMostSteps = 4;
  constexpr size_t kMostBytes = kMostSteps * kStepBytes;  // of a row at once
  static_assert(kMostBytes <= Chunk<V>::kMostBytes);
  typename V::Tiles tiles(two_sets<V, kStepBytes>(a.tokens));
  Chunk<V> chunk(a);
  TokenCopy<kMostBytes> x;
  alignas(64) float sums[kTokenBlock][V::kLanes] = {};
  alignas(64) I weights[kMostBytes / 4];
  alignas(64) std::byte rest[V::kLanes][kMostBytes] = {};
  Rows<V> rest_rows;
  const auto multiply = [&]<int kC>(int64_t token, int steps) {
    tiles.template load<kC>(sums[token], sizeof sums[0]);
    for (int s = 0; s < steps; ++s) {
      tiles.template load<kC + 1>(x.row[0] + s * kStepBytes, kMostBytes);
      tiles.template load<kC + 2>(weights + s * (kStepBytes / 4), sizeof(I));
      tiles.template dot_bf16<kC, kC + 1, kC + 2>();
    }
    tiles.template store<kC>(sums[token], sizeof sums[0]);
  };
  const size_t row_bytes = 2 * static_cast<size_t>(a.columns);
  for (size_t offset = 0; offset < row_bytes; offset += kMostBytes) {
    const size_t left = row_bytes - offset;
    const size_t bytes = left < kMostBytes ? left : kMostBytes;
    const int steps = static_cast<int>((bytes + kStepBytes - 1) / kStepBytes);
    Rows<V>* rows = &rest_rows;
    if (bytes % kStepBytes == 0) {
      rows = &chunk.move_to(offset, bytes);
    } else {
      for (int64_t r = 0; r < a.rows; ++r) {
        std::memcpy(rest[r], a.weights + static_cast<size_t>(r) * a.row_bytes + offset, bytes);
      }
      rows->set(rest[0], kMostBytes);
      rows->set_next(rest[0]);
    }
    for (int i = 0; i < 4 * steps; ++i) {
      I dwords[4];
      load_columns<V>(*rows, 16 * static_cast<size_t>(i), dwords);
      for (int k = 0; k < 4; ++k) weights[4 * i + k] = dwords[k];
    }
    for (int64_t t = 0; t < a.tokens; t += kTileRows) {
      x.take(a.x + t, lesser<V>(kTileRows, a.tokens - t), bf16_offset(a.columns) + offset,
             static_cast<size_t>(steps * kStepBytes));
      t / kTileRows % 2 == 0 ? multiply.template operator()<0>(t, steps) : multiply.template operator()<3>(t, steps);
    }
  }
  std::memcpy(a.out, sums, static_cast<size_t>(a.tokens) * sizeof sums[0]);
}

}  // namespace drafthorse::ops::simd
