#include "plan/miss_placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace drafthorse {
namespace {

double ends(std::span<const MissingExpert> missing, const std::vector<bool>& on_host) {
  double copies = 0;
  double host = 0;
  for (size_t i = 0; i < missing.size(); ++i)
    (on_host[i] ? host : copies) += on_host[i] ? missing[i].host_s : missing[i].copy_s;
  return std::max(copies, host);
}

TEST(MissPlacement, NothingMissing) { EXPECT_TRUE(compute_on_host({}).empty()); }

TEST(MissPlacement, SlowHostComputesNothing) {
  const std::vector<MissingExpert> missing(4, {1.0, 10.0});
  EXPECT_EQ(compute_on_host(missing), std::vector<bool>(4, false));
}

TEST(MissPlacement, FastHostComputesAll) {
  const std::vector<MissingExpert> missing(3, {1.0, 0.01});
  EXPECT_EQ(compute_on_host(missing), std::vector<bool>(3, true));
}

TEST(MissPlacement, EqualOnesAreShared) {
  const std::vector<MissingExpert> missing(4, {1.0, 1.0});
  const std::vector<bool> on_host = compute_on_host(missing);
  EXPECT_EQ(std::count(on_host.begin(), on_host.end(), true), 2);
}

// A single one that the host would finish hardly sooner is worth having on the device.
TEST(MissPlacement, SmallGainsAreCopied) {
  const std::vector<MissingExpert> missing = {{1.0, 0.95}};
  EXPECT_EQ(compute_on_host(missing), std::vector<bool>{false});
}

// Those with many tokens take the host long and the link no longer.
TEST(MissPlacement, HostTakesThoseWithFewTokens) {
  const std::vector<MissingExpert> missing = {{1.0, 3.0}, {1.0, 0.5}, {1.0, 3.0}, {1.0, 0.5}};
  EXPECT_EQ(compute_on_host(missing), (std::vector<bool>{false, true, false, true}));
}

TEST(MissPlacement, NeverWorseThanCopyingAndNearTheBest) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> seconds(0.1, 2.0);
  for (int round = 0; round < 200; ++round) {
    std::vector<MissingExpert> missing(static_cast<size_t>(round % 9 + 1));
    for (MissingExpert& one : missing) one = {1.0, seconds(random)};
    const double ours = ends(missing, compute_on_host(missing));
    double best = 1e9;
    double largest = 1.0;
    for (const MissingExpert& one : missing) largest = std::max(largest, one.host_s);
    for (unsigned bits = 0; bits < 1U << missing.size(); ++bits) {
      std::vector<bool> on_host;
      for (size_t i = 0; i < missing.size(); ++i) on_host.push_back((bits >> i & 1U) != 0);
      best = std::min(best, ends(missing, on_host));
    }
    EXPECT_LE(ours, static_cast<double>(missing.size()));
    EXPECT_LE(ours, best + largest);  // one expert more or less
  }
}

}  // namespace
}  // namespace drafthorse
