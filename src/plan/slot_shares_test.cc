#include "plan/slot_shares.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace drafthorse {
namespace {

// Uses that find their expert, when a layer holds its most used ones.
double served(std::vector<double> rates, int slots) {
  std::sort(rates.begin(), rates.end(), std::greater<>());
  return std::accumulate(rates.begin(), rates.begin() + std::min<std::ptrdiff_t>(slots, std::ssize(rates)), 0.0);
}

TEST(SlotShares, GoWhereUseIsSpread) {
  const std::vector<double> shares = share_slots({{0.9, 0.1, 0, 0}, {0.25, 0.25, 0.25, 0.25}, {}}, 5, 1);
  EXPECT_EQ(shares, (std::vector<double>{1, 4, 0}));
}

TEST(SlotShares, NoDivisionServesMore) {
  constexpr uint64_t kSeed = 8;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937_64 random(kSeed);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::vector<double>> rates(3);
    for (auto& layer : rates) {
      layer.resize(1 + random() % 6);
      for (double& rate : layer) rate = static_cast<double>(random() % 1000) / 1000;
    }
    const int slots = 3 + static_cast<int>(random() % 12);
    const std::vector<double> shares = share_slots(rates, slots, 1);
    EXPECT_LE(std::accumulate(shares.begin(), shares.end(), 0.0), slots);
    double ours = 0;
    for (size_t l = 0; l < 3; ++l) {
      EXPECT_GE(shares[l], 1);
      ours += served(rates[l], static_cast<int>(shares[l]));
    }
    for (int a = 1; a <= slots - 2; ++a) {
      for (int b = 1; b <= slots - a - 1; ++b) {
        const double other = served(rates[0], a) + served(rates[1], b) + served(rates[2], slots - a - b);
        ASSERT_LE(other, ours + 1e-9) << a << ' ' << b;
      }
    }
  }
}

}  // namespace
}  // namespace drafthorse
