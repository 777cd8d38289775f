#include "plan/draft_worth.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace drafthorse {
namespace {

// Cycles until it should go, with noise of so many per cent; `most` where it never should.
int cycles_until_gone(double gain, double noise, uint64_t seed, int most = 2000) {
  DraftWorth worth;
  std::mt19937_64 random(seed);
  std::normal_distribution<double> error(0, noise);
  for (int cycle = 1; cycle <= most; ++cycle) {
    worth.observe(gain * std::exp(error(random)), 1);
    if (worth.should_go()) return cycle;
  }
  return most;
}

TEST(DraftWorth, LargeDifferencesDecideSoonAndSmallOnesInTime) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    EXPECT_LE(cycles_until_gone(2, 0.1, seed), 6);
    EXPECT_LE(cycles_until_gone(1.2, 0.1, seed), 16);
    EXPECT_LE(cycles_until_gone(1.1, 0.1, seed), 80);
  }
}

TEST(DraftWorth, ADraftThatPaysStays) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    EXPECT_EQ(cycles_until_gone(0.9, 0.15, seed), 2000);
    EXPECT_EQ(cycles_until_gone(0.5, 0.3, seed), 2000);
    // Within the margin nothing is certain enough for what cannot be undone.
    EXPECT_EQ(cycles_until_gone(1.0, 0.05, seed), 2000);
  }
}

TEST(DraftWorth, OneOddCycleDecidesNothing) {
  DraftWorth worth;
  EXPECT_EQ(worth.gain(), 1);
  worth.observe(1000, 1);
  EXPECT_FALSE(worth.should_go());
  for (int i = 0; i < 20; ++i) worth.observe(1, 1.3);
  EXPECT_FALSE(worth.should_go());
  EXPECT_NEAR(worth.gain(), 1 / 1.3, 0.01);
}

}  // namespace
}  // namespace drafthorse
