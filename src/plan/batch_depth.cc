#include "plan/batch_depth.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"

namespace drafthorse {
namespace {

constexpr double kKeep = 0.97;  // of what earlier iterations weigh, per iteration
constexpr double kAcceptanceKeep = 0.98;
constexpr double kPriorDrafts = 8;     // drafted tokens that an assumption counts for
constexpr double kLean = 8;            // that a position's predecessor counts for in it
constexpr double kRidge = 0.01;        // iterations that the common factor counts for
constexpr double kFurthestFactor = 4;  // of one part from the common factor
constexpr double kDraftGain = 1.02;    // drafting must promise this much
constexpr int64_t kPauseGrowth = 4;    // of the iterations between trials
constexpr int64_t kLongestPause = 256;
constexpr double kFreeDraft_s = 1e-6;  // per token of a drafter without costs
constexpr double kFewTexts = 0.1;      // of an iteration, to read texts for a drafter that is not known yet
constexpr double kReadingMargin = 2;   // of what drafting must gain over what must be read for it
constexpr double kLoadBound = 0.1;     // of a pass spent waiting, from which on loads are what it takes

double seconds_per_token(const BatchDepthChoice& one) { return one.seconds / std::max(1e-9, one.tokens); }

}  // namespace

void BatchDepthPolicy::Decayed::add(double sample, double sample_weight, double keep) {
  const double kept = weight * keep;
  value = (value * kept + sample * sample_weight) / (kept + sample_weight);
  weight = kept + sample_weight;
}

// Relative errors count: a pass over prompts may take a hundred times one over windows.
void BatchDepthPolicy::Factors::add(const double (&x)[kParts], double y, double keep) {
  if (y <= 0) return;
  for (size_t i = 0; i < kParts; ++i) {
    for (size_t j = 0; j < kParts; ++j) xx[i][j] = xx[i][j] * keep + x[i] / y * (x[j] / y);
    xy[i] = xy[i] * keep + x[i] / y;
  }
  double sum = 0;
  for (const double part : x) sum += part;
  x_sum = x_sum * keep + sum / y;
  weight = weight * keep + 1;
}

// Least squares of y - c x, with every part held to the common factor by a weight that does not depend on
// how much of the time it is: parts that the data do not tell apart share it.
void BatchDepthPolicy::Factors::solve(double (&c)[kParts]) const {
  const double common = x_sum > 0 ? weight / x_sum : 1;
  std::fill(std::begin(c), std::end(c), common);
  if (weight == 0) return;
  const double ridge = kRidge * (x_sum / weight) * (x_sum / weight);
  if (ridge <= 0) return;
  double a[kParts][kParts + 1];
  for (size_t i = 0; i < kParts; ++i) {
    for (size_t j = 0; j < kParts; ++j) a[i][j] = xx[i][j] + (i == j ? ridge : 0);
    a[i][kParts] = xy[i] + ridge * common;
  }
  // Positive definite, so that no pivot is 0.
  for (size_t i = 0; i < kParts; ++i) {
    for (size_t row = i + 1; row < kParts; ++row) {
      const double factor = a[row][i] / a[i][i];
      for (size_t j = i; j <= kParts; ++j) a[row][j] -= factor * a[i][j];
    }
  }
  for (size_t i = kParts; i-- > 0;) {
    double value = a[i][kParts];
    for (size_t j = i + 1; j < kParts; ++j) value -= a[i][j] * c[j];
    c[i] = std::clamp(value / a[i][i], common / kFurthestFactor, common * kFurthestFactor);
  }
}

BatchDepthPolicy::BatchDepthPolicy(BatchDepthOptions options) : options_(std::move(options)) {
  CHECK(options_.max_depth >= 0 && options_.costs.load_bytes_per_s > 0);
  acceptance_.resize(static_cast<size_t>(options_.max_depth));
  if (!acceptance_.empty()) acceptance_[0] = {options_.acceptance, kPriorDrafts};
  speaks_ = {1, 0.1};
  draft_ = {1, 0.1};
  rate_ = {options_.costs.load_bytes_per_s, 0.1};
  bytes_ = {1, 0.1};
  head_ = {1, 0.1};
}

double BatchDepthPolicy::acceptance(int position) const {
  double before = 0;
  for (int i = 0; i <= position && i < static_cast<int>(acceptance_.size()); ++i) {
    const Decayed& seen = acceptance_[i];
    const double lean = i == 0 ? 0 : kLean;
    before = (seen.value * seen.weight + before * lean) / (seen.weight + lean);
  }
  return before;
}

double BatchDepthPolicy::expected_tokens(int depth) const {
  double tokens = 1;
  double reached = 1;
  for (int i = 0; i < depth; ++i) tokens += reached *= acceptance(i);
  return tokens;
}

BatchDepthPolicy::Parts BatchDepthPolicy::parts(const PassWork& work) const {
  const PassSeconds seconds = pass_seconds(options_.costs.target, work);
  const PassSeconds weights = weight_seconds(options_.costs.target, work);
  return {.stages = {weights.dense, std::max(0.0, seconds.dense - weights.dense), seconds.attention},
          .experts = {weights.experts, std::max(0.0, seconds.experts - weights.experts), 0},
          .head = seconds.head};
}

BatchDepthPolicy::Compute BatchDepthPolicy::compute(const Parts& parts) const {
  Compute out;
  double c[Factors::kParts];
  stages_.solve(c);
  for (size_t i = 0; i < Factors::kParts; ++i) out.stages += c[i] * parts.stages[i];
  out.attention = c[2] * parts.stages[2];
  experts_.solve(c);
  for (size_t i = 0; i < Factors::kParts; ++i) out.experts += c[i] * parts.experts[i];
  return out;
}

BatchDepthPolicy::Drafting BatchDepthPolicy::drafting(const BatchState& state, int depth,
                                                      const std::vector<bool>& skipped) const {
  Drafting out(static_cast<size_t>(depth), 0.0);
  if (state.rooms.empty()) {
    std::fill(out.begin(), out.end(), state.sequences);
    return out;
  }
  for (size_t i = 0; i < state.rooms.size(); ++i) {
    if (!skipped.empty() && skipped[i]) continue;
    if (const int drafts = std::min<int>(state.rooms[i], depth); drafts > 0) ++out[drafts - 1];
  }
  for (int i = depth - 1; i-- > 0;) out[i] += out[i + 1];
  return out;
}

double BatchDepthPolicy::draft_seconds(const Drafting& drafting, double mean_keys, double caught_up) const {
  double seconds = 0;
  double before = -1;
  double pass_s = 0;
  for (const double sequences : drafting) {
    // Mostly as many as for the position before.
    if (sequences != before) {
      pass_s = options_.costs.draft ? pass_seconds(*options_.costs.draft, window_work(sequences, 1, mean_keys)).total()
                              : sequences * kFreeDraft_s;
    }
    before = sequences;
    seconds += pass_s;
  }
  if (caught_up > 0 && options_.costs.draft) {
    seconds += pass_seconds(*options_.costs.draft, {caught_up, caught_up * mean_keys / 2, caught_up, 0}).total();
  }
  return seconds;
}

double BatchDepthPolicy::loaded_bytes(double tokens, double resident) const {
  const ModelCost& cost = options_.costs.target;
  return cost.expert_bytes * cost.moe_layers() * experts_loaded(cost.popularity, tokens, resident);
}

BatchDepthChoice BatchDepthPolicy::expect(const BatchState& state, int depth) const {
  return expect(state, drafting(state, depth), depth);
}

BatchDepthChoice BatchDepthPolicy::expect(const BatchState& state, const Drafting& drafting, int depth) const {
  BatchDepthChoice out;
  out.depth = depth;
  const double sequences = state.sequences;
  double drafted = 0;
  double reached = 1;
  out.tokens = sequences;
  for (int i = 0; i < depth; ++i) {
    drafted += speaks_.value * drafting[i];
    out.tokens += speaks_.value * drafting[i] * (reached *= acceptance(i));
  }
  const double mean_keys = sequences > 0 ? static_cast<double>(state.cached_positions) / sequences : 0;
  const double window = sequences > 0 ? (sequences + drafted) / sequences : 0;
  const PassWork prompts = {static_cast<double>(state.prompt_tokens), static_cast<double>(state.prompt_token_keys),
                            static_cast<double>(state.prompt_tokens), 0};
  const PassWork work = window_work(sequences, window, mean_keys) + prompts;
  const Parts modelled = parts(work);
  const Compute computing = compute(modelled);
  out.compute_s = computing.stages + computing.experts;
  out.draft_s = draft_.value * draft_seconds(drafting, mean_keys, 0);
  out.loaded_bytes = bytes_.value * loaded_bytes(work.tokens, state.resident_experts);
  out.load_s = out.loaded_bytes / rate_.value;
  const double beside = std::min(out.compute_s, out.load_s) / std::max(1, options_.costs.target.moe_layers());
  out.seconds = out.draft_s + std::max(out.compute_s, out.load_s) + beside + head_.value * modelled.head + other_.value;

  const double dense = computing.stages - computing.attention;
  out.limit = Component::kLoad;
  if (out.load_s < out.compute_s) {
    out.limit = computing.attention > std::max(dense, computing.experts) ? Component::kAttention
                : computing.experts > dense                              ? Component::kExperts
                                                                         : Component::kDense;
  }
  if (out.draft_s > std::max(out.compute_s, out.load_s)) out.limit = Component::kDraft;
  return out;
}

bool BatchDepthPolicy::unknown() const {
  return draft_.weight < 1 || acceptance_.empty() || acceptance_[0].weight < 2 * kPriorDrafts;
}

std::vector<bool> BatchDepthPolicy::skipped(const BatchState& state, double gain_s, double most_s) const {
  // What is read with every draft anyway: a token that ended one which was accepted to its end.
  constexpr int64_t kAlways = 1;
  const auto to_read = [&](size_t i) { return state.rooms[i] > 0 && state.behind[i] > kAlways ? state.behind[i] : 0; };
  int64_t all = 0;
  for (size_t i = 0; i < state.behind.size(); ++i) all += to_read(i);
  if (all == 0) return {};
  const double mean_keys = static_cast<double>(state.cached_positions) / std::max(1, state.sequences);
  const auto reading_s = [&](int64_t tokens) {
    return draft_.value * draft_seconds({}, mean_keys, static_cast<double>(tokens));
  };
  const double token_s = reading_s(all) / static_cast<double>(all);
  std::vector<bool> out(state.behind.size(), false);
  double spent_s = 0;
  bool some = false;
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t behind = to_read(i);
    if (behind == 0) continue;
    const double one_s = static_cast<double>(behind) * token_s;
    const bool too_much = spent_s > 0 && spent_s + one_s > most_s;
    out[i] = too_much || static_cast<double>(state.left[i]) * gain_s < kReadingMargin * one_s;
    if (!out[i]) spent_s += one_s;
    some = some || out[i];
  }
  return some ? out : std::vector<bool>();
}

BatchDepthChoice BatchDepthPolicy::choose(const BatchState& state) const {
  CHECK(state.left.size() == state.behind.size());
  CHECK(state.behind.empty() || state.behind.size() == state.rooms.size());
  const int deepest = std::max(0, std::min(options_.max_depth, state.max_depth));
  // By depth, from 0, as far as anybody has room for.
  const auto expected = [&](const BatchState& of, const Drafting& who) {
    std::vector<BatchDepthChoice> all;
    for (int depth = 0; depth == 0 || (depth <= deepest && who[static_cast<size_t>(depth) - 1] > 0); ++depth) {
      all.push_back(expect(of, Drafting(who.begin(), who.begin() + depth), depth));
    }
    return all;
  };
  const auto least = [](const std::vector<BatchDepthChoice>& all) {
    double least_s = seconds_per_token(all.front());
    for (const BatchDepthChoice& one : all) least_s = std::min(least_s, seconds_per_token(one));
    return least_s;
  };

  // Without prompts the most gained is the least time per token.
  BatchState alone = state;
  alone.prompt_tokens = alone.prompt_token_keys = 0;
  const Drafting everyone = drafting(state, deepest);
  std::vector<BatchDepthChoice> all = expected(alone, everyone);
  const bool nobody = all.size() == 1;
  const double token_s = seconds_per_token(all.front());
  const double few_s = kFewTexts * token_s * state.sequences;
  std::vector<bool> skipping =
      skipped(state, token_s - least(all), unknown() ? few_s : std::numeric_limits<double>::infinity());
  const Drafting some = skipping.empty() ? everyone : drafting(state, deepest, skipping);
  if (!skipping.empty()) all = expected(alone, some);
  const double least_s = least(all);
  if (state.prompt_tokens > 0) all = expected(state, some);

  const BatchDepthChoice none = all.front();
  BatchDepthChoice best = none;
  const auto gain = [&](const BatchDepthChoice& one) { return one.tokens * least_s - one.seconds; };
  for (const BatchDepthChoice& one : all) {
    if (token_s >= kDraftGain * least_s && gain(one) > gain(best)) best = one;
  }
  if (best.depth > 0) best.skipped = std::move(skipping);
  if (best.depth > 0 || nobody || iterations_ < next_trial_) return best;
  // Only where it would pay if all were accepted.
  const double gained_s = everyone[0] * token_s - (expect(state, {everyone[0]}, 1).seconds - none.seconds);
  skipping = skipped(state, gained_s / (state.sequences + everyone[0]), few_s);
  const Drafting tried = drafting(state, 1, skipping);
  if (gained_s < 0 || tried[0] == 0) return best;
  BatchDepthChoice trial = expect(state, tried, 1);
  trial.trial = true;
  trial.skipped = std::move(skipping);
  return trial;
}

void BatchDepthPolicy::observe(const BatchObservation& iteration) {
  ++iterations_;
  for (size_t i = 0; i < acceptance_.size(); ++i) {
    Decayed& at = acceptance_[i];
    at.weight *= kAcceptanceKeep;
    if (i >= iteration.reached.size() || iteration.reached[i] <= 0) continue;
    const auto reached = static_cast<double>(iteration.reached[i]);
    at.add(static_cast<double>(iteration.accepted[i]) / reached, reached, 1);
  }
  const double sequences = iteration.sequences;
  const double mean_keys = sequences > 0 ? static_cast<double>(iteration.cached_positions) / sequences : 0;
  const double window = sequences > 0 ? static_cast<double>(iteration.window_tokens) / sequences : 0;
  const PassWork prompts = {static_cast<double>(iteration.prompt_tokens),
                            static_cast<double>(iteration.prompt_token_keys),
                            static_cast<double>(iteration.prompt_tokens), 0};
  const PassWork work = window_work(sequences, window, mean_keys) + prompts;
  if (work.tokens <= 0) return;

  const Parts modelled = parts(work);
  const double compute_s = std::max(0.0, iteration.pass_s - iteration.stall_s);
  // What is not told apart is divided as it seems to be.
  double stages_share = iteration.stages_s / std::max(1e-12, iteration.stages_s + iteration.experts_s);
  if (iteration.stages_s + iteration.experts_s <= 0) {
    const Compute before = compute(modelled);
    stages_share = before.stages / std::max(1e-12, before.stages + before.experts);
  }
  stages_.add(modelled.stages, stages_share * compute_s, kKeep);
  experts_.add(modelled.experts, (1 - stages_share) * compute_s, kKeep);
  if (modelled.head > 0) head_.add(iteration.head_s / modelled.head, 1, kKeep);

  const auto bytes = static_cast<double>(iteration.bytes_read);
  const double modelled_bytes = loaded_bytes(work.tokens, iteration.resident_experts);
  if (modelled_bytes > options_.costs.target.expert_bytes) bytes_.add(bytes / modelled_bytes, 1, kKeep);
  if (bytes > 0 && iteration.link_busy_s > 0) {
    rate_.add(bytes / iteration.link_busy_s, 1, kKeep);
  } else if (bytes > 0 && iteration.pass_s > 0) {
    // Where computing hides the loads, they tell no more than that the link is at least so fast.
    const bool held_up = iteration.stall_s > kLoadBound * iteration.pass_s;
    const double beside = held_up ? compute_s / std::max(1, options_.costs.target.moe_layers()) : 0;
    const double rate = bytes / std::max(iteration.pass_s - beside, iteration.stall_s);
    if (held_up || rate > rate_.value) rate_.add(rate, 1, kKeep);
  }

  other_.add(iteration.other_s, 1, kKeep);
  if (iteration.asked_tokens > 0) {
    speaks_.add(static_cast<double>(iteration.drafted_tokens) / static_cast<double>(iteration.asked_tokens), 1, kKeep);
  }
  if (iteration.depth <= 0 || iteration.drafted_tokens <= 0) return;
  const double each = static_cast<double>(iteration.drafted_tokens) / iteration.depth;
  const Drafting drafting(static_cast<size_t>(iteration.depth), each);
  const double modelled_s = draft_seconds(drafting, mean_keys, static_cast<double>(iteration.caught_up_tokens));
  if (modelled_s > 0) draft_.add(iteration.draft_s / modelled_s, 1, kKeep);
  if (iterations_ > next_trial_) {
    next_trial_ = iterations_ + pause_;
    pause_ = std::min(kPauseGrowth * pause_, kLongestPause);
  }
}

std::string BatchDepthPolicy::explain(const BatchState& state) const {
  const BatchDepthChoice none = expect(state, 0);
  const BatchDepthChoice best = choose(state);
  std::string text = fmt::format("depth {}{}: {:.2f} s an iteration for {:.0f} tokens, {} limits", best.depth,
                                 best.trial ? " to try it" : "", best.seconds, best.tokens, component_name(best.limit));
  if (best.depth > 0) {
    text += fmt::format("; {:.2f}x of not drafting", seconds_per_token(none) / seconds_per_token(best));
  }
  return text;
}

}  // namespace drafthorse
