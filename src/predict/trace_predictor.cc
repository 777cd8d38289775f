// MoE-Infinity's idea (2401.14361): windows leave traces, matrices of how often each layer used each expert; the past
// trace nearest to what this window has shown so far tells what its later layers will use.
#include <algorithm>
#include <cmath>
#include <deque>

#include "predict/predictors.h"

namespace drafthorse {
namespace {

constexpr size_t kTraces = 128;  // past windows that are kept

class TracePredictor final : public Predictor {
 public:
  explicit TracePredictor(const RoutingShapes& shapes) : shapes_(shapes) { present_ = empty(); }

  std::string_view name() const override { return "trace"; }

  void begin_window(Forecast& forecast) override {
    forecast.clear();
    present_ = empty();
    // Nothing of this window is known yet: the last one is the nearest.
    if (!past_.empty()) expect_after(-1, past_.back(), forecast);
  }

  void routed(LayerId layer, std::span<const ExpertId> used, Forecast& forecast) override {
    if (shapes_.n_expert_used > 0) tokens_ = static_cast<double>(used.size()) / shapes_.n_expert_used;
    for (const ExpertId expert : used) present_[index(layer)][index(expert)] += 1 / tokens_;
    const Matrix* nearest = nullptr;
    double best = -1;
    for (const Matrix& trace : past_) {
      const double likeness = cosine(trace, index(layer));
      if (likeness > best) {
        best = likeness;
        nearest = &trace;
      }
    }
    if (nearest != nullptr) expect_after(index(layer), *nearest, forecast);
  }

  void committed(int32_t) override {
    past_.push_back(present_);
    if (past_.size() > kTraces) past_.pop_front();
  }

 private:
  using Matrix = std::vector<std::vector<double>>;  // [layer][expert]: uses per token

  Matrix empty() const {
    Matrix matrix;
    for (const int experts : shapes_.experts_by_layer) matrix.emplace_back(static_cast<size_t>(experts));
    return matrix;
  }

  // Of the layers up to `last`.
  double cosine(const Matrix& trace, int last) const {
    double product = 0;
    double ours = 0;
    double theirs = 0;
    for (int layer = 0; layer <= last; ++layer) {
      for (size_t e = 0; e < trace[layer].size(); ++e) {
        product += trace[layer][e] * present_[layer][e];
        ours += present_[layer][e] * present_[layer][e];
        theirs += trace[layer][e] * trace[layer][e];
      }
    }
    return ours > 0 && theirs > 0 ? product / std::sqrt(ours * theirs) : 0;
  }

  void expect_after(int layer, const Matrix& trace, Forecast& forecast) const {
    for (int i = layer + 1; i < forecast.n_layers(); ++i) {
      forecast.forget(LayerId{i});
      for (int e = 0; e < forecast.n_experts(LayerId{i}); ++e) {
        const ExpertKey key{LayerId{i}, ExpertId{e}};
        if (trace[i][e] <= 0) continue;
        forecast.set(key, 1 - std::pow(1 - std::min(1.0, trace[i][e]), std::max(1.0, tokens_)));
        forecast.vote(key);
      }
    }
  }

  RoutingShapes shapes_;
  Matrix present_;
  std::deque<Matrix> past_;
  double tokens_ = 1;  // of the last window
};

}  // namespace

std::unique_ptr<Predictor> make_trace_predictor(const RoutingShapes& shapes) {
  return std::make_unique<TracePredictor>(shapes);
}

}  // namespace drafthorse
