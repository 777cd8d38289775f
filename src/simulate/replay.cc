#include "simulate/replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "plan/drafter_policy.h"
#include "schedule/scheduler.h"

namespace drafthorse {
namespace {

constexpr int kMaxAutoDepth = 64;  // the engine's

// The recorded model's experts, one behind the other in a file that is never opened.
ExpertLayout layout_of(const TracedModel& model) {
  ExpertLayout layout;
  uint64_t offset = 0;
  for (const TracedLayer& traced : model.layers) {
    ExpertLayer& layer = layout.layers.emplace_back();
    layer.n_extents = static_cast<int>(traced.extent_bytes.size());
    for (int e = 0; e < traced.experts; ++e) {
      auto& extents = layer.experts.emplace_back();
      for (size_t x = 0; x < traced.extent_bytes.size(); ++x) {
        extents[x] = {0, offset, traced.extent_bytes[x]};
        offset += (traced.extent_bytes[x] + kDirectAlignment - 1) / kDirectAlignment * kDirectAlignment;
      }
    }
  }
  return layout;
}

class Replay {
 public:
  Replay(const RoutingTrace& trace, const ReplayOptions& options)
      : trace_(trace), options_(options), layout_(layout_of(trace.model)) {}

  Result<ReplayResult> run();

 private:
  Status prepare();
  void run_text(const TracedText& text);
  void run_prompt(const TracedPrompt& prompt);
  void run_cycle(const ReplayWindow& window);
  void draft(const ReplayWindow& window);
  void verify(const ReplayWindow& window);
  void experts_by_arrival(LayerId layer, const std::vector<int>& tokens_of, int tokens, bool scheduled);
  void experts_in_order(LayerId layer, const std::vector<int>& tokens_of, int tokens);
  void prefetch_next_layer(LayerId layer, int tokens);
  void commit(const ReplayWindow& window);
  bool tell(const TracedScore& score, int token);
  void work(double s) {
    // Fractions of a nanosecond are kept: rounded away they would add up.
    worked_ns_ += s * 1e9 * (queue_->in_flight() > 0 ? options_.cost.slowdown_while_reading : 1);
    const double whole = std::floor(worked_ns_);
    clock_.advance_by(static_cast<int64_t>(whole));
    worked_ns_ -= whole;
  }
  int choose_depth(const RecordedWindows& windows);
  int64_t stall_ns() const;
  uint64_t least_expert_bytes() const;

  const RoutingTrace& trace_;
  const ReplayOptions& options_;
  const ExpertLayout layout_;
  VirtualClock clock_;
  double worked_ns_ = 0;  // not yet on the clock
  std::unique_ptr<FileSet> files_;
  std::unique_ptr<ReadQueue> queue_;
  std::unique_ptr<ExpertCache> cache_;
  std::unique_ptr<ExpertScheduler> scheduler_;
  std::vector<ScoreSource> wanted_;
  std::optional<DrafterPolicy> depth_policy_;  // with one drafter
  bool any_wanted_score_ = false;

  ReplayResult result_;
  std::vector<Demand> demands_;
  double before_s_ = 0;                     // computed since the last demand
  std::vector<int64_t> missing_by_prefix_;  // of the present window
};

Status Replay::prepare() {
  ASSIGN_OR_RETURN(files_, FileSet::open({}));
  queue_ = make_link_queue(clock_, options_.link);
  std::unique_ptr<EvictionPolicy> eviction = make_eviction_policy(options_.eviction);
  std::unique_ptr<Predictor> predictor = make_predictor(options_.predictor, trace_.model.shapes());
  std::unique_ptr<PrefetchPolicy> prefetch = make_prefetch_policy(options_.prefetch);
  if (eviction == nullptr || predictor == nullptr || prefetch == nullptr) {
    return usage_error(
        fmt::format("no such policy: {}, {}, {}", options_.predictor, options_.prefetch, options_.eviction));
  }
  ASSIGN_OR_RETURN(cache_, ExpertCache::create(layout_, options_.slots, std::move(eviction), *files_, *queue_, clock_));
  wanted_ = predictor->wants();
  const double known = trace_.model.load_bytes_per_s > 0 ? trace_.model.load_bytes_per_s : options_.link.bytes_per_s;
  scheduler_ = std::make_unique<ExpertScheduler>(
      *cache_, std::move(predictor), std::move(prefetch),
      ExpertScheduler::Options{trace_.model.shapes(), trace_.model.draft_layers, known, options_.adaptive_shares},
      clock_);
  cache_->set_batched(options_.batched_reads);
  if (options_.depth == ReplayDepth::kAuto && !trace_.model.draft.empty()) {
    depth_policy_.emplace(std::vector<PolicyDrafter>{{"model"}}, kMaxAutoDepth);
  }
  return {};
}

int64_t Replay::stall_ns() const {
  int64_t total = 0;
  for (const LayerCacheStats& layer : cache_->stats()) total += layer.stall_ns;
  return total;
}

// --- a prompt ---------------------------------------------------------------------------------------------------

void Replay::run_prompt(const TracedPrompt& prompt) {
  const bool window = prompt.tokens <= trace_.model.max_window;
  for (size_t i = 0; i < layout_.layers.size(); ++i) {
    const LayerId layer{static_cast<int32_t>(i)};
    if (layout_.n_experts(layer) == 0) continue;
    work(options_.cost.stage(prompt.tokens));
    cache_->poll();
    if (window)
      experts_by_arrival(layer, prompt.uses[i], prompt.tokens, false);
    else
      experts_in_order(layer, prompt.uses[i], prompt.tokens);
  }
  for (size_t i = 0; i < layout_.layers.size(); ++i) {
    const LayerId layer{static_cast<int32_t>(i)};
    if (layout_.n_experts(layer) > 0) cache_->record_uses(layer, prompt.uses[i], prompt.tokens);
  }
  cache_->advance(prompt.tokens);
}

void Replay::experts_in_order(LayerId layer, const std::vector<int>& tokens_of, int tokens) {
  constexpr uint64_t kPrefillBackgroundBytes = uint64_t{kReadQueueCapacity} * kReadPieceBytes;
  cache_->set_background_limit(kPrefillBackgroundBytes);
  std::vector<ExpertId> demanded;
  for (size_t e = 0; e < tokens_of.size(); ++e) {
    if (tokens_of[e] > 0) demanded.push_back(ExpertId{static_cast<int32_t>(e)});
  }
  cache_->demand(layer, demanded);
  for (const ExpertId expert : demanded) {
    CHECK(cache_->wait_for(expert).ok());  // this link never fails
    prefetch_next_layer(layer, tokens);
    work(options_.cost.experts(1, tokens_of[static_cast<size_t>(index(expert))]));
    cache_->release(expert);
    cache_->poll();
  }
}

void Replay::prefetch_next_layer(LayerId layer, int tokens) {
  constexpr int kUsesPerExpert = 4;
  const LayerId next{index(layer) + 1};
  if (index(next) >= static_cast<int>(layout_.n_layers()) || layout_.n_experts(next) == 0) return;
  if (int64_t{tokens} * trace_.model.n_expert_used < int64_t{kUsesPerExpert} * layout_.n_experts(next)) return;
  for (int e = 0; e < layout_.n_experts(next); ++e) cache_->prefetch({next, ExpertId{e}});
}

// --- a cycle ----------------------------------------------------------------------------------------------------

bool Replay::tell(const TracedScore& score, int token) {
  if (std::find(wanted_.begin(), wanted_.end(), score.source) == wanted_.end()) return false;
  any_wanted_score_ = true;
  // Predictors look at the order alone.
  std::vector<float> logits(static_cast<size_t>(layout_.n_experts(score.layer)), -std::numeric_limits<float>::max());
  for (size_t rank = 0; rank < score.ranked.size(); ++rank) {
    logits[static_cast<size_t>(index(score.ranked[rank]))] = -static_cast<float>(rank);
  }
  scheduler_->scored({score.source, token, score.layer, logits});
  return true;
}

void Replay::draft(const ReplayWindow& window) {
  work(window.other_draft_s);
  before_s_ += window.other_draft_s;
  const int passes = window.depth > 0 ? static_cast<int>(window.tokens.size()) - 1 : 0;
  const int layers = std::max(1, trace_.model.draft_layers);
  const double layer_s = options_.cost.draft_token_s / layers;
  for (int pass = 0; pass < passes; ++pass) {
    const std::vector<TracedScore>& scores = window.tokens[static_cast<size_t>(pass)]->scores;
    for (int layer = 0; layer < layers; ++layer) {
      work(layer_s);
      for (const TracedScore& score : scores) {
        if (score.source != ScoreSource::kNextGate && index(score.at) == layer) tell(score, pass);
      }
      scheduler_->draft_worked();
    }
  }
  before_s_ += passes * options_.cost.draft_token_s;
}

void Replay::verify(const ReplayWindow& window) {
  const auto tokens = static_cast<int>(window.tokens.size());
  missing_by_prefix_.assign(window.tokens.size(), 0);
  for (size_t i = 0; i < layout_.layers.size(); ++i) {
    const LayerId layer{static_cast<int32_t>(i)};
    const int experts = layout_.n_experts(layer);
    // The time of dense layers is part of the stage of the next one with experts.
    if (experts > 0) {
      work(options_.cost.stage(tokens));
      before_s_ += options_.cost.stage(tokens);
    }
    cache_->poll();
    // As the engine tells it: the layer's probes one after the other, each for all tokens.
    for (int t = 0; t < tokens; ++t) {
      for (const TracedScore& score : window.tokens[static_cast<size_t>(t)]->scores) {
        if (score.source == ScoreSource::kNextGate && score.at == layer) tell(score, t);
      }
    }
    if (experts == 0) continue;
    std::vector<int> tokens_of(static_cast<size_t>(experts));
    std::vector<ExpertId> used;
    for (int t = 0; t < tokens; ++t) {
      for (const ExpertId expert : window.tokens[static_cast<size_t>(t)]->used[i]) {
        used.push_back(expert);
        const bool first = tokens_of[static_cast<size_t>(index(expert))]++ == 0;
        if (!first || cache_->resident({layer, expert})) continue;
        for (int m = t; m < tokens; ++m) ++missing_by_prefix_[static_cast<size_t>(m)];
      }
    }
    cache_->set_background_limit(kBackgroundBytesInFlight);
    scheduler_->routed(layer, used);
    experts_by_arrival(layer, tokens_of, tokens, true);
  }
}

void Replay::experts_by_arrival(LayerId layer, const std::vector<int>& tokens_of, int tokens, bool scheduled) {
  std::vector<ExpertId> demanded;
  int rows = 0;
  int fewest = std::numeric_limits<int>::max();
  for (size_t e = 0; e < tokens_of.size(); ++e) {
    if (tokens_of[e] == 0) continue;
    demanded.push_back(ExpertId{static_cast<int32_t>(e)});
    rows += tokens_of[e];
    fewest = std::min(fewest, tokens_of[e]);
  }
  if (!scheduled) cache_->set_background_limit(kBackgroundBytesInFlight);
  cache_->demand(layer, demanded);
  if (scheduled) {
    const double experts_s = options_.cost.experts(static_cast<int>(demanded.size()), rows);
    demands_.push_back({layer, demanded, before_s_, experts_s, options_.cost.experts(1, fewest)});
    before_s_ = 0;
    scheduler_->demanded(layer);
  }
  while (true) {
    Result<std::vector<ExpertId>> ready = cache_->take_ready();
    CHECK(ready.ok());  // this link never fails
    if (ready->empty()) break;
    prefetch_next_layer(layer, tokens);
    int group_rows = 0;
    for (const ExpertId expert : *ready) group_rows += tokens_of[static_cast<size_t>(index(expert))];
    work(options_.cost.experts(static_cast<int>(ready->size()), group_rows));
    cache_->poll();
    for (const ExpertId expert : *ready) cache_->release(expert);
    if (scheduled) scheduler_->worked();
  }
}

void Replay::commit(const ReplayWindow& window) {
  for (size_t i = 0; i < layout_.layers.size(); ++i) {
    const LayerId layer{static_cast<int32_t>(i)};
    if (layout_.n_experts(layer) == 0) continue;
    std::vector<int32_t> uses(static_cast<size_t>(layout_.n_experts(layer)));
    std::vector<char> of_window(uses.size());
    for (size_t t = 0; t < window.tokens.size(); ++t) {
      for (const ExpertId expert : window.tokens[t]->used[i]) {
        const auto e = static_cast<size_t>(index(expert));
        of_window[e] = 1;
        if (t < static_cast<size_t>(window.committed)) ++uses[e];
      }
    }
    cache_->record_uses(layer, uses, window.committed, of_window);
  }
  cache_->advance(window.committed);
}

void Replay::run_cycle(const ReplayWindow& window) {
  const int64_t start = clock_.now_ns();
  const auto tokens = static_cast<int>(window.tokens.size());
  scheduler_->begin_cycle(window.depth);
  draft(window);
  const int64_t verify_start = clock_.now_ns();
  const int64_t stall_before = stall_ns();
  scheduler_->begin_verify(tokens);
  verify(window);
  work(options_.cost.head(tokens));
  before_s_ += options_.cost.head(tokens);
  const int64_t end = clock_.now_ns();
  const int64_t stalled = stall_ns() - stall_before;
  commit(window);
  scheduler_->end_cycle(window.committed);

  const int accepted = window.committed - 1;
  result_.tokens += window.committed;
  ++result_.cycles;
  result_.drafted += tokens - 1;
  result_.accepted += accepted;
  result_.seconds += seconds(end - start);
  result_.draft_s += seconds(verify_start - start);
  result_.stall_s += seconds(stalled);
  if (depth_policy_) {
    depth_policy_->observe({tokens - 1, accepted, seconds(verify_start - start), seconds(end - verify_start),
                            seconds(stalled), missing_by_prefix_});
  }
}

int Replay::choose_depth(const RecordedWindows& windows) {
  if (trace_.model.draft.empty()) return 0;
  const int most = std::clamp(windows.room(), 0, kMaxAutoDepth);
  if (!depth_policy_) return std::min(options_.fixed_depth, most);
  const int rooms[] = {most};
  return depth_policy_->next(rooms).depth;
}

void add_guesses(const WindowGuesses& from, WindowGuesses& to) {
  to.drafted += from.drafted;
  to.agreement_drawn += from.agreement_drawn;
  to.routing_stood_in += from.routing_stood_in;
  to.without_scores += from.without_scores;
}

void Replay::run_text(const TracedText& text) {
  cache_->reset_stats();
  const int64_t start = clock_.now_ns();
  for (const TracedPrompt& prompt : text.prompt) run_prompt(prompt);
  result_.prompt_s += seconds(clock_.now_ns() - start);
  if (depth_policy_ && depth_policy_->cycles() == 0 && text.agreement && !depth_policy_->policy(0).primed()) {
    depth_policy_->prime(0, {text.agreement->agreed, text.agreement->positions, text.agreement->distinct_by_window});
  }
  cache_->reset_stats();
  cache_->fill();
  demands_.clear();
  before_s_ = 0;
  RecordedWindows windows(text, trace_.model.n_expert_used);
  while (!windows.at_end()) {
    const bool first = windows.room() + 1 == windows.positions();
    const double before_s = result_.seconds;
    run_cycle(options_.depth == ReplayDepth::kRecorded ? windows.as_recorded()
                                                       : windows.at_depth(choose_depth(windows)));
    if (first) result_.first_cycle_s += result_.seconds - before_s;
  }
  add_guesses(windows.guesses(), result_.guesses);
  result_.cache = sum({result_.cache, sum(cache_->stats())});
  // Prompts read what they like, so the bound begins anew after each.
  const uint64_t least_bytes = least_expert_bytes();
  const BeladyBound bound =
      belady(demands_, options_.slots, static_cast<double>(least_bytes) / options_.link.bytes_per_s);
  result_.bound.misses += bound.misses;
  result_.bound.seconds += bound.seconds + before_s_;
  result_.bound_bytes += static_cast<uint64_t>(bound.misses) * least_bytes;
}

uint64_t Replay::least_expert_bytes() const {
  uint64_t least = std::numeric_limits<uint64_t>::max();
  for (const TracedLayer& layer : trace_.model.layers) {
    if (layer.experts > 0) least = std::min(least, layer.expert_bytes());
  }
  return least;
}

Result<ReplayResult> Replay::run() {
  RETURN_IF_ERROR(prepare());
  for (const TracedText& text : trace_.texts) run_text(text);
  result_.without_scores = !wanted_.empty() && !any_wanted_score_;
  return std::move(result_);
}

}  // namespace

void ReplayOptions::take(const SchedulePolicy& policy) {
  predictor = policy.predictor;
  prefetch = policy.prefetch;
  eviction = policy.eviction;
  adaptive_shares = policy.adaptive_shares;
}

void ReplayResult::add(const ReplayResult& other) {
  tokens += other.tokens;
  cycles += other.cycles;
  drafted += other.drafted;
  accepted += other.accepted;
  seconds += other.seconds;
  draft_s += other.draft_s;
  stall_s += other.stall_s;
  prompt_s += other.prompt_s;
  first_cycle_s += other.first_cycle_s;
  cache = sum({cache, other.cache});
  add_guesses(other.guesses, guesses);
  bound.misses += other.bound.misses;
  bound.seconds += other.bound.seconds;
  bound_bytes += other.bound_bytes;
  without_scores = without_scores || other.without_scores;
}

double ReplayResult::hit_rate() const {
  const int64_t there = cache.hits + cache.in_flight_hits;
  return there + cache.misses > 0 ? static_cast<double>(there) / static_cast<double>(there + cache.misses) : 0;
}

Result<ReplayResult> replay(const RoutingTrace& trace, const ReplayOptions& options) {
  return Replay(trace, options).run();
}

ReplayOptions recorded_options(const RoutingTrace& trace) {
  ReplayOptions options;
  if (const auto policy = find_schedule_policy(trace.model.policy)) options.take(*policy);
  options.predictor = trace.model.predictor;
  options.prefetch = trace.model.prefetch;
  options.eviction = trace.model.eviction;
  options.batched_reads = trace.model.batched_reads;
  options.slots = std::clamp(trace.model.slots, std::min(ExpertCache::kLeastSlots, trace.model.total_experts()),
                             trace.model.total_experts());
  return options;
}

double measured_link(const RoutingTrace& trace, int64_t latency_ns) {
  const double waited = recorded_result(trace).stall_s;
  if (waited <= 0) return 0;
  ReplayOptions options = recorded_options(trace);
  options.cost = measured_cost(trace);
  options.link.latency_ns = latency_ns;
  // The faster the link, the less is waited: halve the range, in powers.
  double slow = 1e7;
  double fast = 1e11;
  constexpr int kHalvings = 20;
  for (int i = 0; i < kHalvings; ++i) {
    options.link.bytes_per_s = std::sqrt(slow * fast);
    const Result<ReplayResult> result = replay(trace, options);
    if (!result.ok()) return 0;
    (result->stall_s > waited ? slow : fast) = options.link.bytes_per_s;
  }
  return std::sqrt(slow * fast);
}

ReplayResult recorded_result(const RoutingTrace& trace) {
  ReplayResult result;
  for (const TracedText& text : trace.texts) {
    for (const TracedCycle& cycle : text.cycles) {
      result.tokens += cycle.committed;
      ++result.cycles;
      result.drafted += cycle.tokens - 1;
      result.accepted += cycle.committed - 1;
      result.seconds += cycle.seconds();
      result.draft_s += cycle.draft_s;
      for (const TracedLayerTimes& layer : cycle.times) result.stall_s += layer.stall_s;
      result.cache.hits += cycle.hits;
      result.cache.in_flight_hits += cycle.in_flight_hits;
      result.cache.misses += cycle.misses;
      result.cache.bytes_demanded += cycle.bytes_read;
    }
  }
  return result;
}

}  // namespace drafthorse
