#include "plan/depth_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"

namespace drafthorse {
namespace {

constexpr double kKeep = 0.9;             // of an average's weight, per sample: about ten samples count
constexpr double kAcceptanceKeep = 0.97;  // per cycle: acceptance is noisy and changes slowly
constexpr double kAcceptanceRest = 4;     // samples that what was seen of the first position never counts less than
constexpr double kPriorAcceptance = 0.75;
constexpr double kPriorWeight = 2;    // samples the prior counts for
constexpr double kModelWeight = 1;    // samples the model counts for against measured cycles
constexpr double kSwitchGain = 1.03;  // another depth must promise this much to be taken
constexpr double kDraftGain = 1.06;   // drafting must promise this much: it reads more, and estimates are noisy
constexpr double kStepGrowth = 0.9;   // of the missing experts a token adds over those of the one before, unseen
constexpr double kLeastStepGrowth = 0.5;
constexpr double kFreshWeight = 0.33;  // of single tokens' misses: one cycle without a draft is that for ten cycles
constexpr double kSmallLevel = 0.5;    // missing experts of a token: two levels are compared no more finely than so
constexpr int kReach = 4;              // times the deepest window so far: the model is not believed farther out
constexpr int kReachItself = 2;   // the same where the target drafts, and a draft in vain costs as much as its text
constexpr int kPrimedReach = 8;   // the same, where the prompt has shown agreement and growth
constexpr int kPrimedFirst = 16;  // the deepest first draft then
// Of what a miss costs on average, what one fewer saves: experts that more slots would keep are those used most, whose
// reads are hidden more often, and fewer reads at once use the disk less well (.7 to .85 in ten runs of the fine pair).
constexpr double kMarginalStall = 0.75;
constexpr double kMostPromptWeight = 8;  // samples that the prompt's agreement counts for at most

}  // namespace

void DepthPolicy::Average::add(double sample, double keep, double share) {
  weight *= keep;
  if (weight + share <= 0) return;
  value = (value * weight + sample * share) / (weight + share);
  weight += share;
}

void DepthPolicy::Line::add(double window, double seconds, double keep) {
  weight = weight * keep + 1;
  n = n * keep + window;
  nn = nn * keep + window * window;
  y = y * keep + seconds;
  ny = ny * keep + window * seconds;
  const double mean_n = n / weight;
  const double variance = nn / weight - mean_n * mean_n;
  if (variance > 0.05)
    slope = (ny / weight - mean_n * y / weight) / variance;
  else if (slope < 0)
    slope = 0.5 * y / n;  // one window size so far: take half of the time as proportional to it
}

double DepthPolicy::Line::at(double window) const {
  if (weight == 0) return 0;
  const double mean_n = n / weight;
  const double mean_y = y / weight;
  // Neither free nor cheaper together than apart.
  return mean_y + std::clamp(slope, 0.0, mean_y / mean_n) * (window - mean_n);
}

DepthPolicy::DepthPolicy(int max_depth, bool itself)
    : max_depth_(max_depth),
      itself_(itself),
      acceptance_(static_cast<size_t>(max_depth)),
      measured_(static_cast<size_t>(max_depth) + 1),
      added_(static_cast<size_t>(max_depth) + 1),
      level_(static_cast<size_t>(max_depth) + 1) {
  if (max_depth > 0) acceptance_[0] = {kPriorAcceptance, kPriorWeight};
}

void DepthPolicy::prime(PromptObservation prompt) {
  CHECK(cycles_ == 0 && prompt.agreed <= prompt.positions);
  if (max_depth_ == 0 || prompt.positions == 0) return;
  primed_ = true;
  distinct_ = std::move(prompt.distinct_by_window);
  const double share = static_cast<double>(prompt.agreed) / prompt.positions;
  const double weight = std::min<double>(kMostPromptWeight, prompt.positions);
  Average& first = acceptance_[0];
  first.value = (first.value * first.weight + share * weight) / (first.weight + weight);
  first.weight += weight;
}

double DepthPolicy::distinct(int window) const {
  return window <= static_cast<int>(distinct_.size()) ? distinct_[window - 1] : 0;
}

double DepthPolicy::expected_tokens(int depth) const {
  double tokens = 1;
  double reached = 1;
  double before = 0;
  for (int i = 0; i < depth; ++i) {
    const Average& seen = acceptance_[i];
    // A position seldom reached leans on the one before it.
    const double lean = i == 0 ? 0 : kPriorWeight;
    const double p = (seen.value * seen.weight + before * lean) / (seen.weight + lean);
    reached *= p;
    tokens += reached;
    before = p;
  }
  return tokens;
}

double DepthPolicy::added(int n) const {
  if (added_[n].weight == 0) return 0;
  const double ratio = (single_.value + kSmallLevel) / (level_[n].value + kSmallLevel);
  // What was seen while nobody knew the level is taken as it was.
  const double known = std::min(1.0, level_[n].weight / added_[n].weight);
  return added_[n].value * (1 + (ratio - 1) * known * known);
}

double DepthPolicy::missing(int window) const {
  const bool drafted = added_[0].weight > 0;
  const double first = drafted ? added(0) : single_.value;
  // Long without a cycle of its own, it leans on drafted ones.
  if (window == 1 && drafted) return (single_.value * single_.weight + first) / (single_.weight + 1);
  double total = first;
  double step = first;
  int last = drafted || single_.weight > 0 ? 1 : 0;
  for (; last > 0 && last < window && added_[last].weight > 0; ++last) total += step = added(last);
  // Beyond the longest window seen, misses grow as the prompt's windows did.
  if (last > 0 && distinct(last) > 0 && distinct(window) > 0)
    return total * std::max(1.0, distinct(window) / distinct(last));
  // Else each token adds less than the one before, as it was so far.
  double growth = kStepGrowth;
  if (last > 1 && first > 0) {
    growth = std::clamp(std::pow(step / first, 1.0 / (last - 1)), kLeastStepGrowth, 1.0);
  }
  for (int n = last; n < window && last > 0; ++n) total += step *= growth;
  return total;
}

// Nothing is assumed of another model: trying it once tells.
double DepthPolicy::draft_seconds() const {
  return draft_per_token_.weight == 0 && itself_ ? std::max(0.0, compute_.at(1)) : draft_per_token_.value;
}

double DepthPolicy::model_seconds(int depth) const {
  return depth * draft_seconds() + std::max(0.0, compute_.at(depth + 1)) +
         stall_per_missing_.value * missing(depth + 1);
}

double DepthPolicy::expected_seconds(int depth) const {
  const Average& measured = measured_[depth];
  return model_seconds(depth) * (measured.value * measured.weight + kModelWeight) / (measured.weight + kModelWeight);
}

double DepthPolicy::seconds_per_token(int room, double missing_share) const {
  double least = std::numeric_limits<double>::infinity();
  for (int depth = 0; depth <= std::min(room, best_depth(room)); ++depth) {
    const double saved = kMarginalStall * (1 - missing_share) * stall_per_missing_.value * missing(depth + 1);
    // What was measured may hold less waiting than the average miss would say.
    const double seconds = std::max(compute_.at(depth + 1), expected_seconds(depth) - saved);
    least = std::min(least, seconds / expected_tokens(depth));
  }
  return std::max(1e-9, least);
}

double DepthPolicy::rate(int depth) const { return expected_tokens(depth) / std::max(1e-9, expected_seconds(depth)); }

int DepthPolicy::best_depth(int room) const {
  const int reach_of = itself_ ? kReachItself : kReach;
  const int believed = !primed_ ? reach_of * std::max(1, deepest_) : std::max(kPrimedFirst, kPrimedReach * deepest_);
  const int reach = std::min({max_depth_, room, believed});
  int best = 0;
  for (int depth = 1; depth <= reach; ++depth) {
    if (rate(depth) > rate(best)) best = depth;
  }
  return best;
}

int DepthPolicy::settle(int room) {
  const int best = best_depth(room);
  if (rate(best) < kDraftGain * rate(0))
    current_ = 0;
  else if (current_ == 0 || current_ > room || rate(best) > kSwitchGain * rate(current_))
    current_ = best;
  return current_;
}

int DepthPolicy::look_depth(int room) const { return std::min({current_ == 0 ? 1 : 2 * current_, max_depth_, room}); }

void DepthPolicy::observe(const CycleObservation& cycle) {
  deepest_ = std::max(deepest_, cycle.depth);
  observe_verification(cycle);
  observe_agreement(cycle.depth, cycle.accepted);
  if (cycle.depth > 0) {
    draft_per_token_.add(cycle.draft_s / cycle.depth, kKeep);
    measure(cycle);
  }
}

void DepthPolicy::measure(const CycleObservation& cycle) {
  const double model = model_seconds(cycle.depth);
  if (model > 0) measured_[cycle.depth].add((cycle.draft_s + cycle.verify_s) / model, 1);
}

void DepthPolicy::observe_agreement(int reached, int agreed) {
  for (int i = 0; i < std::min(reached, max_depth_) && i <= agreed; ++i) acceptance_[i].add(i < agreed ? 1 : 0, 1);
}

void DepthPolicy::observe_verification(const CycleObservation& cycle) {
  ++cycles_;
  for (size_t i = 0; i < acceptance_.size(); ++i) {
    // Later positions fade until they lean on the first: what is not drafted any more gets another chance in time.
    if (i > 0 || acceptance_[i].weight > kAcceptanceRest) acceptance_[i].weight *= kAcceptanceKeep;
  }
  compute_.add(cycle.depth + 1, std::max(0.0, cycle.verify_s - cycle.stall_s), kKeep);
  // What was measured long ago fades: the cache and the text have moved on.
  for (Average& average : measured_) average.weight *= kKeep;
  const std::span<const int64_t> by_prefix = cycle.missing_by_prefix;
  if (cycle.depth == 0 && !by_prefix.empty())
    single_.add(static_cast<double>(by_prefix[0]), kKeep);
  else
    single_.weight *= kKeep;
  int64_t before = 0;
  for (size_t n = 0; n < by_prefix.size() && n < added_.size(); ++n) {
    if (cycle.depth > 0) {
      added_[n].add(static_cast<double>(by_prefix[n] - before), kKeep);
      level_[n].add(single_.value, kKeep, std::min(1.0, single_.weight / kFreshWeight));
    }
    before = by_prefix[n];
  }
  if (before > 0) stall_per_missing_.add(cycle.stall_s / static_cast<double>(before), kKeep);
  if (cycle.depth == 0) measure(cycle);
}

std::string DepthPolicy::explain() const {
  const int best = best_depth();
  if (best == 0) {
    const int small = std::min(2, max_depth_);
    return fmt::format("depth 0: drafting {} would make {:.2f} tokens per cycle and run at {:.2f}x of not drafting",
                       small, expected_tokens(small), rate(small) / rate(0));
  }
  return fmt::format("depth {}: {:.1f} tokens per cycle, expected {:.2f}x of not drafting", best, expected_tokens(best),
                     rate(best) / rate(0));
}

}  // namespace drafthorse
