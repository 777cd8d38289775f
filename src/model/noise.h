// Random numbers that are a function of (seed, stream, position, token): no state, so no order in which they are drawn
// can change them. What is drawn for a token at a position is the same whether it was drafted first or not.
//
// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, section 4, with the
// finalizer of Stafford's "Mix13" they name) used as a counter-based generator: each (seed, stream, position) is the
// start of a sequence of its own, and token t is its t-th number.
#pragma once

#include <cmath>
#include <cstdint>

namespace drafthorse {

// What a number is used for. Numbers of different streams are independent.
enum class NoiseStream : uint64_t { kToken = 1, kDraft = 2, kAccept = 3, kResidual = 4 };

class Noise {
 public:
  Noise(uint64_t seed, NoiseStream stream, uint64_t position)
      : start_(mix(mix(mix(seed + kGamma) + static_cast<uint64_t>(stream) * kGamma) + (position + 1) * kGamma)) {}

  uint64_t bits(int32_t token) const { return mix(start_ + (static_cast<uint64_t>(token) + 1) * kGamma); }

  // In (0, 1).
  double uniform(int32_t token = 0) const { return to_uniform(bits(token)); }

  // Gumbel(0, 1), from bits(): -log(-log(1 - u)). The tail that decides (large values) has 64 bits of resolution.
  static double gumbel(uint64_t bits) { return -std::log(-std::log1p(-to_uniform(bits))); }
  double gumbel(int32_t token) const { return gumbel(bits(token)); }
  // At least gumbel(bits), for a few integer operations: -log(1 - u) >= u, and u has so many leading zeros.
  static double gumbel_bound(uint64_t bits) {
    constexpr double kLogTwo = 0.6931471805599454;  // rounded up
    return kLogTwo * (1 + (bits == 0 ? 64 : __builtin_clzll(bits)));
  }

 private:
  static constexpr uint64_t kGamma = 0x9E3779B97F4A7C15ULL;

  static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  static double to_uniform(uint64_t bits) {
    const double u = (static_cast<double>(bits) + 0.5) * 0x1p-64;
    return u < 1 ? u : 1 - 0x1p-53;  // the conversion may have rounded up
  }

  uint64_t start_;
};

}  // namespace drafthorse
