// How fast the processor multiplies when nothing else holds it up: the measure that kernels are held against.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drafthorse::ops::simd {

inline constexpr int kPeakSums = 12;  // independent sums: more than latency times units of any processor

// `rounds` times kPeakSums dot products of bytes. Returns multiplications done.
template <typename V>
int64_t peak_of_bytes(int64_t rounds, int32_t* sink) {
  typename V::I sum[kPeakSums];
  for (auto& one : sum) one = V::set_int(*sink);
  const typename V::I w = V::set_int(*sink & 0x01010101);
  const typename V::I x = V::set_int(*sink | 0x01010101);
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& one : sum) one = V::dot_u8(one, w, x);
  }
  typename V::I all = sum[0];
  for (const auto& one : sum) all = V::bit_xor(all, one);
  int32_t out[V::kLanes];
  V::store_int(out, all);
  *sink = out[0];
  return rounds * kPeakSums * V::kLanes * 4;
}

// The same with fma.
template <typename V>
int64_t peak_of_floats(int64_t rounds, float* sink) {
  typename V::F sum[kPeakSums];
  for (auto& one : sum) one = V::set(*sink);
  const typename V::F w = V::set(*sink);
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& one : sum) one = V::fma(w, one, w);
  }
  typename V::F all = sum[0];
  for (const auto& one : sum) all = V::max(all, one);
  *sink = V::reduce_max(all);
  return rounds * kPeakSums * V::kLanes;
}

// Reads `bytes`, a multiple of 1024, as fast as one core can. Returns a number that depends on all of them.
template <typename V>
int32_t read_memory(const std::byte* memory, size_t bytes) {
  constexpr size_t kStep = sizeof(typename V::I);
  typename V::I sum[4] = {V::zero_int(), V::zero_int(), V::zero_int(), V::zero_int()};
  for (size_t i = 0; i < bytes; i += 4 * kStep) {
    for (size_t j = 0; j < 4; ++j) sum[j] = V::bit_xor(sum[j], V::load_int(memory + i + j * kStep));
  }
  int32_t out[V::kLanes];
  V::store_int(out, V::bit_xor(V::bit_xor(sum[0], sum[1]), V::bit_xor(sum[2], sum[3])));
  int32_t all = 0;
  for (const int32_t lane : out) all ^= lane;
  return all;
}

}  // namespace drafthorse::ops::simd
