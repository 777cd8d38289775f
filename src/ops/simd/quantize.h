// Activations rounded to 8 bits, to the same numbers as ggml's x86 code does, in the layout of ops/activation.h; and
// what joins the two halves of a gated FFN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops/activation.h"
#include "ops/simd/math.h"

namespace drafthorse::ops::simd {

// Rounds `kCount` floats times `factor` to bytes.
template <typename V, int kCount>
void round_to_bytes(const float* x, float factor, int8_t* out) {
  const typename V::F scaled = V::set(factor);
  for (int i = 0; i < kCount; i += V::kLanes) V::store_i8(out + i, V::round(V::mul(V::load(x + i), scaled)));
}

template <typename V, int kCount>
float largest_magnitude(const float* x) {
  typename V::F largest = V::zero();
  for (int i = 0; i < kCount; i += V::kLanes) largest = V::max(V::abs(V::load(x + i)), largest);
  return V::reduce_max(largest);
}

template <typename V>
int32_t sum_of_16(const int8_t* x) {
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += x[i];
  return sum;
}

template <typename V>
void quantize_q8_0(const float* x, std::byte* out, int64_t columns) {
  const QuantizedLayout layout(columns, 32);
  auto* bytes = reinterpret_cast<int8_t*>(out);
  auto* scales = reinterpret_cast<float*>(out + layout.scale);
  auto* negated = reinterpret_cast<int32_t*>(out + layout.negated_sum);
  for (int64_t b = 0; b < columns / 32; ++b) {
    const float largest = largest_magnitude<V, 32>(x + 32 * b);
    // The scale is kept as an F16 would keep it; rounding divides by the exact one.
    float rounded[V::kLanes];
    V::store(rounded, V::round_to_f16(V::set(largest / 127.0F)));
    scales[b] = rounded[0];
    round_to_bytes<V, 32>(x + 32 * b, largest == 0 ? 0.0F : 127.0F / largest, bytes + 32 * b);
    negated[b] = -(sum_of_16<V>(bytes + 32 * b) + sum_of_16<V>(bytes + 32 * b + 16));
  }
}

template <typename V>
void quantize_q8_k(const float* x, std::byte* out, int64_t columns) {
  const QuantizedLayout layout(columns, 256);
  auto* bytes = reinterpret_cast<int8_t*>(out);
  auto* scales = reinterpret_cast<float*>(out + layout.scale);
  auto* negated = reinterpret_cast<int32_t*>(out + layout.negated_sum);
  auto* sums_16 = reinterpret_cast<int16_t*>(out + layout.sum_16);
  auto* sums_32 = reinterpret_cast<int16_t*>(out + layout.sum_32);
  for (int64_t b = 0; b < columns / 256; ++b) {
    const float largest = largest_magnitude<V, 256>(x + 256 * b);
    const float factor = largest == 0 ? 0.0F : 127.0F / largest;
    scales[b] = largest == 0 ? 0.0F : 1.0F / factor;
    round_to_bytes<V, 256>(x + 256 * b, factor, bytes + 256 * b);
    for (int64_t g = 8 * b; g < 8 * b + 8; ++g) {
      const int32_t first = sum_of_16<V>(bytes + 32 * g);
      const int32_t second = sum_of_16<V>(bytes + 32 * g + 16);
      sums_16[2 * g] = static_cast<int16_t>(first);
      sums_16[2 * g + 1] = static_cast<int16_t>(second);
      sums_32[g] = static_cast<int16_t>(first + second);
      negated[g] = -(first + second);
    }
  }
}

// function(vector of in[i..]...) -> out[i..], the end through a padded copy.
template <typename V, typename Function>
void map_floats(int64_t count, float* out, const float* a, const float* b, const Function& function) {
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::store(out + i, function(V::load(a + i), V::load(b + i)));
  if (i == count) return;
  float rest[3][V::kLanes] = {};
  const size_t bytes = static_cast<size_t>(count - i) * sizeof(float);
  std::memcpy(rest[0], a + i, bytes);
  std::memcpy(rest[1], b + i, bytes);
  V::store(rest[2], function(V::load(rest[0]), V::load(rest[1])));
  std::memcpy(out + i, rest[2], bytes);
}

template <typename V>
void round_to_f16(const float* x, float* out, int64_t count) {
  map_floats<V>(count, out, x, x, [](typename V::F a, typename V::F) { return V::round_to_f16(a); });
}

// Nearest, ties to even; what is not a number stays so.
template <typename V>
void round_to_bf16(const float* x, float* out, int64_t count) {
  map_floats<V>(count, out, x, x, [](typename V::F a, typename V::F) {
    using I = typename V::I;
    const I bits = V::as_int(a);
    const I odd = V::bit_and(V::template shift_right<16>(bits), V::set_int(1));
    const I rounded = V::add_int(bits, V::add_int(odd, V::set_int(0x7FFF)));
    // Rounding could carry what is not a number into infinity or the sign.
    const I magnitude = V::bit_and(bits, V::set_int(0x7FFFFFFF));
    const I no_number = V::template shift_right_signed<31>(V::sub_int(V::set_int(0x7F800000), magnitude));
    const I quiet = V::bit_or(bits, V::set_int(0x00400000));
    const I result = V::bit_xor(rounded, V::bit_and(V::bit_xor(rounded, quiet), no_number));
    return V::as_float(V::bit_and(result, V::set_int(INT32_C(-0x10000))));
  });
}

template <typename V>
void gate(const float* gate, const float* up, float* y, int64_t count) {
  map_floats<V>(count, y, gate, up, [](typename V::F g, typename V::F u) { return V::mul(silu<V>(g), u); });
}

}  // namespace drafthorse::ops::simd
