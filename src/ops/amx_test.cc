#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "ops/linear.h"
#include "ops/simd/linear_amx.h"
#include "ops/testing/emulated_amx.h"
#include "ops/testing/emulated_tiles.h"
#include "ops/testing/random_weights.h"

namespace drafthorse::ops {
namespace {

// The kernels for AMX over emulated instructions, and over the processor's where it has them.
std::vector<simd::Kernels> amx_kernels() {
  std::vector<simd::Kernels> all = simd::emulated_amx_kernels();
  if (executes(Isa::kAmx)) all.push_back(simd::kernels(Isa::kAmx));
  return all;
}

std::vector<float> multiply(const simd::Kernels& kernels, const RandomMatrix& w, std::span<const std::byte* const> x) {
  std::vector<float> y(x.size() * static_cast<size_t>(w.matrix.rows));
  linear_rows(kernels, w.matrix, x, y.data(), w.matrix.rows, 0, w.matrix.rows);
  return y;
}

// Around the numbers of tokens that are treated alike: a few, one tile, several, a block.
constexpr size_t kTokenCounts[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  11, 13, 15, 16,
                                   17, 20, 21, 31, 32, 36, 37, 48, 53, 63, 64, 65, 70};

// Tokens in any order and more than once, as experts see them.
std::vector<const std::byte*> choose(const RandomActivations& x, size_t count, std::mt19937_64& random) {
  std::vector<const std::byte*> chosen(count);
  for (const std::byte*& one : chosen) one = x.rows[random() % x.rows.size()];
  return chosen;
}

TEST(Amx, WholeNumbersGiveTheBitsOfPortableCode) {
  std::mt19937_64 random(11);
  for (const ggml_type type : kTestedTypes) {
    if (type == GGML_TYPE_BF16) continue;  // an instruction with an order of its own
    SCOPED_TRACE(ggml_type_name(type));
    const int64_t block = std::max(ggml_blck_size(type), ggml_blck_size(activation_format(type).type));
    for (const size_t tokens : kTokenCounts) {
      const int64_t columns = block * static_cast<int64_t>(1 + random() % (block == 256 ? 3 : 19));
      const RandomMatrix w(type, columns, static_cast<int64_t>(1 + random() % 40), random);
      const RandomActivations x(random_floats(static_cast<size_t>(columns) * 20, random, 2), columns, type,
                                Isa::kPortable);
      const std::vector<const std::byte*> chosen = choose(x, tokens, random);
      const std::vector<float> expected = multiply(simd::kernels(Isa::kPortable), w, chosen);
      for (const simd::Kernels& kernels : amx_kernels()) {
        ASSERT_TRUE(same_bits(multiply(kernels, w, chosen), expected))
            << columns << " x " << w.matrix.rows << ", " << tokens << " tokens, " << kernels.lanes << " lanes";
      }
    }
  }
}

// The largest sums there are: bytes of 255 once biased, activations of -127.
TEST(Amx, LargestWholeNumbersGiveTheBitsOfPortableCode) {
  constexpr int64_t kColumns = 512;
  std::mt19937_64 random(12);
  RandomMatrix w(GGML_TYPE_Q8_0, kColumns, 16, random);
  for (size_t i = 0; i < w.data.size(); ++i) w.data[i] = i % 34 == 1 ? std::byte{0x3C} : std::byte{0x7F};
  const RandomActivations x(std::vector<float>(kColumns * 9, -1.0F), kColumns, GGML_TYPE_Q8_0, Isa::kPortable);
  const std::vector<float> expected = multiply(simd::kernels(Isa::kPortable), w, x.rows);
  for (const simd::Kernels& kernels : amx_kernels()) EXPECT_TRUE(same_bits(multiply(kernels, w, x.rows), expected));
}

// The order that linear_amx.h promises, in a few lines. Nothing here is subnormal.
float bf16_reference(const float* w, const float* x, int64_t columns) {
  float sum = 0;
  for (int64_t begin = 0; begin < columns; begin += 32) {
    float part[2] = {0, 0};
    for (int64_t c = begin; c < std::min(begin + 32, columns); ++c) part[c % 2] = std::fma(w[c], x[c], part[c % 2]);
    sum += part[0] + part[1];
  }
  return sum;
}

TEST(Amx, Bf16HasOneOrderForAnyNumberOfTokens) {
  std::mt19937_64 random(13);
  for (const size_t tokens : kTokenCounts) {
    for (const int64_t columns : {int64_t{1}, int64_t{32}, int64_t{256}, static_cast<int64_t>(1 + random() % 700)}) {
      const RandomMatrix w(GGML_TYPE_BF16, columns, static_cast<int64_t>(1 + random() % 40), random);
      const RandomActivations x(random_floats(static_cast<size_t>(columns) * 20, random, 2), columns, GGML_TYPE_BF16,
                                Isa::kPortable);
      const std::vector<const std::byte*> chosen = choose(x, tokens, random);
      std::vector<float> expected;
      for (const std::byte* one : chosen) {
        const std::vector<float> values = activation_values(one, columns, activation_format(GGML_TYPE_BF16));
        for (int64_t r = 0; r < w.matrix.rows; ++r)
          expected.push_back(bf16_reference(w.row(r), values.data(), columns));
      }
      for (const simd::Kernels& kernels : amx_kernels()) {
        ASSERT_TRUE(same_bits(multiply(kernels, w, chosen), expected))
            << columns << " x " << w.matrix.rows << ", " << tokens << " tokens, " << kernels.lanes << " lanes";
      }
    }
  }
}

// What lies behind a row's last column is not part of it, whatever it is.
TEST(Amx, Bf16ReadsNoColumnOfTheNextRow) {
  std::mt19937_64 random(14);
  constexpr int64_t kColumns = 40;
  constexpr int64_t kRows = 17;
  const RandomMatrix w(GGML_TYPE_BF16, kColumns, kRows, random);
  const size_t stride = w.matrix.row_bytes + 64;
  std::vector<std::byte> apart(stride * kRows, std::byte{0xFF});  // bytes that are not a number
  for (size_t r = 0; r < kRows; ++r) {
    std::memcpy(apart.data() + r * stride, w.data.data() + r * w.matrix.row_bytes, w.matrix.row_bytes);
  }
  const WeightMatrix spaced{apart.data(), GGML_TYPE_BF16, kColumns, kRows, stride};
  const RandomActivations x(random_floats(kColumns * 3, random), kColumns, GGML_TYPE_BF16, Isa::kPortable);
  for (const simd::Kernels& kernels : amx_kernels()) {
    std::vector<float> y(3 * kRows);
    linear_rows(kernels, spaced, x.rows, y.data(), kRows, 0, kRows);
    EXPECT_TRUE(same_bits(y, multiply(kernels, w, x.rows)));
  }
}

// What the instruction does where it differs from fma: the emulation, on one product.
TEST(Amx, EmulatedBf16TakesSubnormalNumbersForZero) {
  const auto dot = [](float a, float b, float c) {
    simd::TileConfig config;
    for (int i = 0; i < 3; ++i) {
      config.rows[i] = 1;
      config.row_bytes[i] = 4;
    }
    simd::EmulatedTiles tiles(config);
    const uint32_t a_bits = std::bit_cast<uint32_t>(a) >> 16;
    const uint32_t b_bits = std::bit_cast<uint32_t>(b) >> 16;
    tiles.load<0>(&c, 4);
    tiles.load<1>(&a_bits, 4);
    tiles.load<2>(&b_bits, 4);
    tiles.dot_bf16<0, 1, 2>();
    tiles.store<0>(&c, 4);
    return c;
  };
  EXPECT_EQ(dot(2, 3, 4), 10);
  EXPECT_EQ(dot(0x1p-130F, 0x1p100F, 0), 0);  // a subnormal factor
  EXPECT_EQ(dot(0x1p-70F, 0x1p-60F, 0), 0);   // a subnormal product
  EXPECT_EQ(dot(1, 1, 0x1p-130F), 1);         // a subnormal sum so far
  EXPECT_EQ(dot(0, 0, 0x1p-130F), 0);
  EXPECT_EQ(dot(0x1p-63F, 0x1p-63F, 0), 0x1p-126F);  // the least that is not
  EXPECT_EQ(dot(-0x1p-126F, 1, 0x1.8p-126F), 0);     // a subnormal difference
  EXPECT_EQ(dot(0x1p100F, 0x1p100F, 0), std::numeric_limits<float>::infinity());
}

// Nothing chooses these kernels by itself, and the name finds them.
TEST(Amx, IsForThoseWhoAskForIt) {
  const std::vector<Isa> isas = supported_isas();
  EXPECT_EQ(std::find(isas.begin(), isas.end(), Isa::kAmx), isas.end());
  EXPECT_EQ(isa_named("amx"), Isa::kAmx);
  EXPECT_EQ(name(Isa::kAmx), "amx");
  for (const Isa isa : isas) EXPECT_TRUE(executes(isa));
}

}  // namespace
}  // namespace drafthorse::ops
