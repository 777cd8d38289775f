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
#include "ops/simd/equal_tiles.h"
#include "ops/simd/kernels.h"
#include "ops/simd/math.h"
#include "ops/simd/quantize.h"

namespace drafthorse::ops::simd {

// Dimensions turned into floats at a time: with 64 positions, as much as fits a first-level cache.
inline constexpr int64_t kAttentionDims = 128;
inline constexpr int kAttentionSums = 16;

// What takes some ticks of AttentionPrefetcher: dimensions of keys, turned for a vector of positions; positions whose
// values are converted; steps of a multiplication, for which eight vectors of sums are a tick.
inline constexpr int64_t kDimsPerAdvance = 32;
inline constexpr int64_t kPositionsPerAdvance = 16;
inline constexpr int64_t kStepsPerAdvance = 16;
inline constexpr int64_t kDimTicks = 2;
inline constexpr int64_t kPositionTicks = 4;
inline constexpr int64_t kVectorsPerTick = 8;

// Positions whose rows lie anywhere, one per lane, as the vectors' loads want them.
template <typename V>
struct PositionRows {
  const std::byte* const* rows;
  const std::byte* row(int r) const { return rows[r]; }
};

// --- formats of the cache: transpose() writes kStep dimensions from `first` on of one position per lane to
// out + i * kAttentionTile; convert() writes one vector of dimensions of one position. Both read nothing else.

template <typename V>
struct F16Cache {
  static constexpr int64_t kStep = 8;
  static constexpr int64_t kBlock = 1;
  static size_t offset(int64_t dimension) { return 2 * static_cast<size_t>(dimension); }
  static void transpose(const std::byte* const* rows, size_t offset, float* out) {
    typename V::I pairs[4];
    V::load_columns(PositionRows<V>{rows}, offset, pairs);
    for (int k = 0; k < 4; ++k) {
      V::store(out + 2 * k * kAttentionTile, V::low_half(pairs[k]));
      V::store(out + (2 * k + 1) * kAttentionTile, V::high_half(pairs[k]));
    }
  }
  static typename V::F convert(const std::byte* row, int64_t first) { return V::load_f16(row + 2 * first); }
};

template <typename V>
struct Bf16Cache {
  static constexpr int64_t kStep = 8;
  static constexpr int64_t kBlock = 1;
  static size_t offset(int64_t dimension) { return 2 * static_cast<size_t>(dimension); }
  static void transpose(const std::byte* const* rows, size_t offset, float* out) {
    typename V::I pairs[4];
    V::load_columns(PositionRows<V>{rows}, offset, pairs);
    for (int k = 0; k < 4; ++k) {
      V::store(out + 2 * k * kAttentionTile, V::as_float(V::template shift_left<16>(pairs[k])));
      V::store(out + (2 * k + 1) * kAttentionTile, V::as_float(V::bit_and(pairs[k], V::set_int(INT32_C(-0x10000)))));
    }
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
    const typename V::F scale = V::low_half(V::load_u16(PositionRows<V>{rows}, offset));
    for (int half = 0; half < 2; ++half) {
      typename V::I bytes[4];
      V::load_columns(PositionRows<V>{rows}, offset + 2 + 16 * half, bytes);
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

// --- the next tile's memory

// Asks for the next tile's memory, in the order in which it lies and evenly over the time that this one takes, for many
// requests at once wait for each other and the processor for them. Time is counted in ticks, of about 64 cycles.
template <typename V>
class AttentionPrefetcher {
 public:
  struct Rows {
    const std::byte* first = nullptr;
    size_t stride = 0;
    size_t bytes = 0;  // of each row
    int64_t count = 0;
  };
  AttentionPrefetcher() = default;
  AttentionPrefetcher(const Rows& keys, const Rows& values, int64_t ticks) : rows_(keys), then_(values) {
    rate_ = (lines(keys) + lines(values)) * kOne / ticks + 1;
  }
  // Of the `ticks` given above.
  void advance(int64_t ticks) {
    credit_ += ticks * rate_;
    const std::byte* row = rows_.first;  // not in memory from line to line
    size_t offset = offset_;
    int64_t count = rows_.count;
    for (; credit_ >= kOne && count > 0; credit_ -= kOne) {
      V::prefetch(row + offset);
      offset += kLine;
      if (offset >= rows_.bytes) {
        offset = 0;
        row += rows_.stride;
        --count;
      }
    }
    rows_.first = row;
    offset_ = offset;
    rows_.count = count;
    if (count == 0) {
      rows_ = then_;
      then_.count = 0;
    }
  }

 private:
  static constexpr int64_t kOne = 256;  // a line
  static constexpr size_t kLine = 64;
  static int64_t lines(const Rows& rows) { return static_cast<int64_t>((rows.bytes + kLine - 1) / kLine) * rows.count; }

  Rows rows_;
  Rows then_;
  size_t offset_ = 0;
  int64_t rate_ = 0;
  int64_t credit_ = 0;
};

// --- the multiplication

// c[r][0..] += a[r][k] * b[k * b_stride + 0..] for k = 0..steps - 1, in order: R rows, C vectors wide. c counts as 0
// before that if kFromZero. At least one step.
template <typename V, bool kFromZero, int R, int C>
[[gnu::noinline]] void multiply_tile(const float* const* a, int64_t a_offset, int64_t steps, const float* b,
                                     int64_t b_stride, float* const* c, int64_t c_offset,
                                     AttentionPrefetcher<V>& next) {
  using F = typename V::F;
  const float* x[R];
  F sum[R][C];
  for (int r = 0; r < R; ++r) {
    x[r] = a[r] + a_offset;
    for (int i = 0; i < C; ++i) sum[r][i] = kFromZero ? V::zero() : V::load(c[r] + c_offset + i * V::kLanes);
  }
  int64_t k = 0;
  do {
    if (k % kStepsPerAdvance == 0) next.advance((R * C + kVectorsPerTick - 1) / kVectorsPerTick);
    F w[C];
    for (int i = 0; i < C; ++i) w[i] = V::load(b + k * b_stride + i * V::kLanes);
    for (int r = 0; r < R; ++r) {
      const F factor = V::broadcast(x[r] + k);
      for (int i = 0; i < C; ++i) sum[r][i] = V::fma(w[i], factor, sum[r][i]);
    }
  } while (++k < steps);
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < C; ++i) V::store(c[r] + c_offset + i * V::kLanes, sum[r][i]);
  }
}

// The same for any number of vectors.
template <typename V, bool kFromZero, int R>
void multiply(const float* const* a, int64_t a_offset, int64_t steps, const float* b, int64_t b_stride, float* const* c,
              int64_t c_offset, int64_t vectors, AttentionPrefetcher<V>& next) {
  constexpr int C = V::kAttentionVectors;
  int64_t i = 0;
  for (; i + C <= vectors; i += C) {
    multiply_tile<V, kFromZero, R, C>(a, a_offset, steps, b + i * V::kLanes, b_stride, c, c_offset + i * V::kLanes,
                                      next);
  }
  for (; i < vectors; ++i) {
    multiply_tile<V, kFromZero, R, 1>(a, a_offset, steps, b + i * V::kLanes, b_stride, c, c_offset + i * V::kLanes,
                                      next);
  }
}

// --- one tile of positions

// What rows of a block have in common, and what is kept from tile to tile.
template <typename V>
struct AttentionState {
  // Keys: [dimension][position]; values: [position][dimension].
  alignas(64) float tile[kAttentionTile * kAttentionDims];
  alignas(64) float scores[kAttentionBlock][kAttentionTile];
  alignas(64) float sums[kMaxAttentionRows][kAttentionSums];
  float* score_rows[kAttentionBlock];
  float* out_rows[kMaxAttentionRows];
  // Positions of the tile that a row sees, relative to the tile's first; both 0 if none.
  int64_t begin[kAttentionBlock];
  int64_t end[kAttentionBlock];
  // Positions of the block and of the tile that any row sees.
  int64_t block_begin = INT64_MAX;
  int64_t block_end = 0;
  int64_t tile_first = 0;
  int64_t tile_begin = 0;
  int64_t tile_end = 0;
  AttentionPrefetcher<V> next;
};

// Dimensions [first, first + count) of a head's keys, of the tile's vectors [vector_begin, vector_end) -> tile.
template <typename V, typename Format>
void convert_keys(AttentionState<V>& state, const std::byte* keys, size_t stride, int64_t first, int64_t count,
                  int64_t vector_begin, int64_t vector_end) {
  constexpr int kLanes = V::kLanes;
  for (int64_t v = vector_begin; v < vector_end; ++v) {
    const std::byte* rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t position = state.tile_first + v * kLanes + lane;
      const int64_t seen = greater<V>(state.block_begin, lesser<V>(position, state.block_end - 1));
      rows[lane] = keys + static_cast<size_t>(seen) * stride;
    }
    float* out = state.tile + v * kLanes;
    const int64_t whole = count / Format::kStep * Format::kStep;
    for (int64_t d = 0; d < whole; d += Format::kStep) {
      if (d % kDimsPerAdvance == 0) state.next.advance(kDimTicks);
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

// Dimensions [first, first + count) of a head's values, of the positions that any row sees -> tile, zeros up to a whole
// vector.
template <typename V, typename Format>
void convert_values(AttentionState<V>& state, const std::byte* values, size_t stride, int64_t first, int64_t count) {
  constexpr int kLanes = V::kLanes;
  for (int64_t i = state.tile_begin; i < state.tile_end; ++i) {
    if (i % kPositionsPerAdvance == 0) state.next.advance(kPositionTicks);
    const std::byte* row = values + static_cast<size_t>(state.tile_first + i) * stride;
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

// A head's row r: its scores of the tile become weights; its maximum, sums and out follow.
template <typename V>
void weigh(AttentionState<V>& state, const AttentionArguments& a, int64_t head, int64_t r) {
  using F = typename V::F;
  constexpr int kLanes = V::kLanes;
  constexpr int kVectors = kAttentionTile / kLanes;
  constexpr int kSums = kAttentionSums / kLanes;
  float* scores = state.scores[r];
  float* sums = state.sums[head * a.rows + r];
  float& maximum = a.maximum[head * a.rows + r];
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
  for (int i = 0; i < kSums; ++i) sum[i] = V::load(sums + i * kLanes);
  if (tile_maximum > maximum) {
    const F shrink = exp_or_zero<V>(V::sub(V::set(maximum), V::set(tile_maximum)));
    maximum = tile_maximum;
    for (int i = 0; i < kSums; ++i) sum[i] = V::mul(sum[i], shrink);
    float* out = state.out_rows[head * a.rows + r];
    for (int64_t d = 0; d < a.value_dim; d += kLanes) V::store(out + d, V::mul(V::load(out + d), shrink));
  }
  const F base = V::set(maximum);
  for (int v = 0; v < kVectors; ++v) {
    const F weight = exp_or_zero<V>(V::sub(score[v], base));
    V::store(scores + v * kLanes, weight);
    sum[v % kSums] = V::add(sum[v % kSums], weight);
  }
  for (int i = 0; i < kSums; ++i) V::store(sums + i * kLanes, sum[i]);
}

// A head's R rows from `first` on, whose results begin at out_rows: out += weights * values. Each row takes its own
// positions, in order; what is not its own is not even multiplied by zero, for it may be anything.
template <typename V, int R>
void add_values(AttentionState<V>& state, float* const* out_rows, int64_t first, int64_t column, int64_t vectors) {
  const auto add_rows = [&]<int T>(int64_t row, int64_t begin, int64_t end) {
    if (begin < end) {
      multiply<V, false, T>(state.score_rows + row, begin, end - begin, state.tile + begin * kAttentionDims,
                            kAttentionDims, out_rows + row, column, vectors, state.next);
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

// One head over one tile.
template <typename V, typename Format>
void attend_tile(AttentionState<V>& state, const AttentionArguments& a, int64_t head) {
  constexpr int64_t kLanes = V::kLanes;
  const std::byte* keys = a.keys + static_cast<size_t>(head) * a.key_head_stride;
  const std::byte* values = a.values + static_cast<size_t>(head) * a.value_head_stride;
  const float* const* q = a.q + head * a.rows;
  float* const* out_rows = state.out_rows + head * a.rows;
  const int64_t vector_begin = state.tile_begin / kLanes;
  const int64_t vector_end = (state.tile_end + kLanes - 1) / kLanes;
  for (int64_t d = 0; d < a.key_dim; d += kAttentionDims) {
    const int64_t count = lesser<V>(kAttentionDims, a.key_dim - d);
    convert_keys<V, Format>(state, keys, a.key_stride, d, count, vector_begin, vector_end);
    for_equal_tiles<V::kAttentionRows>(a.rows, [&]<int R>(int64_t row) {
      const float* tile = state.tile + vector_begin * kLanes;
      const int64_t first = vector_begin * kLanes;
      const int64_t vectors = vector_end - vector_begin;
      if (d == 0) {
        multiply<V, true, R>(q + row, d, count, tile, kAttentionTile, state.score_rows + row, first, vectors,
                             state.next);
      } else {
        multiply<V, false, R>(q + row, d, count, tile, kAttentionTile, state.score_rows + row, first, vectors,
                              state.next);
      }
    });
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    if (state.begin[r] < state.end[r]) weigh<V>(state, a, head, r);
  }
  for (int64_t d = 0; d < a.value_dim; d += kAttentionDims) {
    const int64_t count = lesser<V>(kAttentionDims, a.value_dim - d);
    convert_values<V, Format>(state, values, a.value_stride, d, count);
    for_equal_tiles<V::kAttentionRows>(
        a.rows, [&]<int R>(int64_t row) { add_values<V, R>(state, out_rows, row, d, (count + kLanes - 1) / kLanes); });
  }
}

// What each row sees of the tile, and whether any does.
template <typename V>
bool enter_tile(AttentionState<V>& state, const AttentionArguments& a) {
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
  return state.tile_begin < state.tile_end;
}

// Has the rows from `position` on, a tile of them, asked for while the present tile is computed with.
template <typename V, typename Format>
void prefetch_from(AttentionState<V>& state, const AttentionArguments& a, int64_t position) {
  using Prefetcher = AttentionPrefetcher<V>;
  state.next = {};
  const int64_t count = lesser<V>(state.block_end - position, kAttentionTile);
  if (count <= 0) return;
  // Heads side by side are taken as one row.
  const auto rows = [&](const std::byte* base, size_t stride, size_t head_stride, int64_t dim) {
    const size_t all = static_cast<size_t>(a.heads - 1) * head_stride + Format::offset(dim);
    return typename Prefetcher::Rows{base + static_cast<size_t>(position) * stride, stride,
                                     all <= stride ? all : Format::offset(dim), count};
  };
  const auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
  const int64_t ticks =
      parts(a.key_dim, kDimsPerAdvance) * kDimTicks * (kAttentionTile / V::kLanes) +
      parts(a.value_dim, kAttentionDims) * kPositionTicks * (kAttentionTile / kPositionsPerAdvance) +
      a.rows * (a.key_dim + a.value_dim) * kAttentionTile / (V::kLanes * kStepsPerAdvance * kVectorsPerTick);
  state.next = Prefetcher(rows(a.keys, a.key_stride, a.key_head_stride, a.key_dim),
                          rows(a.values, a.value_stride, a.value_head_stride, a.value_dim), a.heads * ticks);
}

template <typename V, typename Format>
void attend(const AttentionArguments& a) {
  AttentionState<V> state;
  for (int64_t r = 0; r < a.rows; ++r) {
    state.score_rows[r] = state.scores[r];
    if (a.begin[r] < a.end[r]) {
      state.block_begin = lesser<V>(state.block_begin, a.begin[r]);
      state.block_end = greater<V>(state.block_end, a.end[r]);
    }
  }
  for (int64_t i = 0; i < a.heads * a.rows; ++i) {
    state.out_rows[i] = a.out + i * a.out_stride;
    a.maximum[i] = -__builtin_inff();
    std::memset(state.sums[i], 0, sizeof state.sums[i]);
    std::memset(state.out_rows[i], 0, sizeof(float) * static_cast<size_t>(a.out_stride));
  }
  for (state.tile_first = state.block_begin / kAttentionTile * kAttentionTile; state.tile_first < state.block_end;
       state.tile_first += kAttentionTile) {
    if (!enter_tile<V>(state, a)) continue;
    prefetch_from<V, Format>(state, a, state.tile_first + kAttentionTile);
    for (int64_t head = 0; head < a.heads; ++head) attend_tile<V, Format>(state, a, head);
  }
  for (int64_t i = 0; i < a.heads * a.rows; ++i) {
    float* sums = state.sums[i];
    for (int half = kAttentionSums / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
    }
    a.sum[i] = sums[0];
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
