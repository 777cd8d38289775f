#include "predict/ridge_fit.h"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace drafthorse {
namespace {

constexpr Eigen::Index kBlock = 96;      // columns of a product that one thread takes at a time
constexpr int64_t kSamplesAtOnce = 256;  // that are widened to double together

using Floats = Eigen::Map<const Eigen::MatrixXf>;

}  // namespace

struct RidgeFit::Moments {
  int64_t samples = 0;
  Eigen::VectorXd x;  // sums
  Eigen::VectorXd y;
  Eigen::MatrixXd xx;  // [inputs, inputs], the lower triangle
  Eigen::MatrixXd xy;  // [inputs, outputs]
};

void apply(const LinearMap& map, std::span<const float> x, std::span<float> y) {
  CHECK(map.offsets.size() == y.size() && map.weights.size() == x.size() * y.size());
  const Floats weights(map.weights.data(), static_cast<Eigen::Index>(x.size()), static_cast<Eigen::Index>(y.size()));
  const Eigen::Map<const Eigen::VectorXf> input(x.data(), static_cast<Eigen::Index>(x.size()));
  const Eigen::Map<const Eigen::VectorXf> offsets(map.offsets.data(), static_cast<Eigen::Index>(y.size()));
  Eigen::Map<Eigen::VectorXf>(y.data(), static_cast<Eigen::Index>(y.size())) = weights.transpose() * input + offsets;
}

RidgeFit::RidgeFit(int inputs, int outputs) : moments_(std::make_unique<Moments>()) {
  CHECK(inputs > 0 && outputs > 0);
  moments_->x = Eigen::VectorXd::Zero(inputs);
  moments_->y = Eigen::VectorXd::Zero(outputs);
  moments_->xx = Eigen::MatrixXd::Zero(inputs, inputs);
  moments_->xy = Eigen::MatrixXd::Zero(inputs, outputs);
}

RidgeFit::~RidgeFit() = default;
RidgeFit::RidgeFit(RidgeFit&&) noexcept = default;
RidgeFit& RidgeFit::operator=(RidgeFit&&) noexcept = default;

uint64_t RidgeFit::bytes(int inputs, int outputs) {
  const auto in = static_cast<uint64_t>(inputs);
  const auto out = static_cast<uint64_t>(outputs);
  return sizeof(double) * (in * (in + out) + in + out + static_cast<uint64_t>(kSamplesAtOnce) * (in + out));
}

uint64_t RidgeFit::solving_bytes(int inputs, int outputs) {
  const auto in = static_cast<uint64_t>(inputs);
  const auto out = static_cast<uint64_t>(outputs);
  return sizeof(double) * (in * in + 2 * in * out) + sizeof(float) * (in + 1) * out;
}

int64_t RidgeFit::samples() const { return moments_->samples; }

void RidgeFit::add(std::span<const float> x, std::span<const float> y, WorkerPool& pool) {
  Moments& m = *moments_;
  const Eigen::Index inputs = m.x.size();
  const Eigen::Index outputs = m.y.size();
  const auto n = static_cast<Eigen::Index>(x.size()) / inputs;
  CHECK(static_cast<Eigen::Index>(x.size()) == n * inputs && static_cast<Eigen::Index>(y.size()) == n * outputs);
  const Floats all_x(x.data(), inputs, n);
  const Floats all_y(y.data(), outputs, n);
  for (Eigen::Index first = 0; first < n; first += kSamplesAtOnce) {
    const Eigen::Index count = std::min<Eigen::Index>(kSamplesAtOnce, n - first);
    // A sample is a row here: what a block of a product reads lies together.
    Eigen::MatrixXd xs = all_x.middleCols(first, count).transpose().cast<double>();
    Eigen::MatrixXd ys = all_y.middleCols(first, count).transpose().cast<double>();
    int64_t good = 0;
    for (Eigen::Index i = 0; i < count; ++i) {
      const bool is_good = xs.row(i).allFinite() && ys.row(i).allFinite();
      if (!is_good) {
        xs.row(i).setZero();
        ys.row(i).setZero();
      }
      good += is_good ? 1 : 0;
    }
    m.samples += good;
    m.x += xs.colwise().sum().transpose();
    m.y += ys.colwise().sum().transpose();
    pool.run((inputs + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const Eigen::Index at = block * kBlock;
        const Eigen::Index width = std::min(kBlock, inputs - at);
        m.xx.block(at, at, inputs - at, width).noalias() +=
            xs.rightCols(inputs - at).transpose() * xs.middleCols(at, width);
        m.xy.middleRows(at, width).noalias() += xs.middleCols(at, width).transpose() * ys;
      }
    });
  }
}

LinearMap RidgeFit::solve(double lambda) const {
  const Moments& m = *moments_;
  CHECK(lambda > 0 && m.samples > 0);
  const Eigen::Index inputs = m.x.size();
  const Eigen::Index outputs = m.y.size();
  const auto n = static_cast<double>(m.samples);
  const Eigen::VectorXd mean_x = m.x / n;
  const Eigen::VectorXd mean_y = m.y / n;
  // 1 / deviation; 0 for what hardly ever changed: how little is lost in the rounding of the sums.
  Eigen::VectorXd scale(inputs);
  for (Eigen::Index i = 0; i < inputs; ++i) {
    constexpr double kRounding = 1e-8;
    const double square = m.xx(i, i) / n;
    const double variance = square - mean_x[i] * mean_x[i];
    scale[i] = variance > kRounding * square ? 1 / std::sqrt(variance) : 0;
  }
  Eigen::MatrixXd correlation(inputs, inputs);
  Eigen::MatrixXd weights;
  // Positive definite by lambda, unless rounding is larger than that.
  for (bool done = false; !done; lambda *= 10) {
    for (Eigen::Index c = 0; c < inputs; ++c) {
      for (Eigen::Index r = c; r < inputs; ++r) {
        correlation(r, c) = (m.xx(r, c) / n - mean_x[r] * mean_x[c]) * scale[r] * scale[c];
      }
      correlation(c, c) += lambda;
    }
    // In place: of a wide draft a second copy would be more than 100 MiB.
    const Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>, Eigen::Lower> factors(correlation);
    done = factors.info() == Eigen::Success;
    if (!done) continue;
    weights = m.xy / n - mean_x * mean_y.transpose();
    weights.array().colwise() *= scale.array();
    factors.solveInPlace(weights);
    weights.array().colwise() *= scale.array();
  }

  LinearMap map;
  map.weights.resize(static_cast<size_t>(inputs * outputs));
  map.offsets.resize(static_cast<size_t>(outputs));
  Eigen::Map<Eigen::MatrixXf>(map.weights.data(), inputs, outputs) = weights.cast<float>();
  const Eigen::VectorXd offsets = mean_y - weights.transpose() * mean_x;
  Eigen::Map<Eigen::VectorXf>(map.offsets.data(), outputs) = offsets.cast<float>();
  return map;
}

}  // namespace drafthorse
