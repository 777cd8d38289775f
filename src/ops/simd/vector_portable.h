// A vector of eight 32-bit lanes in plain C++. What each operation means is defined here; the other vectors do the
// same with instructions, bit for bit.
#pragma once

#include <ggml.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace drafthorse::ops::simd {
namespace {  // code of one instruction set must never stand in for another's: internal on purpose

struct PortableVector {
  static constexpr int kLanes = 8;
  // Tokens whose sums are kept in registers at once, for whole-number and for floating-point weights.
  static constexpr int kIntTokens = 2;
  static constexpr int kFloatTokens = 2;
  // More have floating-point weights converted to floats once for all of them.
  static constexpr int kUnconvertedTokens = 2;
  // Of whom 1024 columns stay in the first cache.
  static constexpr int kFewTokens = 2;
  static constexpr int kFloatRows = 1;         // weight rows at once, for floating-point weights
  static constexpr int kMostFloatVectors = 8;  // of their sums, kept in registers at once
  // Whether pairs of BF16 numbers are multiplied by an instruction of their own, which rounds in its own way.
  static constexpr bool kBf16Pairs = false;
  // Query rows times vectors of keys or of value dimensions whose sums are kept in registers at once.
  static constexpr int kAttentionRows = 2;
  static constexpr int kAttentionVectors = 2;
  // What dot_s8() wants added to signed weights: 128 where the instruction takes unsigned ones only.
  static constexpr int kSignedBias = 0;
  // Whether sums in 16 bits are cheaper: then pairs_u8(), add_words() and add_pairs() are there, which together make
  // dot_u8() of several.
  static constexpr bool kSumsWords = false;

  struct I {
    int32_t lane[kLanes];
  };
  struct F {
    float lane[kLanes];
  };

  template <typename Function>
  static I ints(Function function) {
    I result;
    for (int i = 0; i < kLanes; ++i) result.lane[i] = function(i);
    return result;
  }
  template <typename Function>
  static F floats(Function function) {
    F result;
    for (int i = 0; i < kLanes; ++i) result.lane[i] = function(i);
    return result;
  }

  // --- floats
  static F zero() {
    return floats([](int) { return 0.0F; });
  }
  static F set(float x) {
    return floats([&](int) { return x; });
  }
  static F broadcast(const float* x) { return set(*x); }
  static F load(const float* p) {
    F result;
    std::memcpy(&result, p, sizeof result);
    return result;
  }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  // Has x in a register now, where a compiler would load it again for every use.
  static void keep(F&) {}
  static F add(F a, F b) {
    return floats([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F sub(F a, F b) {
    return floats([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F mul(F a, F b) {
    return floats([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F div(F a, F b) {
    return floats([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  // a * b + c, rounded once
  static F fma(F a, F b, F c) {
    return floats([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
  }
  // c - a * b, rounded once
  static F negated_fma(F a, F b, F c) {
    return floats([&](int i) { return std::fma(-a.lane[i], b.lane[i], c.lane[i]); });
  }
  // b where either is not a number.
  static F max(F a, F b) {
    return floats([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F min(F a, F b) {
    return floats([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F abs(F a) {
    return floats([&](int i) { return std::abs(a.lane[i]); });
  }
  // (((a0 + a8) + (a4 + a12)) + ..: upper half added to lower half until one is left; of a and b, b is the upper half.
  static float fold(F a, F b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) a.lane[i] += a.lane[i + half];
    }
    return a.lane[0];
  }
  // x, or 0 in lanes where a < b.
  static F zero_if_less(F x, F a, F b) {
    return floats([&](int i) { return a.lane[i] < b.lane[i] ? 0.0F : x.lane[i]; });
  }
  // The largest lane.
  static float reduce_max(F a) {
    float result = a.lane[0];
    for (int i = 1; i < kLanes; ++i) result = a.lane[i] > result ? a.lane[i] : result;
    return result;
  }

  // --- between the two
  static F as_float(I a) { return std::bit_cast<F>(a); }
  static I as_int(F a) { return std::bit_cast<I>(a); }
  static F to_float(I a) {
    return floats([&](int i) { return static_cast<float>(a.lane[i]); });
  }
  // Nearest, ties to even. INT32_MIN where it does not fit.
  static I round(F a) {
    return ints([&](int i) {
      return std::abs(a.lane[i]) < 0x1p31F ? static_cast<int32_t>(std::nearbyint(a.lane[i])) : INT32_MIN;
    });
  }
  // The lower 16 bits of each lane as an F16; the upper ones.
  static F low_half(I a) {
    return floats([&](int i) { return ggml_fp16_to_fp32(static_cast<ggml_fp16_t>(a.lane[i] & 0xFFFF)); });
  }
  static F high_half(I a) { return low_half(shift_right<16>(a)); }
  // kLanes halves or bfloats, one after the other.
  static F load_f16(const void* p) {
    uint16_t halves[kLanes];
    std::memcpy(halves, p, sizeof halves);
    return floats([&](int i) { return ggml_fp16_to_fp32(halves[i]); });
  }
  static F load_bf16(const void* p) {
    uint16_t halves[kLanes];
    std::memcpy(halves, p, sizeof halves);
    return floats([&](int i) { return std::bit_cast<float>(static_cast<uint32_t>(halves[i]) << 16); });
  }
  // kLanes signed bytes, one after the other.
  static F load_i8(const void* p) {
    int8_t bytes[kLanes];
    std::memcpy(bytes, p, sizeof bytes);
    return floats([&](int i) { return static_cast<float>(bytes[i]); });
  }
  // Rounded to F16 and back.
  static F round_to_f16(F a) {
    return floats([&](int i) { return ggml_fp16_to_fp32(ggml_fp32_to_fp16(a.lane[i])); });
  }

  // --- whole numbers
  static I zero_int() {
    return ints([](int) { return 0; });
  }
  static I set_int(int32_t x) {
    return ints([&](int) { return x; });
  }
  static I broadcast_int(const void* p) {
    int32_t x;
    std::memcpy(&x, p, sizeof x);
    return set_int(x);
  }
  static I load_int(const void* p) {
    I result;
    std::memcpy(&result, p, sizeof result);
    return result;
  }
  static void store_int(void* p, I x) { std::memcpy(p, &x, sizeof x); }
  // kLanes bytes, the nearest to what does not fit.
  static void store_i8(void* p, I x) {
    for (int i = 0; i < kLanes; ++i) static_cast<int8_t*>(p)[i] = static_cast<int8_t>(std::clamp(x.lane[i], -128, 127));
  }
  static I bit_and(I a, I b) {
    return ints([&](int i) { return a.lane[i] & b.lane[i]; });
  }
  static I bit_or(I a, I b) {
    return ints([&](int i) { return a.lane[i] | b.lane[i]; });
  }
  static I bit_xor(I a, I b) {
    return ints([&](int i) { return a.lane[i] ^ b.lane[i]; });
  }
  // Modulo 2^32.
  static I add_int(I a, I b) {
    return ints([&](int i) {
      return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) + static_cast<uint32_t>(b.lane[i]));
    });
  }
  static I sub_int(I a, I b) {
    return ints([&](int i) {
      return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) - static_cast<uint32_t>(b.lane[i]));
    });
  }
  template <int kBits>
  static I shift_left(I a) {
    return ints([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) << kBits); });
  }
  template <int kBits>
  static I shift_right(I a) {
    return ints([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) >> kBits); });
  }
  template <int kBits>
  static I shift_right_signed(I a) {
    return ints([&](int i) { return a.lane[i] >> kBits; });
  }
  // Each byte (0 to 15) replaced by table's.
  static I lookup(const int8_t (&table)[16], I bytes) {
    uint8_t in[sizeof(I)];
    int8_t out[sizeof(I)];
    std::memcpy(in, &bytes, sizeof in);
    for (size_t i = 0; i < sizeof out; ++i) out[i] = table[in[i] & 15];
    return load_int(out);
  }

  // acc + the four products of bytes in each lane; w: 0 to 127, x: signed
  static I dot_u8(I acc, I w, I x) { return dot_s8(acc, w, x); }
  // the same for signed w, kSignedBias added
  static I dot_s8(I acc, I w, I x) {
    return ints([&](int i) {
      int32_t sum = acc.lane[i];
      for (int b = 0; b < 4; ++b) {
        sum += static_cast<int8_t>(w.lane[i] >> (8 * b)) * static_cast<int8_t>(x.lane[i] >> (8 * b));
      }
      return sum;
    });
  }
  // acc + the two products of signed 16-bit numbers in each lane
  static I dot_s16(I acc, I w, I x) {
    return ints([&](int i) {
      const int32_t low = static_cast<int16_t>(w.lane[i]) * static_cast<int16_t>(x.lane[i]);
      const int32_t high = static_cast<int16_t>(w.lane[i] >> 16) * static_cast<int16_t>(x.lane[i] >> 16);
      return acc.lane[i] + low + high;
    });
  }

  // --- one row of memory per lane; rows.row(r) is where row r begins
  // out[k], lane r = the 32 bits of row r at offset + 4 k, for k in 0..3
  template <typename Rows>
  static void load_columns(const Rows& rows, size_t offset, I (&out)[4]) {
    for (int k = 0; k < 4; ++k) {
      for (int r = 0; r < kLanes; ++r) std::memcpy(&out[k].lane[r], rows.row(r) + offset + 4 * k, 4);
    }
  }
  // lane r = the 8, 16 or 32 bits of row r at offset
  template <typename Rows>
  static I load_u8(const Rows& rows, size_t offset) {
    return ints([&](int r) { return static_cast<int32_t>(rows.row(r)[offset]); });
  }
  template <typename Rows>
  static I load_u16(const Rows& rows, size_t offset) {
    return ints([&](int r) {
      uint16_t x;
      std::memcpy(&x, rows.row(r) + offset, sizeof x);
      return static_cast<int32_t>(x);
    });
  }
  template <typename Rows>
  static I load_u32(const Rows& rows, size_t offset) {
    return ints([&](int r) {
      int32_t x;
      std::memcpy(&x, rows.row(r) + offset, sizeof x);
      return x;
    });
  }
  static void prefetch(const std::byte* p) { __builtin_prefetch(p, 0, 2); }
};

}  // namespace
}  // namespace drafthorse::ops::simd
