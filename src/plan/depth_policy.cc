#include "plan/depth_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace drafthorse {
namespace {

constexpr double kKeep = 0.9;               // of an average's weight, per sample: about ten samples count
constexpr double kAcceptanceKeep = 0.97;    // acceptance is noisy and changes slowly
constexpr double kPriorAcceptance = 0.75;
constexpr double kPriorWeight = 2;          // samples the prior counts for
constexpr double kModelWeight = 1;          // samples the model counts for against measured cycles
constexpr double kSwitchGain = 1.03;        // another depth must promise this much to be taken
constexpr int kFirstPause = 8;
constexpr int kLongestPause = 256;
// The first cycles: two ends of the line, and windows that show acceptance and missing experts by prefix.
constexpr int kOpening[] = {4, 0, 4, 8};

}  // namespace

void DepthPolicy::Average::add(double sample, double keep) {
  value = (value * weight * keep + sample) / (weight * keep + 1);
  weight = weight * keep + 1;
}

void DepthPolicy::Line::add(double window, double seconds, double keep) {
  weight = weight * keep + 1;
  n = n * keep + window;
  nn = nn * keep + window * window;
  y = y * keep + seconds;
  ny = ny * keep + window * seconds;
}

double DepthPolicy::Line::at(double window) const {
  if (weight == 0) return 0;
  const double mean_n = n / weight;
  const double mean_y = y / weight;
  const double variance = nn / weight - mean_n * mean_n;
  // With one window size so far, take half of the time as proportional to the window.
  double slope = 0.5 * mean_y / std::max(1.0, mean_n);
  if (variance > 0.05) slope = (ny / weight - mean_n * mean_y) / variance;
  slope = std::clamp(slope, 0.0, mean_y / std::max(1.0, mean_n));  // neither free nor cheaper together than apart
  return mean_y + slope * (window - mean_n);
}

DepthPolicy::DepthPolicy(int max_depth)
    : max_depth_(max_depth),
      acceptance_(static_cast<size_t>(max_depth)),
      measured_(static_cast<size_t>(max_depth) + 1),
      missing_(static_cast<size_t>(max_depth) + 1) {}

double DepthPolicy::expected_tokens(int depth) const {
  double tokens = 1;
  double reached = 1;
  double before = kPriorAcceptance;
  for (int i = 0; i < depth; ++i) {
    const Average& seen = acceptance_[i];
    // A position seldom reached leans on the one before it.
    const double p = (seen.value * seen.weight + before * kPriorWeight) / (seen.weight + kPriorWeight);
    reached *= p;
    tokens += reached;
    before = p;
  }
  return tokens;
}

double DepthPolicy::missing(int window) const {
  double known = 0;
  double step = 0;
  int last = 0;
  for (int n = 1; n <= window; ++n) {
    if (missing_[n - 1].weight < 0.1) break;
    step = n == 1 ? missing_[0].value : std::max(0.0, missing_[n - 1].value - known);
    known = std::max(known, missing_[n - 1].value);
    last = n;
  }
  // Beyond the longest window seen each token adds a little less than the one before.
  constexpr double kGrowth = 0.9;
  for (int n = last + 1; n <= window && last > 0; ++n) known += step *= kGrowth;
  return known;
}

double DepthPolicy::expected_seconds(int depth) const {
  const double model = depth * draft_per_token_.value + std::max(0.0, compute_.at(depth + 1)) +
                       stall_per_missing_.value * missing(depth + 1);
  const Average& measured = measured_[depth];
  return (measured.value * measured.weight + model * kModelWeight) / (measured.weight + kModelWeight);
}

int DepthPolicy::best_depth() const {
  int best = 0;
  double best_rate = 0;
  for (int depth = 0; depth <= max_depth_; ++depth) {
    const double rate = expected_tokens(depth) / std::max(1e-9, expected_seconds(depth));
    if (rate > best_rate) {
      best = depth;
      best_rate = rate;
    }
  }
  return best;
}

int DepthPolicy::next_depth(int room) {
  if (cycles_ < static_cast<int64_t>(std::size(kOpening))) {
    current_ = std::min(kOpening[cycles_], max_depth_);
    return std::min(current_, room);
  }
  if (pause_ > 0) {
    --pause_;
    current_ = 0;
    return 0;
  }
  const int best = best_depth();
  const auto rate = [this](int depth) { return expected_tokens(depth) / std::max(1e-9, expected_seconds(depth)); };
  if (best == 0) {
    // Look again with a small window now, then pause for longer.
    next_pause_ = next_pause_ == 0 ? kFirstPause : std::min(2 * next_pause_, kLongestPause);
    pause_ = next_pause_;
    current_ = 0;
    if (next_pause_ == kFirstPause) return 0;
    return std::min({2, max_depth_, room});
  }
  next_pause_ = 0;
  if (current_ == 0 || rate(best) > kSwitchGain * rate(current_)) current_ = best;
  return std::min(current_, room);
}

void DepthPolicy::observe(const CycleObservation& cycle) {
  ++cycles_;
  for (int i = 0; i < cycle.depth && i <= cycle.accepted; ++i) {
    acceptance_[i].add(i < cycle.accepted ? 1 : 0, kAcceptanceKeep);
  }
  if (cycle.depth > 0) draft_per_token_.add(cycle.draft_s / cycle.depth, kKeep);
  compute_.add(cycle.depth + 1, std::max(0.0, cycle.verify_s - cycle.stall_s), kKeep);
  // What was measured long ago fades: the cache and the text have moved on.
  for (Average& average : measured_) average.weight *= kKeep;
  measured_[cycle.depth].add(cycle.draft_s + cycle.verify_s, 1);
  if (!cycle.missing_by_prefix.empty()) {
    for (size_t n = 0; n < cycle.missing_by_prefix.size() && n < missing_.size(); ++n) {
      missing_[n].add(static_cast<double>(cycle.missing_by_prefix[n]), kKeep);
    }
    const auto total = static_cast<double>(cycle.missing_by_prefix.back());
    if (total > 0) stall_per_missing_.add(cycle.stall_s / total, kKeep);
  }
}

std::string DepthPolicy::explain() const {
  const auto rate = [this](int depth) { return expected_tokens(depth) / std::max(1e-9, expected_seconds(depth)); };
  const int best = best_depth();
  if (best == 0) {
    const int small = std::min(2, max_depth_);
    return fmt::format("depth 0: drafting {} would make {:.2f} tokens per cycle and run at {:.2f}x of not drafting", small,
                       expected_tokens(small), rate(small) / rate(0));
  }
  return fmt::format("depth {}: {:.1f} tokens per cycle, expected {:.2f}x of not drafting", best, expected_tokens(best),
                     rate(best) / rate(0));
}

}  // namespace drafthorse
