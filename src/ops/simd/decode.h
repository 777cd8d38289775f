// Weight blocks as GGUF files hold them -> tiles that a dot product can use: dword k of the tile holds, for each of
// the vector's rows, columns 4 k to 4 k + 3 as bytes.
//
// Each struct is one block format. Offsets are bytes into a row; a block is followed by the next one without padding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/simd/rows.h"

namespace drafthorse::ops::simd {

inline constexpr int kChunk = 256;  // columns decoded at a time

// 16 bytes of each row; asks for as many of the next ones.
template <typename V>
void load_columns(Rows<V>& rows, size_t offset, typename V::I (&out)[4]) {
  rows.template prefetch<16 * V::kLanes>();
  V::load_columns(rows, offset, out);
}

template <typename V>
struct IntTile {
  alignas(64) typename V::I weights[kChunk / 4];
  typename V::F scale[16];        // per group of 16 or 32 columns
  typename V::I group_offset[8];  // 16-bit pairs: of groups 2 i and 2 i + 1
  typename V::F offset;           // what sum(group_offset * sum of x) is multiplied with
};

// --- formats of 32 columns with a scale, for activations in blocks of 32.
//
// weight = scale * (byte - 2^kBiasShift), or scale * byte where kBiasShift is negative. kWide: bytes may exceed 127
// once biased, or are signed.

// Steps of IQ4_NL and IQ4_XS, as published with those formats.
inline constexpr int8_t kIq4Steps[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// Twice the values of a 4-bit float with 2 exponent bits and 1 mantissa bit (OCP Microscaling).
inline constexpr int8_t kMxfp4Steps[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

template <int kBias>
struct BiasedSteps {
  constexpr explicit BiasedSteps(const int8_t (&steps)[16]) : step() {
    for (int i = 0; i < 16; ++i) step[i] = static_cast<int8_t>(static_cast<uint8_t>(steps[i] + kBias));
  }
  int8_t step[16];
};

// 16 bytes of nibbles at `offset`: low ones are columns 0 to 15, high ones 16 to 31.
template <typename V>
void load_nibbles(Rows<V>& rows, size_t offset, typename V::I* out) {
  typename V::I packed[4];
  load_columns<V>(rows, offset, packed);
  const typename V::I mask = V::set_int(0x0F0F0F0F);
  for (int k = 0; k < 4; ++k) {
    out[k] = V::bit_and(packed[k], mask);
    out[k + 4] = V::bit_and(V::template shift_right<4>(packed[k]), mask);
  }
}

template <typename V>
struct Q4_0 {
  static constexpr int kBytes = 18;
  static constexpr int kBiasShift = 3;
  static constexpr bool kWide = false;
  static constexpr int kMost = 15;
  static typename V::F scale(Rows<V>& rows, size_t offset) { return V::low_half(V::load_u16(rows, offset)); }
  static void weights(Rows<V>& rows, size_t offset, typename V::I* out) { load_nibbles<V>(rows, offset + 2, out); }
};

template <typename V>
struct Q8_0 {
  static constexpr int kBytes = 34;
  static constexpr int kBiasShift = V::kSignedBias == 0 ? -1 : 7;
  static constexpr bool kWide = true;
  static typename V::F scale(Rows<V>& rows, size_t offset) { return V::low_half(V::load_u16(rows, offset)); }
  static void weights(Rows<V>& rows, size_t offset, typename V::I* out) {
    for (int half = 0; half < 2; ++half) {
      typename V::I bytes[4];
      load_columns<V>(rows, offset + 2 + 16 * half, bytes);
      for (int k = 0; k < 4; ++k) {
        // Adding 128 is flipping the sign bit.
        out[4 * half + k] = V::kSignedBias == 0 ? bytes[k] : V::bit_xor(bytes[k], V::set_int(INT32_C(-0x7F7F7F80)));
      }
    }
  }
};

template <typename V>
struct Iq4Nl {
  static constexpr int kBytes = 18;
  static constexpr int kBiasShift = V::kSignedBias == 0 ? -1 : 7;
  static constexpr bool kWide = true;
  static constexpr BiasedSteps<V::kSignedBias> kSteps{kIq4Steps};
  static typename V::F scale(Rows<V>& rows, size_t offset) { return V::low_half(V::load_u16(rows, offset)); }
  static void weights(Rows<V>& rows, size_t offset, typename V::I* out) {
    load_nibbles<V>(rows, offset + 2, out);
    for (int k = 0; k < 8; ++k) out[k] = V::lookup(kSteps.step, out[k]);
  }
};

template <typename V>
struct Mxfp4 {
  static constexpr int kBytes = 17;
  static constexpr int kBiasShift = 4;
  static constexpr bool kWide = false;
  static constexpr int kMost = 28;
  static constexpr BiasedSteps<16> kSteps{kMxfp4Steps};
  // 2^(e - 128), the steps being doubled. The ends are what a float's exponent alone cannot say.
  static typename V::F scale(Rows<V>& rows, size_t offset) {
    const typename V::F power = V::as_float(V::template shift_left<23>(V::load_u8(rows, offset)));
    return V::min(V::max(V::mul(power, V::set(0.5F)), V::set(0x1p-128F)), V::set(0x1p127F));
  }
  static void weights(Rows<V>& rows, size_t offset, typename V::I* out) {
    load_nibbles<V>(rows, offset + 1, out);
    for (int k = 0; k < 8; ++k) out[k] = V::lookup(kSteps.step, out[k]);
  }
};

// --- formats of 256 columns in groups with scales of their own, for activations in blocks of 256.
//
// weight = scale[group] * byte (- 128 where biased) + offset * group_offset[group]

enum class GroupOffset { kNone, kPer16, kPer32 };

// Two bytes of each of two dwords' lanes, as signed 16-bit pairs: byte kByte and the one after it.
template <typename V, int kByte>
typename V::I byte_pair(typename V::I dword) {
  const typename V::I low = V::bit_and(V::template shift_right<8 * kByte>(dword), V::set_int(0xFF));
  const typename V::I high = V::bit_and(V::template shift_right<8 * (kByte + 1)>(dword), V::set_int(0xFF));
  return V::bit_or(low, V::template shift_left<16>(high));
}

template <typename V, int kByte>
typename V::F byte_as_float(typename V::I dword) {
  return V::to_float(V::bit_and(V::template shift_right<8 * kByte>(dword), V::set_int(0xFF)));
}
template <typename V, int kByte>
typename V::F signed_byte_as_float(typename V::I dword) {
  return V::to_float(V::template shift_right_signed<24>(V::template shift_left<24 - 8 * kByte>(dword)));
}

// Q4_K and Q5_K begin alike: two F16 scales and twelve bytes with eight 6-bit scales and eight 6-bit offsets.
template <typename V>
void decode_k4_header(Rows<V>& rows, size_t offset, IntTile<V>& tile) {
  using I = typename V::I;
  I header[4];  // d and dmin, then the twelve bytes
  load_columns<V>(rows, offset, header);
  const typename V::F d = V::low_half(header[0]);
  tile.offset = V::sub(V::zero(), V::high_half(header[0]));
  const I six = V::set_int(0x3F3F3F3F);
  const I four = V::set_int(0x0F0F0F0F);
  const I two = V::set_int(0x30303030);
  const I scales[2] = {V::bit_and(header[1], six),
                       V::bit_or(V::bit_and(header[3], four), V::bit_and(V::template shift_right<2>(header[1]), two))};
  const I offsets[2] = {V::bit_and(header[2], six), V::bit_or(V::bit_and(V::template shift_right<4>(header[3]), four),
                                                              V::bit_and(V::template shift_right<2>(header[2]), two))};
  for (int i = 0; i < 2; ++i) {
    tile.scale[4 * i] = V::mul(d, byte_as_float<V, 0>(scales[i]));
    tile.scale[4 * i + 1] = V::mul(d, byte_as_float<V, 1>(scales[i]));
    tile.scale[4 * i + 2] = V::mul(d, byte_as_float<V, 2>(scales[i]));
    tile.scale[4 * i + 3] = V::mul(d, byte_as_float<V, 3>(scales[i]));
    tile.group_offset[2 * i] = byte_pair<V, 0>(offsets[i]);
    tile.group_offset[2 * i + 1] = byte_pair<V, 2>(offsets[i]);
  }
}

template <typename V>
struct Q4_K {
  static constexpr int kBytes = 144;
  static constexpr int kGroup = 32;
  static constexpr GroupOffset kOffset = GroupOffset::kPer32;
  static constexpr bool kWide = false;
  static constexpr int kMost = 15;
  static void decode(Rows<V>& rows, size_t offset, IntTile<V>& tile) {
    decode_k4_header<V>(rows, offset, tile);
    const typename V::I mask = V::set_int(0x0F0F0F0F);
    for (int part = 0; part < 8; ++part) {  // 16 bytes: 16 columns of one group, 16 of the next
      typename V::I packed[4];
      load_columns<V>(rows, offset + 16 + 16 * part, packed);
      typename V::I* out = tile.weights + part / 2 * 16 + part % 2 * 4;
      for (int k = 0; k < 4; ++k) {
        out[k] = V::bit_and(packed[k], mask);
        out[k + 8] = V::bit_and(V::template shift_right<4>(packed[k]), mask);
      }
    }
  }
};

template <typename V>
struct Q5_K {
  static constexpr int kBytes = 176;
  static constexpr int kGroup = 32;
  static constexpr GroupOffset kOffset = GroupOffset::kPer32;
  static constexpr bool kWide = false;
  static constexpr int kMost = 31;
  static void decode(Rows<V>& rows, size_t offset, IntTile<V>& tile) {
    using I = typename V::I;
    decode_k4_header<V>(rows, offset, tile);
    const I mask = V::set_int(0x0F0F0F0F);
    const I bit = V::set_int(0x10101010);
    I fifth[2][4];  // bit g of byte l: the fifth bit of column l of group g
    load_columns<V>(rows, offset + 16, fifth[0]);
    load_columns<V>(rows, offset + 32, fifth[1]);
    for (int pair = 0; pair < 4; ++pair) {
      for (int half = 0; half < 2; ++half) {
        I packed[4];
        load_columns<V>(rows, offset + 48 + 32 * pair + 16 * half, packed);
        I* out = tile.weights + pair * 16 + half * 4;
        for (int k = 0; k < 4; ++k) {
          I& high = fifth[half][k];
          out[k] = V::bit_or(V::bit_and(packed[k], mask), V::bit_and(V::template shift_left<4>(high), bit));
          out[k + 8] = V::bit_or(V::bit_and(V::template shift_right<4>(packed[k]), mask),
                                 V::bit_and(V::template shift_left<3>(high), bit));
          high = V::template shift_right<2>(high);
        }
      }
    }
  }
};

template <typename V>
struct Q6_K {
  static constexpr int kBytes = 210;
  static constexpr int kGroup = 16;
  static constexpr GroupOffset kOffset = GroupOffset::kPer16;
  static constexpr bool kWide = false;
  static constexpr int kMost = 63;
  static void decode(Rows<V>& rows, size_t offset, IntTile<V>& tile) {
    using I = typename V::I;
    const I four = V::set_int(0x0F0F0F0F);
    const I two = V::set_int(0x30303030);
    for (int half = 0; half < 2; ++half) {    // 128 columns: 64 bytes of lower bits, 32 of upper ones
      for (int part = 0; part < 2; ++part) {  // 16 columns in each of four runs of 32
        I low[4];
        I next_low[4];
        I high[4];
        load_columns<V>(rows, offset + 64 * half + 16 * part, low);
        load_columns<V>(rows, offset + 64 * half + 32 + 16 * part, next_low);
        load_columns<V>(rows, offset + 128 + 32 * half + 16 * part, high);
        I* out = tile.weights + 32 * half + 4 * part;
        for (int k = 0; k < 4; ++k) {
          out[k] = V::bit_or(V::bit_and(low[k], four), V::bit_and(V::template shift_left<4>(high[k]), two));
          out[k + 8] = V::bit_or(V::bit_and(next_low[k], four), V::bit_and(V::template shift_left<2>(high[k]), two));
          out[k + 16] = V::bit_or(V::bit_and(V::template shift_right<4>(low[k]), four), V::bit_and(high[k], two));
          out[k + 24] = V::bit_or(V::bit_and(V::template shift_right<4>(next_low[k]), four),
                                  V::bit_and(V::template shift_right<2>(high[k]), two));
        }
      }
    }
    I scales[4];  // sixteen signed bytes
    load_columns<V>(rows, offset + 192, scales);
    const typename V::F d = V::low_half(V::load_u16(rows, offset + 208));
    tile.offset = V::mul(V::set(-32.0F), d);
    for (int i = 0; i < 4; ++i) {
      tile.scale[4 * i] = V::mul(d, signed_byte_as_float<V, 0>(scales[i]));
      tile.scale[4 * i + 1] = V::mul(d, signed_byte_as_float<V, 1>(scales[i]));
      tile.scale[4 * i + 2] = V::mul(d, signed_byte_as_float<V, 2>(scales[i]));
      tile.scale[4 * i + 3] = V::mul(d, signed_byte_as_float<V, 3>(scales[i]));
      tile.group_offset[2 * i] = signed_byte_pair<0>(scales[i]);
      tile.group_offset[2 * i + 1] = signed_byte_pair<2>(scales[i]);
    }
  }

 private:
  template <int kByte>
  static typename V::I signed_byte_pair(typename V::I dword) {
    const typename V::I low = V::template shift_right_signed<24>(V::template shift_left<24 - 8 * kByte>(dword));
    const typename V::I high = V::template shift_right_signed<24>(V::template shift_left<16 - 8 * kByte>(dword));
    return V::bit_or(V::bit_and(low, V::set_int(0xFFFF)), V::template shift_left<16>(high));
  }
};

template <typename V>
struct Q2_K {
  static constexpr int kBytes = 84;
  static constexpr int kGroup = 16;
  static constexpr GroupOffset kOffset = GroupOffset::kPer16;
  static constexpr bool kWide = false;
  static constexpr int kMost = 3;
  static void decode(Rows<V>& rows, size_t offset, IntTile<V>& tile) {
    using I = typename V::I;
    const I two = V::set_int(0x03030303);
    for (int half = 0; half < 2; ++half) {  // 128 columns in 32 bytes: bits 0 and 1 are the first 32 columns
      for (int part = 0; part < 2; ++part) {
        I packed[4];
        load_columns<V>(rows, offset + 16 + 32 * half + 16 * part, packed);
        I* out = tile.weights + 32 * half + 4 * part;
        for (int k = 0; k < 4; ++k) {
          out[k] = V::bit_and(packed[k], two);
          out[k + 8] = V::bit_and(V::template shift_right<2>(packed[k]), two);
          out[k + 16] = V::bit_and(V::template shift_right<4>(packed[k]), two);
          out[k + 24] = V::bit_and(V::template shift_right<6>(packed[k]), two);
        }
      }
    }
    I nibbles[4];  // lower: scales, upper: offsets, of sixteen groups
    load_columns<V>(rows, offset, nibbles);
    const I both = V::load_u32(rows, offset + 80);
    const typename V::F d = V::low_half(both);
    tile.offset = V::sub(V::zero(), V::high_half(both));
    const I four = V::set_int(0x0F0F0F0F);
    for (int i = 0; i < 4; ++i) {
      const I scales = V::bit_and(nibbles[i], four);
      const I offsets = V::bit_and(V::template shift_right<4>(nibbles[i]), four);
      tile.scale[4 * i] = V::mul(d, byte_as_float<V, 0>(scales));
      tile.scale[4 * i + 1] = V::mul(d, byte_as_float<V, 1>(scales));
      tile.scale[4 * i + 2] = V::mul(d, byte_as_float<V, 2>(scales));
      tile.scale[4 * i + 3] = V::mul(d, byte_as_float<V, 3>(scales));
      tile.group_offset[2 * i] = byte_pair<V, 0>(offsets);
      tile.group_offset[2 * i + 1] = byte_pair<V, 2>(offsets);
    }
  }
};

template <typename V>
struct Iq4Xs {
  static constexpr int kBytes = 136;
  static constexpr int kGroup = 32;
  static constexpr GroupOffset kOffset = GroupOffset::kNone;
  static constexpr bool kWide = true;
  static constexpr BiasedSteps<V::kSignedBias> kSteps{kIq4Steps};
  static void decode(Rows<V>& rows, size_t offset, IntTile<V>& tile) {
    using I = typename V::I;
    for (int group = 0; group < 8; ++group) {
      I* out = tile.weights + 8 * group;
      load_nibbles<V>(rows, offset + 8 + 16 * group, out);
      for (int k = 0; k < 8; ++k) out[k] = V::lookup(kSteps.step, out[k]);
    }
    const I first = V::load_u32(rows, offset);  // F16 scale; two upper bits of each group's scale
    I low = V::load_u32(rows, offset + 4);      // four lower bits of each
    I high = V::template shift_right<16>(first);
    const typename V::F d = V::low_half(first);
    tile.offset = V::zero();
    for (int group = 0; group < 8; ++group) {
      const I scale =
          V::bit_or(V::bit_and(low, V::set_int(0xF)), V::template shift_left<4>(V::bit_and(high, V::set_int(3))));
      tile.scale[group] = V::mul(d, V::to_float(V::sub_int(scale, V::set_int(32))));
      low = V::template shift_right<4>(low);
      high = V::template shift_right<2>(high);
    }
  }
};

// --- floats: a vector of columns of one row, and how it is multiplied with as many of a token

template <typename V>
struct FloatWeights {
  static constexpr bool kPairs = false;
  static constexpr int kVectorColumns = V::kLanes;
  static typename V::F multiply(typename V::F w, typename V::F x, typename V::F sum) { return V::fma(w, x, sum); }
};

template <typename V>
struct F32Weights : FloatWeights<V> {
  static constexpr size_t kVectorBytes = 4 * V::kLanes;
  static typename V::F load(const std::byte* p) { return V::load(reinterpret_cast<const float*>(p)); }
};

template <typename V>
struct F16Weights : FloatWeights<V> {
  static constexpr size_t kVectorBytes = 2 * V::kLanes;
  static typename V::F load(const std::byte* p) { return V::load_f16(p); }
};

template <typename V>
struct Bf16Weights : FloatWeights<V> {
  static constexpr size_t kVectorBytes = 2 * V::kLanes;
  static typename V::F load(const std::byte* p) { return V::load_bf16(p); }
};

// Two columns to a lane, for processors that multiply them so: an order of sums, and a rounding, of its own.
template <typename V>
struct Bf16Pairs {
  static constexpr bool kPairs = true;
  static constexpr int kVectorColumns = 2 * V::kLanes;
  static constexpr size_t kVectorBytes = 4 * V::kLanes;
  static typename V::F load(const std::byte* p) { return V::load(reinterpret_cast<const float*>(p)); }
  static typename V::F multiply(typename V::F w, typename V::F x, typename V::F sum) { return V::dot_bf16(sum, w, x); }
};

}  // namespace drafthorse::ops::simd
