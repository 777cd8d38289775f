// A tile of weight rows times a block of tokens: each weight block is unpacked once and serves all of them.
//
// An output is, with x_b the activation's block b of 32 or 256 columns and all sums of bytes exact:
//   32:   y = fma(w.scale * x_b.scale, float(sum of byte products), y), block by block
//   256:  part = fma(w.scale[group], float(sum of the group's byte products), part), group by group,
//         part = fma(w.offset, float(sum of group offsets times sums of x), part),
//         y = fma(part, x_b.scale, y), block by block
//   floats: sixteen sums, s_l of the columns c with c mod 16 = l, each by fma in order of columns; upper half added to
//       lower half until one is left
// which depends neither on the vector's width nor on the number of tokens. BF16 alone has other orders, where the
// processor multiplies pairs (Bf16Pairs, and linear_amx.h).
//
// Where weights are whole numbers, rows lie in the vector's lanes: one lane, one row, so no sum ever crosses lanes.
// Floats lie as in memory, columns in lanes: they are read faster than they could be transposed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ops/activation.h"
#include "ops/simd/decode.h"
#include "ops/simd/equal_tiles.h"
#include "ops/simd/kernels.h"

namespace drafthorse::ops::simd {

// The part of a tile's rows that is being decoded. A tile with fewer rows than lanes goes through a copy, so that no
// byte beyond its rows is read.
template <typename V>
class Chunk {
 public:
  static constexpr size_t kMostBytes = 288;  // of one row

  explicit Chunk(const TileArguments& a) : a_(a), whole_(a.rows == V::kLanes) {
    if (!whole_) std::memset(copy_, 0, sizeof copy_);
  }
  // Bytes [offset, offset + bytes) of each row.
  Rows<V>& move_to(size_t offset, size_t bytes) {
    if (whole_) {
      rows_.set(a_.weights + offset, a_.row_bytes);
    } else {
      for (int64_t r = 0; r < a_.rows; ++r) {
        std::memcpy(copy_ + static_cast<size_t>(r) * kMostBytes,
                    a_.weights + offset + static_cast<size_t>(r) * a_.row_bytes, bytes);
      }
      rows_.set(copy_, kMostBytes);
    }
    // The next tile's bytes lie one after the other, all rows of it.
    rows_.set_next(a_.next == nullptr ? copy_ : a_.next + offset * V::kLanes);
    return rows_;
  }

 private:
  const TileArguments& a_;
  bool whole_;
  Rows<V> rows_;
  alignas(64) std::byte copy_[V::kLanes * kMostBytes];
};

template <typename V, typename Format>
typename V::I dot_bytes(typename V::I acc, typename V::I w, typename V::I x) {
  return Format::kWide ? V::dot_s8(acc, w, x) : V::dot_u8(acc, w, x);
}

// Of so many dwords of weights the products' pairs can be summed in 16 bits, whatever the activations: at least 1.
template <typename V, typename Format>
constexpr int dwords_in_words() {
  if constexpr (!V::kSumsWords || Format::kWide) {
    return 1;
  } else {
    return INT16_MAX / (2 * 128 * Format::kMost);
  }
}

// sum[t] += products of kCount dwords of the tile with those of x[t]
template <typename V, int T, int kCount, typename Format>
inline void dot_group(typename V::I (&sum)[T], const typename V::I* weights, const std::byte* const (&x)[T],
                      size_t column) {
  constexpr int kAtOnce = dwords_in_words<V, Format>() < kCount ? dwords_in_words<V, Format>() : kCount;
  if constexpr (kAtOnce == 1) {
    for (int k = 0; k < kCount; ++k) {
      const typename V::I w = weights[k];
      for (int t = 0; t < T; ++t) sum[t] = dot_bytes<V, Format>(sum[t], w, V::broadcast_int(x[t] + column + 4 * k));
    }
  } else {
    static_assert(kCount % kAtOnce == 0);
    for (int first = 0; first < kCount; first += kAtOnce) {
      typename V::I words[T];
      for (int k = first; k < first + kAtOnce; ++k) {
        const typename V::I w = weights[k];
        for (int t = 0; t < T; ++t) {
          const typename V::I pairs = V::pairs_u8(w, V::broadcast_int(x[t] + column + 4 * k));
          words[t] = k == first ? pairs : V::add_words(words[t], pairs);
        }
      }
      for (int t = 0; t < T; ++t) sum[t] = V::add_pairs(sum[t], words[t]);
    }
  }
}

// Sums of byte products, group by group of kColumns columns. This one multiplies when it is asked for a sum; with
// matrix tiles (linear_amx.h) the sums of kTokens tokens are there before.
template <typename V, int kColumns, typename Format>
class GroupSums {
 public:
  static constexpr int64_t kTokens = kTokenBlock;
  // tokens: how many there are in all
  explicit GroupSums(int64_t) {}
  // Of `groups` groups of unpacked weights, the first of them at `column`, with the next tokens, at most kTokens.
  void prepare(const typename V::I* /*weights*/, int /*groups*/, const std::byte* const* /*x*/, int64_t /*tokens*/,
               size_t /*column*/) {}
  // sum[t] += group `group` times x[t], the prepared tokens from `token` on. weights, column: the group's.
  template <int T>
  __attribute__((always_inline)) void add(typename V::I (&sum)[T], int /*group*/, const typename V::I* weights,
                                          const std::byte* const (&x)[T], size_t column, int64_t /*token*/) const {
    dot_group<V, T, kColumns / 4, Format>(sum, weights, x, column);
  }
};

// Formats of 32 columns.
template <typename V, typename Format>
void tile_of_32(const TileArguments& a) {
  using I = typename V::I;
  using F = typename V::F;
  constexpr int kBlocks = kChunk / 32;
  Chunk<V> chunk(a);
  const QuantizedLayout layout(a.columns, 32);
  for (int64_t t = 0; t < a.tokens; ++t) V::store(a.out + t * V::kLanes, V::zero());
  alignas(64) I weights[kChunk / 4];
  F scale[kBlocks];
  using Sums = GroupSums<V, 32, Format>;
  Sums sums(a.tokens);
  const int64_t all = a.columns / 32;
  for (int64_t first = 0; first < all; first += kBlocks) {
    const int blocks = static_cast<int>(lesser<V>(all - first, kBlocks));
    const size_t offset = static_cast<size_t>(first) * Format::kBytes;
    Rows<V>& rows = chunk.move_to(offset, static_cast<size_t>(blocks) * Format::kBytes);
    for (int b = 0; b < blocks; ++b) scale[b] = Format::scale(rows, b * Format::kBytes);
    for (int b = 0; b < blocks; ++b) {
      Format::weights(rows, b * Format::kBytes, weights + 8 * b);
    }
    for (int64_t token = 0; token < a.tokens; token += Sums::kTokens) {
      const int64_t tokens = lesser<V>(Sums::kTokens, a.tokens - token);
      sums.prepare(weights, blocks, a.x + token, tokens, 32 * static_cast<size_t>(first));
      for_equal_tiles<V::kIntTokens>(
          tokens, [&]<int T>(int64_t tile) __attribute__((always_inline)) {
            const int64_t t0 = token + tile;
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
              sums.template add<T>(sum, b, weights + 8 * b, x, 32 * block, tile);
              for (int t = 0; t < T; ++t) {
                const F x_scale = V::broadcast(reinterpret_cast<const float*>(x[t] + layout.scale) + block);
                y[t] = V::fma(V::mul(scale[b], x_scale), V::to_float(sum[t]), y[t]);
              }
            }
            for (int t = 0; t < T; ++t) V::store(a.out + (t0 + t) * V::kLanes, y[t]);
          });
    }
  }
}

// Formats of 256 columns.
template <typename V, typename Format>
void tile_of_256(const TileArguments& a) {
  using I = typename V::I;
  using F = typename V::F;
  constexpr int kGroups = kChunk / Format::kGroup;
  constexpr bool kBiased = Format::kWide && V::kSignedBias != 0;
  Chunk<V> chunk(a);
  const QuantizedLayout layout(a.columns, 256);
  for (int64_t t = 0; t < a.tokens; ++t) V::store(a.out + t * V::kLanes, V::zero());
  IntTile<V> tile;
  using Sums = GroupSums<V, Format::kGroup, Format>;
  Sums sums(a.tokens);
  const int64_t blocks = a.columns / kChunk;
  for (int64_t block = 0; block < blocks; ++block) {
    const size_t offset = static_cast<size_t>(block) * Format::kBytes;
    Format::decode(chunk.move_to(offset, Format::kBytes), 0, tile);
    for (int64_t token = 0; token < a.tokens; token += Sums::kTokens) {
      const int64_t tokens = lesser<V>(Sums::kTokens, a.tokens - token);
      sums.prepare(tile.weights, kGroups, a.x + token, tokens, static_cast<size_t>(block * kChunk));
      for_equal_tiles<V::kIntTokens>(
          tokens, [&]<int T>(int64_t first) __attribute__((always_inline)) {
            const int64_t t0 = token + first;
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
              sums.template add<T>(sum, g, tile.weights + g * (Format::kGroup / 4), x,
                                   static_cast<size_t>(block * kChunk + g * Format::kGroup), first);
              for (int t = 0; t < T; ++t) part[t] = V::fma(tile.scale[g], V::to_float(sum[t]), part[t]);
            }
            if constexpr (Format::kOffset != GroupOffset::kNone) {
              constexpr bool k16 = Format::kOffset == GroupOffset::kPer16;
              const size_t x_sums = (k16 ? layout.sum_16 + 32 * static_cast<size_t>(block)
                                         : layout.sum_32 + 16 * static_cast<size_t>(block));
              I sum[T];
              for (int t = 0; t < T; ++t) sum[t] = V::zero_int();
              for (int i = 0; i < (k16 ? 8 : 4); ++i) {
                for (int t = 0; t < T; ++t) {
                  sum[t] = V::dot_s16(sum[t], tile.group_offset[i], V::broadcast_int(x[t] + x_sums + 4 * i));
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
}

// --- floats

inline constexpr int kFloatSums = 16;  // per output

// sums[row][token] += `steps` times kFloatSums columns (twice as many where the format is of pairs); of these sums,
// which fill one vector or several, P vectors. Asks for as many bytes of the rows `ahead` if there are any: so few
// columns of so few rows are too short for a processor to foresee what comes after them.
template <typename V, typename Format, int R, int T, int P, bool kAhead>
inline void multiply_floats(const std::byte* const* weights, const std::byte* const* ahead, const std::byte* const* x,
                            int64_t steps, int first_part, typename V::F* sums, int64_t token_stride) {
  using F = typename V::F;
  constexpr int kParts = kFloatSums / V::kLanes;
  F sum[R][T][P];
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) {
      for (int p = 0; p < P; ++p) sum[r][t][p] = sums[t * token_stride + r * kParts + first_part + p];
    }
  }
  for (int64_t step = 0; step < steps; ++step) {
    for (int p = 0; p < P; ++p) {
      const auto at = static_cast<size_t>(step * kParts + first_part + p);
      F w[R];
      for (int r = 0; r < R; ++r) w[r] = Format::load(weights[r] + at * Format::kVectorBytes);
      for (int t = 0; t < T; ++t) {
        F token = V::load(reinterpret_cast<const float*>(x[t] + at * sizeof(F)));
        if constexpr (R > 1) V::keep(token);
        for (int r = 0; r < R; ++r) sum[r][t][p] = Format::multiply(w[r], token, sum[r][t][p]);
      }
    }
    // At the end of the step: before it GCC keeps the sums in memory.
    if constexpr (kAhead) {
      if (first_part == 0) {
        for (int r = 0; r < R; ++r) V::prefetch(ahead[r] + static_cast<size_t>(step) * kParts * Format::kVectorBytes);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) {
      for (int p = 0; p < P; ++p) sums[t * token_stride + r * kParts + first_part + p] = sum[r][t][p];
    }
  }
}

template <typename V>
float fold_sums(const typename V::F* sums) {
  if constexpr (V::kLanes == kFloatSums) {
    return V::fold(sums[0]);
  } else {
    return V::fold(sums[0], sums[1]);
  }
}

// Chunk after chunk of columns, few enough that a few tokens' stay in the first cache while all rows pass over them.
// For many tokens weights are converted to floats once for all of them.
template <typename V, typename Format>
void tile_of_floats(const TileArguments& a) {
  using F = typename V::F;
  constexpr int R = V::kFloatRows;
  constexpr int kParts = kFloatSums / V::kLanes;
  constexpr int kStepColumns = kParts * Format::kVectorColumns;
  constexpr size_t kStepBytes = kParts * Format::kVectorBytes;
  constexpr size_t kColumnBytes = kStepBytes / kStepColumns;
  constexpr int64_t kMostConverted = 512;
  const int64_t cached = a.tokens > V::kFewTokens ? 512 : 1024;
  constexpr size_t kXBytes = Format::kPairs ? 2 : 4;
  const size_t x_offset = Format::kPairs ? bf16_offset(a.columns) : 0;
  const bool converts = Format::kVectorBytes != sizeof(F) && a.tokens > V::kUnconvertedTokens;
  alignas(64) F sums[kTokenBlock * V::kLanes * kParts];
  alignas(64) float converted[V::kLanes][kMostConverted];
  const std::byte* weights[V::kLanes + R];
  const std::byte* next[V::kLanes + R];  // what comes after them, never read: the next tile may have fewer rows
  // Rows up to a multiple of R are computed; those beyond the last are the last again.
  const int64_t rows = (a.rows + R - 1) / R * R;
  const auto row = [&](int64_t r) { return a.weights + static_cast<size_t>(lesser<V>(r, a.rows - 1)) * a.row_bytes; };
  const auto multiply = [&]<typename Loader, bool kAhead>(Loader, std::bool_constant<kAhead>, int64_t steps,
                                                          int64_t column) {
    for_equal_tiles<V::kFloatTokens>(
        a.tokens, [&]<int T>(int64_t t0) __attribute__((always_inline)) {
          const std::byte* x[T];
          for (int t = 0; t < T; ++t) x[t] = a.x[t0 + t] + x_offset + static_cast<size_t>(column) * kXBytes;
          // As many sums as there are registers for.
          constexpr int P = R * T * kParts <= V::kMostFloatVectors ? kParts : 1;
          for (int64_t r = 0; r < rows; r += R) {
            for (int part = 0; part < kParts; part += P) {
              // Rows are gone through R at a time, and then the next columns'.
              multiply_floats<V, Loader, R, T, P, kAhead>(weights + r, weights + r + R, x, steps, part,
                                                          sums + (t0 * V::kLanes + r) * kParts, V::kLanes * kParts);
            }
          }
        });
  };

  for (int64_t i = 0; i < a.tokens * V::kLanes * kParts; ++i) sums[i] = V::zero();
  const int64_t whole = a.columns / kStepColumns * kStepColumns;
  const int64_t chunk = converts ? kMostConverted : a.tokens > 1 ? cached : whole;
  for (int64_t column = 0; column < whole; column += chunk) {
    const int64_t count = lesser<V>(whole - column, chunk);
    const bool last = column + count >= whole;
    for (int64_t r = 0; r < rows; ++r) {
      weights[r] = row(r) + static_cast<size_t>(column) * kColumnBytes;
      next[r] = last && a.next != nullptr ? a.next + (row(r) - a.weights)
                                          : weights[r] + (last ? 0 : static_cast<size_t>(chunk) * kColumnBytes);
    }
    if (!converts) {
      for (int64_t r = 0; r < R; ++r) weights[rows + r] = next[r];
      multiply(Format(), std::true_type(), count / kStepColumns, column);
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < count; c += V::kLanes) {
        const size_t at = static_cast<size_t>(c) * kColumnBytes;
        if (at % 64 == 0) V::prefetch(next[r] + at);
        V::store(converted[r] + c, Format::load(weights[r] + at));
      }
      weights[r] = reinterpret_cast<const std::byte*>(converted[r]);
    }
    multiply(F32Weights<V>(), std::false_type(), count / kStepColumns, column);
  }
  if (whole < a.columns) {  // the last few columns, and zeros: as many stand in the activations
    alignas(64) std::byte rest[V::kLanes][kStepBytes] = {};
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(rest[r], row(r) + static_cast<size_t>(whole) * kColumnBytes,
                  static_cast<size_t>(a.columns - whole) * kColumnBytes);
      weights[r] = rest[r];
    }
    multiply(Format(), std::false_type(), 1, whole);
  }
  for (int64_t t = 0; t < a.tokens; ++t) {
    for (int64_t r = 0; r < a.rows; ++r) {
      a.out[t * V::kLanes + r] = fold_sums<V>(sums + (t * V::kLanes + r) * kParts);
    }
  }
}

}  // namespace drafthorse::ops::simd
