// Attention of a block of query rows over the keys and values of one KV head, read once for all rows.
//
// Positions are taken in tiles of 64, at multiples of 64. A tile's keys are turned into floats with positions in the
// vector's lanes, its values with dimensions in the lanes, so that no product is summed across lanes and both of
// attention's matrices come out of one multiplication, multiply_tile(). What a row gets is, whatever the vector's
// width and whoever else is in the block:
//   score[p]  = scale * (sum over dimensions by fma, in order, from 0), softcap applied
//   maximum   = the largest score of the span's tiles so far; when a tile raises it, sums and out are multiplied by
//               e^(old - new)
//   weight[p] = e^(score[p] - maximum), 0 where that is below e^-87
//   sum       = sixteen sums, of positions with p mod 16 = i, added as a tree at the end
//   out[d]    = sum over visible positions by fma, in order
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/simd/decode.h"
#include "ops/simd/kernels.h"
#include "ops/simd/math.h"
#include "ops/simd/quantize.h"

namespace drafthorse::ops::simd {

// Dimensions turned into floats at a time: with 64 positions, as much as fits a first-level cache.
inline constexpr int64_t kAttentionDims = 128;
inline constexpr int kAttentionSums = 16;

// Not std::min and std::max: what is no template over the vector would be shared between instruction sets.
template <typename V>
int64_t lesser(int64_t a, int64_t b) {
  return a < b ? a : b;
}
template <typename V>
int64_t greater(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// --- formats of the cache: transpose() writes kStep dimensions from `first` on of one position per lane to
// out + i * kAttentionTile; convert() writes one vector of dimensions of one position. Both read nothing else.

template <typename V>
struct F16Cache {
  static constexpr int64_t kStep = 8;
  static constexpr int64_t kBlock = 1;
  static size_t offset(int64_t dimension) { return 2 * static_cast<size_t>(dimension); }
  static void transpose(const std::byte* const* rows, size_t offset, float* out) {
    typename V::F columns[kStep];
    F16Weights<V>::decode(rows, offset, columns);
    for (int i = 0; i < kStep; ++i) V::store(out + i * kAttentionTile, columns[i]);
  }
  static typename V::F convert(const std::byte* row, int64_t first) { return V::load_f16(row + 2 * first); }
};

template <typename V>
struct Bf16Cache {
  static constexpr int64_t kStep = 8;
  static constexpr int64_t kBlock = 1;
  static size_t offset(int64_t dimension) { return 2 * static_cast<size_t>(dimension); }
  static void transpose(const std::byte* const* rows, size_t offset, float* out) {
    typename V::F columns[kStep];
    Bf16Weights<V>::decode(rows, offset, columns);
    for (int i = 0; i < kStep; ++i) V::store(out + i * kAttentionTile, columns[i]);
  }
  static typename V::F convert(const std::byte* row, int64_t first) { return V::load_bf16(row + 2 * first); }
};

// Blocks of 32: an F16 scale, 32 bytes.
template <typename V>
struct Q8Cache {
  static constexpr int64_t kStep = 32;
  static constexpr int64_t kBlock = 32;
  static constexpr size_t kBytes = 34;
  static size_t offset(int64_t dimension) { return static_cast<size_t>(dimension / kBlock) * kBytes; }
  static void transpose(const std::byte* const* rows, size_t offset, float* out) {
    const typename V::F scale = V::low_half(V::load_u16(rows, offset));
    for (int half = 0; half < 2; ++half) {
      typename V::I bytes[4];
      V::load_columns(rows, offset + 2 + 16 * half, bytes);
      for (int k = 0; k < 4; ++k) {
        float* to = out + (16 * half + 4 * k) * kAttentionTile;
        V::store(to, scaled(V::template shift_left<24>(bytes[k]), scale));
        V::store(to + kAttentionTile, scaled(V::template shift_left<16>(bytes[k]), scale));
        V::store(to + 2 * kAttentionTile, scaled(V::template shift_left<8>(bytes[k]), scale));
        V::store(to + 3 * kAttentionTile, scaled(bytes[k], scale));
      }
    }
  }
  static typename V::F convert(const std::byte* row, int64_t first) {
    const std::byte* block = row + offset(first);
    uint16_t scale;
    std::memcpy(&scale, block, sizeof scale);
    return V::mul(V::load_i8(block + 2 + first % kBlock), V::low_half(V::set_int(scale)));
  }

 private:
  // The lane's highest byte times the scale.
  static typename V::F scaled(typename V::I x, typename V::F scale) {
    return V::mul(V::to_float(V::template shift_right_signed<24>(x)), scale);
  }
};

// --- the multiplication

// c[r][0..] += a[r][k] * b[k * b_stride + 0..] for k = 0..steps - 1, in order: R rows, C vectors wide. c counts as 0
// before that if `from_zero`.
template <typename V, int R, int C>
[[gnu::noinline]] void multiply_tile(const float* const* a, int64_t a_offset, int64_t steps, const float* b,
                                     int64_t b_stride, float* const* c, int64_t c_offset, bool from_zero) {
  using F = typename V::F;
  const float* x[R];
  F sum[R][C];
  for (int r = 0; r < R; ++r) {
    x[r] = a[r] + a_offset;
    for (int i = 0; i < C; ++i) sum[r][i] = from_zero ? V::zero() : V::load(c[r] + c_offset + i * V::kLanes);
  }
  for (int64_t k = 0; k < steps; ++k) {
    F w[C];
    for (int i = 0; i < C; ++i) w[i] = V::load(b + k * b_stride + i * V::kLanes);
    for (int r = 0; r < R; ++r) {
      const F factor = V::broadcast(x[r] + k);
      for (int i = 0; i < C; ++i) sum[r][i] = V::fma(w[i], factor, sum[r][i]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < C; ++i) V::store(c[r] + c_offset + i * V::kLanes, sum[r][i]);
  }
}

// The same for any number of vectors.
template <typename V, int R>
void multiply(const float* const* a, int64_t a_offset, int64_t steps, const float* b, int64_t b_stride, float* const* c,
              int64_t c_offset, int64_t vectors, bool from_zero) {
  constexpr int C = V::kAttentionVectors;
  int64_t i = 0;
  for (; i + C <= vectors; i += C) {
    multiply_tile<V, R, C>(a, a_offset, steps, b + i * V::kLanes, b_stride, c, c_offset + i * V::kLanes, from_zero);
  }
  for (; i < vectors; ++i) {
    multiply_tile<V, R, 1>(a, a_offset, steps, b + i * V::kLanes, b_stride, c, c_offset + i * V::kLanes, from_zero);
  }
}

// function.template operator()<R>(first) for tiles of R <= kMost rows, as equal as can be.
template <int kMost, typename Function>
inline void with_rows(int64_t rows, int64_t first, const Function& function) {
  if (rows == kMost) {
    function.template operator()<kMost>(first);
  } else if constexpr (kMost > 1) {
    with_rows<kMost - 1>(rows, first, function);
  }
}
template <int kMost, typename Function>
inline void for_row_tiles(int64_t rows, const Function& function) {
  const int64_t tiles = (rows + kMost - 1) / kMost;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = rows * i / tiles;
    with_rows<kMost>(rows * (i + 1) / tiles - first, first, function);
  }
}

// --- one tile of positions

// What rows of a block have in common, and what is kept from tile to tile.
template <typename V>
struct AttentionState {
  alignas(
      64) float tile[kAttentionTile * kAttentionDims];  // keys: [dimension][position]; values: [position][dimension]
  alignas(64) float scores[kMaxAttentionRows][kAttentionTile];
  alignas(64) float sums[kMaxAttentionRows][kAttentionSums];
  float* score_rows[kMaxAttentionRows];
  float* out_rows[kMaxAttentionRows];
  // Positions of the tile that a row sees, relative to the tile's first; both 0 if none.
  int64_t begin[kMaxAttentionRows];
  int64_t end[kMaxAttentionRows];
  // Positions of the block and of the tile that any row sees.
  int64_t block_begin = INT64_MAX;
  int64_t block_end = 0;
  int64_t tile_first = 0;
  int64_t tile_begin = 0;
  int64_t tile_end = 0;
};

// Bytes [begin, end) of the row at the same place in the next tile, for whoever comes there.
template <typename V>
void prefetch_next_tile(const AttentionState<V>& state, const std::byte* base, size_t stride, int64_t position,
                        size_t begin, size_t end) {
  const int64_t next = position + kAttentionTile;
  if (next >= state.block_end) return;
  const std::byte* row = base + static_cast<size_t>(next) * stride;
  for (size_t offset = begin; offset < end; offset += 64) V::prefetch(row + offset);
}

// Keys' dimensions [first, first + count) of the tile's vectors [vector_begin, vector_end) -> tile.
template <typename V, typename Format>
void convert_keys(AttentionState<V>& state, const AttentionArguments& a, int64_t first, int64_t count,
                  int64_t vector_begin, int64_t vector_end) {
  constexpr int kLanes = V::kLanes;
  for (int64_t v = vector_begin; v < vector_end; ++v) {
    const std::byte* rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t position = state.tile_first + v * kLanes + lane;
      const int64_t seen = greater<V>(state.block_begin, lesser<V>(position, state.block_end - 1));
      rows[lane] = a.keys + static_cast<size_t>(seen) * a.key_stride;
    }
    float* out = state.tile + v * kLanes;
    const int64_t whole = count / Format::kStep * Format::kStep;
    // Prefetches spread over the steps.
    const int64_t lanes_per_step = whole == 0 ? 0 : (kLanes * Format::kStep + whole - 1) / whole;
    int64_t lane = 0;
    for (int64_t d = 0; d < whole; d += Format::kStep) {
      const int64_t lane_end = lesser<V>(lane + lanes_per_step, kLanes);
      for (; lane < lane_end; ++lane) {
        prefetch_next_tile<V>(state, a.keys, a.key_stride, state.tile_first + v * kLanes + lane, Format::offset(first),
                              Format::offset(first + count));
      }
      Format::transpose(rows, Format::offset(first + d), out + d * kAttentionTile);
    }
    if constexpr (Format::kBlock == 1) {
      if (whole < count) {
        std::byte rest[kLanes][Format::kStep * 2] = {};
        const std::byte* rest_rows[kLanes];
        for (int r = 0; r < kLanes; ++r) {
          std::memcpy(rest[r], rows[r] + Format::offset(first + whole), Format::offset(count - whole));
          rest_rows[r] = rest[r];
        }
        Format::transpose(rest_rows, 0, out + whole * kAttentionTile);
      }
    }
  }
}

// Values' dimensions [first, first + count) of the positions that any row sees -> tile, zeros up to a whole vector.
template <typename V, typename Format>
void convert_values(AttentionState<V>& state, const AttentionArguments& a, int64_t first, int64_t count) {
  constexpr int kLanes = V::kLanes;
  for (int64_t i = state.tile_begin; i < state.tile_end; ++i) {
    const int64_t position = state.tile_first + i;
    prefetch_next_tile<V>(state, a.values, a.value_stride, position, Format::offset(first),
                          Format::offset(first + count));
    const std::byte* row = a.values + static_cast<size_t>(position) * a.value_stride;
    float* out = state.tile + i * kAttentionDims;
    int64_t d = 0;
    for (; d + kLanes <= count; d += kLanes) V::store(out + d, Format::convert(row, first + d));
    if constexpr (Format::kBlock == 1) {
      if (d < count) {
        std::byte rest[kLanes * 2] = {};
        std::memcpy(rest, row + Format::offset(first + d), Format::offset(count - d));
        V::store(out + d, Format::convert(rest, 0));
      }
    }
  }
}

// Row r's scores of the tile become weights; its maximum, sums and out follow.
template <typename V>
void weigh(AttentionState<V>& state, const AttentionArguments& a, int64_t r) {
  using F = typename V::F;
  constexpr int kLanes = V::kLanes;
  constexpr int kVectors = kAttentionTile / kLanes;
  constexpr int kSums = kAttentionSums / kLanes;
  float* scores = state.scores[r];
  const int64_t begin = state.begin[r];
  const int64_t end = state.end[r];
  F score[kVectors];
  const F scale = V::set(a.softcap > 0 ? a.scale / a.softcap : a.scale);
  for (int v = 0; v < kVectors; ++v) score[v] = V::mul(V::load(scores + v * kLanes), scale);
  if (a.softcap > 0) {
    for (int v = 0; v < kVectors; ++v) score[v] = V::mul(V::set(a.softcap), tanh<V>(score[v]));
  }
  if (begin > 0 || end < kAttentionTile) {
    constexpr float kUnseen = -__builtin_inff();
    for (int v = 0; v < kVectors; ++v) V::store(scores + v * kLanes, score[v]);
    for (int64_t i = 0; i < begin; ++i) scores[i] = kUnseen;
    for (int64_t i = end; i < kAttentionTile; ++i) scores[i] = kUnseen;
    for (int v = 0; v < kVectors; ++v) score[v] = V::load(scores + v * kLanes);
  }
  F largest = score[0];
  for (int v = 1; v < kVectors; ++v) largest = V::max(score[v], largest);
  const float tile_maximum = V::reduce_max(largest);
  F sum[kSums];
  for (int i = 0; i < kSums; ++i) sum[i] = V::load(state.sums[r] + i * kLanes);
  if (tile_maximum > a.maximum[r]) {
    const F shrink = exp_or_zero<V>(V::sub(V::set(a.maximum[r]), V::set(tile_maximum)));
    a.maximum[r] = tile_maximum;
    for (int i = 0; i < kSums; ++i) sum[i] = V::mul(sum[i], shrink);
    float* out = state.out_rows[r];
    for (int64_t d = 0; d < a.value_dim; d += kLanes) V::store(out + d, V::mul(V::load(out + d), shrink));
  }
  const F maximum = V::set(a.maximum[r]);
  for (int v = 0; v < kVectors; ++v) {
    const F weight = exp_or_zero<V>(V::sub(score[v], maximum));
    V::store(scores + v * kLanes, weight);
    sum[v % kSums] = V::add(sum[v % kSums], weight);
  }
  for (int i = 0; i < kSums; ++i) V::store(state.sums[r] + i * kLanes, sum[i]);
}

// R rows from `first` on: out += weights * values. Each row takes its own positions, in order; what is not its own is
// not even multiplied by zero, for it may be anything.
template <typename V, int R>
void add_values(AttentionState<V>& state, int64_t first, int64_t column, int64_t vectors) {
  const auto add_rows = [&]<int T>(int64_t row, int64_t begin, int64_t end) {
    if (begin < end) {
      multiply<V, T>(state.score_rows + row, begin, end - begin, state.tile + begin * kAttentionDims, kAttentionDims,
                     state.out_rows + row, column, vectors, false);
    }
  };
  int64_t begin = 0;
  int64_t end = kAttentionTile;
  for (int64_t r = first; r < first + R; ++r) {
    begin = greater<V>(begin, state.begin[r]);
    end = lesser<V>(end, state.end[r]);
  }
  if (begin >= end) {
    for (int64_t r = first; r < first + R; ++r) add_rows.template operator()<1>(r, state.begin[r], state.end[r]);
    return;
  }
  for (int64_t r = first; r < first + R; ++r) add_rows.template operator()<1>(r, state.begin[r], begin);
  add_rows.template operator()<R>(first, begin, end);
  for (int64_t r = first; r < first + R; ++r) add_rows.template operator()<1>(r, end, state.end[r]);
}

// --- the kernels

template <typename V, typename Format>
void attend(const AttentionArguments& a) {
  constexpr int64_t kLanes = V::kLanes;
  AttentionState<V> state;
  for (int64_t r = 0; r < a.rows; ++r) {
    state.score_rows[r] = state.scores[r];
    state.out_rows[r] = a.out + r * a.out_stride;
    a.maximum[r] = -__builtin_inff();
    std::memset(state.sums[r], 0, sizeof state.sums[r]);
    std::memset(state.out_rows[r], 0, sizeof(float) * static_cast<size_t>(a.out_stride));
    if (a.begin[r] < a.end[r]) {
      state.block_begin = lesser<V>(state.block_begin, a.begin[r]);
      state.block_end = greater<V>(state.block_end, a.end[r]);
    }
  }
  for (state.tile_first = state.block_begin / kAttentionTile * kAttentionTile; state.tile_first < state.block_end;
       state.tile_first += kAttentionTile) {
    state.tile_begin = kAttentionTile;
    state.tile_end = 0;
    for (int64_t r = 0; r < a.rows; ++r) {
      const int64_t begin = greater<V>(a.begin[r] - state.tile_first, 0);
      const int64_t end = lesser<V>(a.end[r] - state.tile_first, kAttentionTile);
      const bool seen = begin < end;
      state.begin[r] = seen ? begin : 0;
      state.end[r] = seen ? end : 0;
      if (seen) {
        state.tile_begin = lesser<V>(state.tile_begin, begin);
        state.tile_end = greater<V>(state.tile_end, end);
      }
    }
    if (state.tile_begin >= state.tile_end) continue;
    const int64_t vector_begin = state.tile_begin / kLanes;
    const int64_t vector_end = (state.tile_end + kLanes - 1) / kLanes;
    for (int64_t d = 0; d < a.key_dim; d += kAttentionDims) {
      const int64_t count = lesser<V>(kAttentionDims, a.key_dim - d);
      convert_keys<V, Format>(state, a, d, count, vector_begin, vector_end);
      for_row_tiles<V::kAttentionRows>(a.rows, [&]<int R>(int64_t row) {
        multiply<V, R>(a.q + row, d, count, state.tile + vector_begin * kLanes, kAttentionTile, state.score_rows + row,
                       vector_begin * kLanes, vector_end - vector_begin, d == 0);
      });
    }
    for (int64_t r = 0; r < a.rows; ++r) {
      if (state.begin[r] < state.end[r]) weigh<V>(state, a, r);
    }
    for (int64_t d = 0; d < a.value_dim; d += kAttentionDims) {
      const int64_t count = lesser<V>(kAttentionDims, a.value_dim - d);
      convert_values<V, Format>(state, a, d, count);
      for_row_tiles<V::kAttentionRows>(
          a.rows, [&]<int R>(int64_t row) { add_values<V, R>(state, row, d, (count + kLanes - 1) / kLanes); });
    }
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    float* sums = state.sums[r];
    for (int half = kAttentionSums / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    a.sum[r] = sums[0];
  }
}

// e^x of one number, with the bits that the vector has.
template <typename V>
float exp_of(float x) {
  float lanes[V::kLanes];
  V::store(lanes, exp_or_zero<V>(V::set(x)));
  return lanes[0];
}

template <typename V>
void merge_attention(const float* later, float later_maximum, float later_sum, float* out, float& maximum, float& sum,
                     int64_t count) {
  const float together = later_maximum > maximum ? later_maximum : maximum;
  const float old_factor = exp_of<V>(maximum - together);
  const float later_factor = exp_of<V>(later_maximum - together);
  maximum = together;
  sum = sum * old_factor + later_sum * later_factor;
  const typename V::F old_factors = V::set(old_factor);
  const typename V::F later_factors = V::set(later_factor);
  map_floats<V>(count, out, out, later,
                [&](typename V::F x, typename V::F y) { return V::fma(y, later_factors, V::mul(x, old_factors)); });
}

template <typename V>
void finish_attention(float* out, float maximum, float sum, const float* sink, int64_t count) {
  float factor = 1;
  if (sink != nullptr) {
    const float together = *sink > maximum ? *sink : maximum;
    factor = exp_of<V>(maximum - together);
    sum = sum * factor + exp_of<V>(*sink - together);
  }
  const typename V::F factors = V::set(factor / sum);
  map_floats<V>(count, out, out, out, [&](typename V::F x, typename V::F) { return V::mul(x, factors); });
}

}  // namespace drafthorse::ops::simd
