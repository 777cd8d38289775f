// A tile of weight rows times a block of tokens: each weight block is unpacked once and serves all of them.
//
// Rows lie in the vector's lanes: one lane, one row, so no sum ever crosses lanes. An output is, with x_b the
// activation's block b of 32 or 256 columns and all sums of bytes exact:
//   32:   y = fma(w.scale * x_b.scale, float(sum of byte products), y), block by block
//   256:  part = fma(w.scale[group], float(sum of the group's byte products), part), group by group,
//         part = fma(w.offset, float(sum of group offsets times sums of x), part),
//         y = fma(part, x_b.scale, y), block by block
//   floats: four sums, of columns c with c mod 4 = 0..3, each by fma in order of columns; y = (s0 + s1) + (s2 + s3)
// which depends neither on the vector's width nor on the number of tokens.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/activation.h"
#include "ops/simd/decode.h"
#include "ops/simd/kernels.h"

namespace drafthorse::ops::simd {

// function.template operator()<T>(first) for tiles of T <= kMost tokens.
template <int kMost, typename Function>
inline void for_token_tiles(int64_t tokens, const Function& function) {
  int64_t t = 0;
  for (; t + kMost <= tokens; t += kMost) function.template operator()<kMost>(t);
  if constexpr (kMost > 1) {
    if (t < tokens) {
      for_token_tiles<kMost - 1>(
          tokens - t, [&]<int T>(int64_t first)
                          __attribute__((always_inline)) { function.template operator()<T>(t + first); });
    }
  }
}

template <typename V>
struct Rows {
  // Lanes beyond the last row read the last row again.
  explicit Rows(const TileArguments& a) {
    for (int64_t r = 0; r < V::kLanes; ++r) {
      pointer[r] = a.weights + static_cast<size_t>(r < a.rows ? r : a.rows - 1) * a.row_bytes;
    }
  }
  const std::byte* pointer[V::kLanes];
};

// The memory that the caller reads next, in the order it lies, while this chunk is computed.
template <typename V>
void prefetch_next(const TileArguments& a, size_t offset, size_t bytes) {
  if (a.next == nullptr) return;
  const std::byte* p = a.next + offset * V::kLanes;
  for (size_t i = 0; i < bytes * V::kLanes; i += 64) V::prefetch(p + i);
}

template <typename V, bool kWide>
typename V::I dot_bytes(typename V::I acc, typename V::I w, typename V::I x) {
  return kWide ? V::dot_s8(acc, w, x) : V::dot_u8(acc, w, x);
}

// sum[t] += products of kCount dwords of the tile with those of x[t]
template <typename V, int T, int kCount, bool kWide>
inline void dot_group(typename V::I (&sum)[T], const typename V::I* weights, const std::byte* const (&x)[T],
                      size_t column) {
  for (int k = 0; k < kCount; ++k) {
    const typename V::I w = weights[k];
    for (int t = 0; t < T; ++t) sum[t] = dot_bytes<V, kWide>(sum[t], w, V::broadcast_int(x[t] + column + 4 * k));
  }
}

// Formats of 32 columns.
template <typename V, typename Format>
void tile_of_32(const TileArguments& a) {
  using I = typename V::I;
  using F = typename V::F;
  constexpr int kBlocks = kChunk / 32;
  const Rows<V> rows(a);
  const QuantizedLayout layout(a.columns, 32);
  for (int64_t t = 0; t < a.tokens; ++t) V::store(a.out + t * V::kLanes, V::zero());
  alignas(64) I weights[kChunk / 4];
  F scale[kBlocks];
  const int64_t all = a.columns / 32;
  for (int64_t first = 0; first < all; first += kBlocks) {
    const int blocks = static_cast<int>(all - first < kBlocks ? all - first : kBlocks);
    const size_t offset = static_cast<size_t>(first) * Format::kBytes;
    prefetch_next<V>(a, offset, static_cast<size_t>(blocks) * Format::kBytes);
    for (int b = 0; b < blocks; ++b) scale[b] = Format::scale(rows.pointer, offset + b * Format::kBytes);
    for (int b = 0; b < blocks; ++b) Format::weights(rows.pointer, offset + b * Format::kBytes, weights + 8 * b);
    for_token_tiles<V::kIntTokens>(
        a.tokens, [&]<int T>(int64_t t0) __attribute__((always_inline)) {
          const std::byte* x[T];
          F y[T];
          for (int t = 0; t < T; ++t) x[t] = a.x[t0 + t];
          for (int t = 0; t < T; ++t) y[t] = V::load(a.out + (t0 + t) * V::kLanes);
          for (int b = 0; b < blocks; ++b) {
            const auto block = static_cast<size_t>(first + b);
            I sum[T];
            for (int t = 0; t < T; ++t) {
              sum[t] = V::zero_int();
              if constexpr (Format::kBiasShift >= 0) {
                const I negated = V::broadcast_int(x[t] + layout.negated_sum + 4 * block);
                sum[t] = V::template shift_left<Format::kBiasShift>(negated);
              }
            }
            dot_group<V, T, 8, Format::kWide>(sum, weights + 8 * b, x, 32 * block);
            for (int t = 0; t < T; ++t) {
              const F x_scale = V::broadcast(reinterpret_cast<const float*>(x[t] + layout.scale) + block);
              y[t] = V::fma(V::mul(scale[b], x_scale), V::to_float(sum[t]), y[t]);
            }
          }
          for (int t = 0; t < T; ++t) V::store(a.out + (t0 + t) * V::kLanes, y[t]);
        });
  }
}

// Formats of 256 columns.
template <typename V, typename Format>
void tile_of_256(const TileArguments& a) {
  using I = typename V::I;
  using F = typename V::F;
  constexpr int kGroups = kChunk / Format::kGroup;
  constexpr bool kBiased = Format::kWide && V::kSignedBias != 0;
  const Rows<V> rows(a);
  const QuantizedLayout layout(a.columns, 256);
  for (int64_t t = 0; t < a.tokens; ++t) V::store(a.out + t * V::kLanes, V::zero());
  IntTile<V> tile;
  const int64_t blocks = a.columns / kChunk;
  for (int64_t block = 0; block < blocks; ++block) {
    const size_t offset = static_cast<size_t>(block) * Format::kBytes;
    prefetch_next<V>(a, offset, Format::kBytes);
    Format::decode(rows.pointer, offset, tile);
    for_token_tiles<V::kIntTokens>(
        a.tokens, [&]<int T>(int64_t t0) __attribute__((always_inline)) {
          const std::byte* x[T];
          F part[T];
          for (int t = 0; t < T; ++t) x[t] = a.x[t0 + t];
          for (int t = 0; t < T; ++t) part[t] = V::zero();
          for (int g = 0; g < kGroups; ++g) {
            I sum[T];
            for (int t = 0; t < T; ++t) {
              sum[t] = V::zero_int();
              if constexpr (kBiased) {
                const size_t at = layout.negated_sum + 4 * static_cast<size_t>(8 * block + g * Format::kGroup / 32);
                sum[t] = V::template shift_left<7>(V::broadcast_int(x[t] + at));
              }
            }
            dot_group<V, T, Format::kGroup / 4, Format::kWide>(
                sum, tile.weights + g * (Format::kGroup / 4), x,
                static_cast<size_t>(block * kChunk + g * Format::kGroup));
            for (int t = 0; t < T; ++t) part[t] = V::fma(tile.scale[g], V::to_float(sum[t]), part[t]);
          }
          if constexpr (Format::kOffset != GroupOffset::kNone) {
            constexpr bool k16 = Format::kOffset == GroupOffset::kPer16;
            const size_t sums = (k16 ? layout.sum_16 + 32 * static_cast<size_t>(block)
                                     : layout.sum_32 + 16 * static_cast<size_t>(block));
            I sum[T];
            for (int t = 0; t < T; ++t) sum[t] = V::zero_int();
            for (int i = 0; i < (k16 ? 8 : 4); ++i) {
              for (int t = 0; t < T; ++t) {
                sum[t] = V::dot_s16(sum[t], tile.group_offset[i], V::broadcast_int(x[t] + sums + 4 * i));
              }
            }
            for (int t = 0; t < T; ++t) part[t] = V::fma(tile.offset, V::to_float(sum[t]), part[t]);
          }
          for (int t = 0; t < T; ++t) {
            float* out = a.out + (t0 + t) * V::kLanes;
            const F x_scale = V::broadcast(reinterpret_cast<const float*>(x[t] + layout.scale) + block);
            V::store(out, V::fma(part[t], x_scale, V::load(out)));
          }
        });
  }
}

// Floats.
template <typename V, typename Format>
void tile_of_floats(const TileArguments& a) {
  using F = typename V::F;
  constexpr int kColumns = 64;  // decoded at a time
  constexpr int kStep = Format::kColumns;
  const Rows<V> rows(a);
  alignas(64) F sums[kTokenBlock][4];
  for (int64_t t = 0; t < a.tokens; ++t) {
    for (F& sum : sums[t]) sum = V::zero();
  }
  alignas(64) F weights[kColumns];
  for (int64_t first = 0; first < a.columns; first += kColumns) {
    const int count = static_cast<int>(a.columns - first < kColumns ? a.columns - first : kColumns);
    const size_t offset = static_cast<size_t>(first) * Format::kBytes;
    prefetch_next<V>(a, offset, static_cast<size_t>(count) * Format::kBytes);
    const int whole = count / kStep * kStep;
    for (int c = 0; c < whole; c += kStep) {
      Format::decode(rows.pointer, offset + static_cast<size_t>(c) * Format::kBytes, weights + c);
    }
    if (whole < count) {  // no byte beyond the row is read
      alignas(16) std::byte rest[V::kLanes][16] = {};
      const std::byte* rest_rows[V::kLanes];
      for (int r = 0; r < V::kLanes; ++r) {
        std::memcpy(rest[r], rows.pointer[r] + offset + static_cast<size_t>(whole) * Format::kBytes,
                    static_cast<size_t>(count - whole) * Format::kBytes);
        rest_rows[r] = rest[r];
      }
      Format::decode(rest_rows, 0, weights + whole);
    }
    // Columns added up to a multiple of four are zero in both.
    for_token_tiles<V::kFloatTokens>(
        a.tokens, [&]<int T>(int64_t t0) __attribute__((always_inline)) {
          const float* x[T];
          F sum[T][4];
          for (int t = 0; t < T; ++t) {
            x[t] = reinterpret_cast<const float*>(a.x[t0 + t]) + first;
            for (int p = 0; p < 4; ++p) sum[t][p] = sums[t0 + t][p];
          }
          for (int c = 0; c < count; c += 4) {
            for (int p = 0; p < 4; ++p) {
              const F w = weights[c + p];
              for (int t = 0; t < T; ++t) sum[t][p] = V::fma(w, V::broadcast(x[t] + c + p), sum[t][p]);
            }
          }
          for (int t = 0; t < T; ++t) {
            for (int p = 0; p < 4; ++p) sums[t0 + t][p] = sum[t][p];
          }
        });
  }
  for (int64_t t = 0; t < a.tokens; ++t) {
    V::store(a.out + t * V::kLanes, V::add(V::add(sums[t][0], sums[t][1]), V::add(sums[t][2], sums[t][3])));
  }
}

}  // namespace drafthorse::ops::simd
