#include "predict/ridge_fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace drafthorse {
namespace {

constexpr int kInputs = 37;
constexpr int kOutputs = 5;

struct Samples {
  std::vector<float> x;
  std::vector<float> y;
};

// y = weights x + offsets + noise, inputs of very different sizes, none of them around 0.
class KnownMap {
 public:
  explicit KnownMap(double noise) : noise_(noise) {
    truth_.weights.resize(kInputs * kOutputs);
    truth_.offsets.resize(kOutputs);
    for (int o = 0; o < kOutputs; ++o) {
      for (int i = 0; i < kInputs; ++i) truth_.weights[o * kInputs + i] = normal() / size(i);
      truth_.offsets[o] = 3 * normal();
    }
  }
  Samples draw(int n) {
    Samples out;
    for (int t = 0; t < n; ++t) {
      std::vector<float> x(kInputs);
      std::vector<float> y(kOutputs);
      for (int i = 0; i < kInputs; ++i) x[i] = size(i) * (normal() + 2);
      apply(truth_, x, y);
      for (float& one : y) one += static_cast<float>(noise_) * normal();
      out.x.insert(out.x.end(), x.begin(), x.end());
      out.y.insert(out.y.end(), y.begin(), y.end());
    }
    return out;
  }
  const LinearMap& truth() const { return truth_; }

 private:
  static float size(int input) { return std::pow(10.0F, static_cast<float>(input % 7 - 3)); }
  float normal() { return distribution_(random_); }
  std::mt19937 random_{5};
  std::normal_distribution<float> distribution_;
  double noise_;
  LinearMap truth_;
};

double mean_square_error(const LinearMap& map, const Samples& samples) {
  const size_t n = samples.y.size() / kOutputs;
  std::vector<float> y(kOutputs);
  double sum = 0;
  for (size_t t = 0; t < n; ++t) {
    apply(map, {samples.x.data() + t * kInputs, kInputs}, y);
    for (int o = 0; o < kOutputs; ++o) sum += std::pow(y[o] - samples.y[t * kOutputs + o], 2);
  }
  return sum / static_cast<double>(samples.y.size());
}

TEST(RidgeFit, FindsAKnownMap) {
  KnownMap known(0);
  const Samples samples = known.draw(400);
  WorkerPool pool(2);
  RidgeFit fit(kInputs, kOutputs);
  fit.add(samples.x, samples.y, pool);
  EXPECT_EQ(fit.samples(), 400);
  const LinearMap map = fit.solve(1e-9);
  for (size_t i = 0; i < map.weights.size(); ++i) {
    EXPECT_NEAR(map.weights[i], known.truth().weights[i], 1e-3 * std::abs(known.truth().weights[i]) + 1e-5) << i;
  }
  for (int o = 0; o < kOutputs; ++o) EXPECT_NEAR(map.offsets[o], known.truth().offsets[o], 2e-3);
  EXPECT_LT(mean_square_error(map, known.draw(50)), 1e-5);
}

TEST(RidgeFit, PartsAndThreadsDoNotMatter) {
  KnownMap known(0.3);
  const Samples samples = known.draw(301);
  WorkerPool one(1);
  WorkerPool three(3);
  RidgeFit whole(kInputs, kOutputs);
  RidgeFit parts(kInputs, kOutputs);
  whole.add(samples.x, samples.y, one);
  const std::span<const float> x(samples.x);
  const std::span<const float> y(samples.y);
  for (const auto& [first, n] : {std::pair(0, 1), std::pair(1, 200), std::pair(201, 100)}) {
    parts.add(x.subspan(first * kInputs, n * kInputs), y.subspan(first * kOutputs, n * kOutputs), three);
  }
  const LinearMap a = whole.solve(0.01);
  const LinearMap b = parts.solve(0.01);
  for (size_t i = 0; i < a.weights.size(); ++i) EXPECT_NEAR(a.weights[i], b.weights[i], 1e-4 * std::abs(a.weights[i]));
}

// With few noisy samples some holding back is better than none and better than much.
TEST(RidgeFit, LambdaHoldsBack) {
  KnownMap known(4);
  const Samples few = known.draw(45);
  const Samples unseen = known.draw(500);
  WorkerPool pool(1);
  RidgeFit fit(kInputs, kOutputs);
  fit.add(few.x, few.y, pool);
  const double loose = mean_square_error(fit.solve(1e-9), unseen);
  const double held = mean_square_error(fit.solve(0.3), unseen);
  const double tight = mean_square_error(fit.solve(1e4), unseen);
  EXPECT_LT(held, loose);
  EXPECT_LT(held, tight);
}

TEST(RidgeFit, DeadInputsAndBadSamples) {
  KnownMap known(0);
  Samples samples = known.draw(300);
  for (int t = 0; t < 300; ++t) samples.x[t * kInputs + 3] = 1e4F / 3;  // never changes
  for (int t = 0; t < 300; ++t) samples.x[t * kInputs + 9] = 0;
  samples.x[17 * kInputs + 1] = std::numeric_limits<float>::quiet_NaN();
  samples.y[40 * kOutputs] = std::numeric_limits<float>::infinity();
  WorkerPool pool(2);
  RidgeFit fit(kInputs, kOutputs);
  fit.add(samples.x, samples.y, pool);
  EXPECT_EQ(fit.samples(), 298);
  const LinearMap map = fit.solve(1e-6);
  for (const float weight : map.weights) ASSERT_TRUE(std::isfinite(weight));
  for (int o = 0; o < kOutputs; ++o) {
    EXPECT_EQ(map.weights[o * kInputs + 3], 0);
    EXPECT_EQ(map.weights[o * kInputs + 9], 0);
  }
}

}  // namespace
}  // namespace drafthorse
