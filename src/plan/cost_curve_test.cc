#include "plan/cost_curve.h"

#include <gtest/gtest.h>

#include <random>

namespace drafthorse {
namespace {

TEST(CostCurve, IsStraightBetweenPointsAndGoesOn) {
  const CostCurve curve({{1, 10}, {3, 14}, {5, 24}});
  EXPECT_EQ(curve.at(0), 0);
  EXPECT_EQ(curve.at(-1), 0);
  EXPECT_DOUBLE_EQ(curve.at(0.5), 10);
  EXPECT_DOUBLE_EQ(curve.at(1), 10);
  EXPECT_DOUBLE_EQ(curve.at(2), 12);
  EXPECT_DOUBLE_EQ(curve.at(4), 19);
  EXPECT_DOUBLE_EQ(curve.at(7), 34);
  EXPECT_DOUBLE_EQ(curve.base(), 10);
  EXPECT_EQ(CostCurve().at(5), 0);
  const CostCurve single({{4, 2}});
  EXPECT_DOUBLE_EQ(single.at(1), 2);
  EXPECT_DOUBLE_EQ(single.at(12), 6);
}

TEST(CostCurve, NoiseNeverMakesMoreCheaper) {
  const CostCurve curve({{1, 12}, {2, 10}, {4, 11}});
  for (double n = 0.5; n < 10; n += 0.25) EXPECT_LE(curve.at(n), curve.at(n + 0.25));
  EXPECT_DOUBLE_EQ(curve.at(1), 10);
}

TEST(CostCurve, RooflineIsTheGreater) {
  const CostCurve curve = CostCurve::roofline(6, 2);
  for (const double n : {0.1, 1.0, 2.9, 3.0, 4.0, 100.0}) EXPECT_DOUBLE_EQ(curve.at(n), std::max(6.0, 2 * n)) << n;
  EXPECT_DOUBLE_EQ(CostCurve::roofline(6, 0).at(50), 6);
  EXPECT_DOUBLE_EQ(CostCurve::roofline(0, 2).at(50), 100);
  EXPECT_DOUBLE_EQ(CostCurve::line(1, 2).at(50), 101);
}

TEST(CostCurve, SumsAreSumsEverywhere) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform(0.1, 5);
    const auto curve = [&] {
      std::vector<CostCurve::Point> points;
      CostCurve::Point at;
      for (uint64_t i = 0; i < 1 + random() % 5; ++i) {
        at = {at.count + uniform(random), at.seconds + uniform(random)};
        points.push_back(at);
      }
      return CostCurve(points);
    };
    const CostCurve a = curve();
    const CostCurve b = random() % 4 == 0 ? CostCurve::roofline(uniform(random), uniform(random)) : curve();
    const CostCurve sum = a.plus(b);
    const CostCurve tripled = a.scaled(3);
    for (double n = 0.05; n < 60; n *= 1.07) {
      EXPECT_NEAR(sum.at(n), a.at(n) + b.at(n), 1e-9 * sum.at(n)) << n;
      EXPECT_NEAR(tripled.at(n), 3 * a.at(n), 1e-9 * tripled.at(n)) << n;
    }
  }
  EXPECT_DOUBLE_EQ(CostCurve().plus(CostCurve::line(1, 1)).at(2), 3);
}

TEST(FitLine, FindsALineAndSaysHowFarOffItIs) {
  const LinearFit exact = fit_line({{1, 5}, {2, 7}, {10, 23}});
  EXPECT_NEAR(exact.base, 3, 1e-9);
  EXPECT_NEAR(exact.slope, 2, 1e-9);
  EXPECT_NEAR(exact.worst_error, 0, 1e-9);
  // Weights read once, then arithmetic: no line.
  const LinearFit knee = fit_line({{1, 10}, {2, 10}, {4, 10}, {16, 30}, {64, 120}});
  EXPECT_GT(knee.worst_error, 0.1);
  EXPECT_GE(knee.base, 0);
  EXPECT_GE(knee.slope, 0);
  // The least of relative squares: no other line of a grid is better.
  const std::vector<CostCurve::Point> points = {{1, 3}, {2, 2.5}, {5, 9}, {9, 14}};
  const LinearFit fit = fit_line(points);
  const auto loss = [&](double base, double slope) {
    double sum = 0;
    for (const auto& [n, s] : points) sum += std::pow((base + slope * n - s) / s, 2);
    return sum;
  };
  for (double base = 0; base < 5; base += 0.1) {
    for (double slope = 0; slope < 4; slope += 0.1) {
      EXPECT_LE(loss(fit.base, fit.slope), loss(base, slope) + 1e-9) << base << ' ' << slope;
    }
  }
  EXPECT_EQ(fit_line({}).slope, 0);
  EXPECT_EQ(fit_line({{3, 6}}).base, 6);
}

}  // namespace
}  // namespace drafthorse
