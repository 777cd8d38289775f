#include "simulate/prediction.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/units.h"
#include "simulate/replay.h"

namespace drafthorse {
namespace {

constexpr int kDepths[] = {1, 2, 4, 8, 16, 32, 64};
constexpr int kMostExperts = 1024;    // of all layers of a replayed text
constexpr int kExpertsEnough = 512;   // that many, of one text or of several, are no accident
constexpr double kDrafting = 1.06;    // drafting must promise this much, as the engine's policy wants it
constexpr double kMemoryBound = 0.6;  // of the time at which memory alone would have delivered the weights
constexpr double kDiskBound = 0.3;    // of the time spent waiting
constexpr int kMostInFlight = 64;
constexpr int kMostReplayed = 256;  // tokens of a text: more of it goes on in the same way
// What a damaged profile may say is cut to what a virtual clock can count.
constexpr double kMostSeconds = 1000;
constexpr double kLeastRate = 1e5;
constexpr double kMostRate = 1e15;

double sane(double s) { return std::clamp(s, 0.0, kMostSeconds); }

class SpeedPredictor {
 public:
  explicit SpeedPredictor(const PredictionInput& input)
      : input_(input),
        target_(input.machine, input.target, keys(input)),
        draft_(input.machine, input.draft ? *input.draft : input.target, keys(input)),
        moe_layers_(input.target.moe_layers()) {}

  Status prepare();
  Result<SpeedPrediction> at(std::optional<int> depth);  // an adaptive one needs a draft
  SpeedPrediction of_dense(int depth) const;
  Result<SpeedPrediction> as_a_run();

  bool moe() const { return moe_layers_ > 0; }
  // `best` is what was worked out last.
  double ttft_s(const SpeedPrediction& best) const;

 private:
  static double keys(const PredictionInput& input) { return input.prompt_tokens + input.generated_tokens / 2.0; }
  void choose_layers();
  void describe_model();
  void tabulate();
  LinkOptions link() const;
  double draft_prompt_s() const;
  SpeedPrediction summary(const ReplayResult& all, std::optional<int> depth) const;
  Bottleneck bottleneck_of(const SpeedPrediction& speed) const;

  const PredictionInput& input_;
  ComputeTime target_;
  ComputeTime draft_;  // meaningless without one
  int moe_layers_;
  int replayed_layers_ = 0;
  double part_ = 1;  // replayed, of the layers with experts; all times and counts of a replay are this part
  int texts_wanted_ = 1;
  ReplayOptions options_;
  TracedModel model_;
  std::vector<RoutingTrace> texts_;
  double replayed_ttft_s_ = 0;
};

Status SpeedPredictor::prepare() {
  CHECK(!input_.machine.disk.empty() && input_.machine.ram_bytes_per_s > 0);
  CHECK(input_.prompt_tokens > 0 && input_.generated_tokens > 0);
  RETURN_IF_ERROR(target_.check());
  if (input_.draft) RETURN_IF_ERROR(draft_.check());
  if (!moe()) return {};
  choose_layers();
  describe_model();
  tabulate();
  options_.take(*find_schedule_policy(kDefaultPolicy));
  options_.slots = std::clamp(static_cast<int>(std::lround(input_.slots * part_)),
                              std::min(ExpertCache::kLeastSlots, model_.total_experts()), model_.total_experts());
  options_.link = link();
  TypicalText text{input_.prompt_tokens, input_.prefill_tokens, std::min(input_.generated_tokens, kMostReplayed),
                   input_.draft.has_value(), input_.draft && input_.foreseen};
  for (; static_cast<int>(text.seed) < texts_wanted_; ++text.seed) {
    texts_.push_back(typical_text(model_, input_.text, text));
  }
  return {};
}

// Few layers with many experts each stand for all, and several texts for one of a model that has few of both.
void SpeedPredictor::choose_layers() {
  int experts = 1;
  for (const LayerWork& layer : input_.target.layers) experts = std::max(experts, layer.n_expert);
  constexpr int kLeastLayers = 2;
  replayed_layers_ = std::min(moe_layers_, std::max(kLeastLayers, kMostExperts / experts));
  part_ = static_cast<double>(replayed_layers_) / moe_layers_;
  constexpr int kMostTexts = 32;
  texts_wanted_ = std::clamp(kExpertsEnough / (replayed_layers_ * experts), 1, kMostTexts);
}

void SpeedPredictor::describe_model() {
  model_.target = "target";
  for (const LayerWork& layer : input_.target.layers) {
    if (layer.n_expert == 0) continue;
    if (static_cast<int>(model_.layers.size()) == replayed_layers_) break;
    TracedLayer& traced = model_.layers.emplace_back();
    traced.experts = layer.n_expert;
    const uint64_t extents = std::clamp<uint64_t>(layer.expert.size(), 1, kMaxExpertExtents);
    const uint64_t each = align_up(std::max<uint64_t>(1, input_.target.expert_bytes / extents), kDirectAlignment);
    traced.extent_bytes.assign(extents, each);
  }
  model_.n_expert_used = input_.target.n_expert_used;
  model_.max_window = input_.max_window;
  if (!input_.draft) return;
  model_.draft = "draft";
  model_.draft_layers =
      std::max(1, static_cast<int>(std::lround(static_cast<double>(input_.draft->layers.size()) * part_)));
}

void SpeedPredictor::tabulate() {
  ComputeCost& cost = options_.cost;
  const int most = std::max({2, input_.max_window, std::min(input_.prompt_tokens, input_.prefill_tokens)});
  for (int tokens = 1; tokens <= most; ++tokens) {
    cost.stage_table.push_back(sane(target_.stages_s(tokens) / moe_layers_));
    cost.expert_table.push_back(sane(target_.expert_s(tokens)));
    cost.head_table.push_back(sane(target_.head_s(tokens) * part_));
  }
  if (input_.draft) cost.draft_token_s = sane(draft_.token_s() * part_);
  cost.slowdown_while_reading = std::clamp(input_.machine.compute_slowdown_while_reading, 1.0, 100.0);
}

// The bandwidth of many reads under way, and the latency that makes one alone as slow as it was measured.
LinkOptions SpeedPredictor::link() const {
  uint64_t largest = 0;
  for (const DiskRate& rate : input_.machine.disk) largest = std::max(largest, rate.read_bytes);
  const double bytes = std::min(static_cast<double>(largest), kMostRate);
  const double rate = std::clamp(disk_rate(input_.machine, kMostInFlight), kLeastRate, kMostRate);
  const double alone = std::clamp(disk_rate(input_.machine, 1), kLeastRate, rate);
  const double latency = std::clamp(bytes / alone - bytes / rate, 0.0, 1.0);
  return {rate, static_cast<int64_t>(latency * 1e9),
          std::min(input_.machine.first_touch_s_per_byte, kMostSeconds / 1e9)};
}

// The draft reads the prompt, or the end of it, at once; all its experts are in memory.
double SpeedPredictor::draft_prompt_s() const {
  if (!input_.draft || input_.draft_prompt == 0) return 0;
  const double tokens = input_.draft_prompt;
  double total = draft_.stages_s(tokens);
  for (const LayerWork& layer : input_.draft->layers) {
    if (layer.n_expert == 0) continue;
    const double uses = tokens * input_.draft->n_expert_used;
    const double experts = std::min<double>(layer.n_expert, uses);
    total += experts * draft_.expert_s(uses / experts);
  }
  return total;
}

double SpeedPredictor::ttft_s(const SpeedPrediction& best) const {
  if (moe()) return replayed_ttft_s_ + draft_prompt_s();
  const int body = input_.prompt_tokens - 1;
  return (body > 0 ? target_.stages_s(body) : 0) + draft_prompt_s() + best.cycle_s;
}

Bottleneck SpeedPredictor::bottleneck_of(const SpeedPrediction& speed) const {
  if (speed.stall_s > kDiskBound * speed.cycle_s) return Bottleneck::kDisk;
  return target_.memory_s(speed.demanded) > kMemoryBound * speed.compute_s ? Bottleneck::kMemory : Bottleneck::kCompute;
}

SpeedPrediction SpeedPredictor::summary(const ReplayResult& all, std::optional<int> depth) const {
  const auto cycles = static_cast<double>(std::max<int64_t>(1, all.cycles));
  SpeedPrediction speed;
  speed.depth = depth;
  const double whole = 1 / (cycles * part_);
  speed.tokens_per_s = static_cast<double>(all.tokens) / std::max(1e-9, all.seconds / part_);
  speed.tokens_per_cycle = static_cast<double>(all.tokens) / cycles;
  speed.drafted_per_cycle = static_cast<double>(all.drafted) / cycles;
  speed.cycle_s = all.seconds * whole;
  speed.draft_s = all.draft_s * whole;
  speed.stall_s = all.stall_s * whole;
  speed.compute_s = speed.cycle_s - speed.draft_s - speed.stall_s;
  speed.demanded = static_cast<double>(all.cache.hits + all.cache.in_flight_hits + all.cache.misses) * whole;
  speed.missed = static_cast<double>(all.cache.misses) * whole;
  speed.bytes_per_token = all.per_token(static_cast<double>(all.bytes())) / part_;
  speed.bottleneck = bottleneck_of(speed);
  return speed;
}

Result<SpeedPrediction> SpeedPredictor::at(std::optional<int> depth) {
  CHECK(depth || input_.draft);
  if (!moe()) return of_dense(depth.value_or(0));
  ReplayOptions options = options_;
  options.depth = depth ? ReplayDepth::kFixed : ReplayDepth::kAuto;
  options.fixed_depth = depth.value_or(0);
  ReplayResult all;
  for (const RoutingTrace& text : texts_) {
    ASSIGN_OR_RETURN(const ReplayResult one, replay(text, options));
    all.add(one);
  }
  replayed_ttft_s_ = (all.prompt_s + all.first_cycle_s) / (part_ * static_cast<double>(texts_.size()));
  return summary(all, depth);
}

SpeedPrediction SpeedPredictor::of_dense(int depth) const {
  SpeedPrediction speed;
  speed.depth = depth;
  speed.drafted_per_cycle = depth;
  speed.draft_s = input_.draft ? depth * sane(draft_.token_s()) : 0;
  speed.compute_s = sane(target_.stages_s(depth + 1) + target_.head_s(depth + 1));
  speed.cycle_s = speed.draft_s + speed.compute_s;
  double reached = 1;
  for (int i = 0; i < depth; ++i) speed.tokens_per_cycle += reached *= input_.text.acceptance;
  speed.tokens_per_s = speed.tokens_per_cycle / std::max(1e-9, speed.cycle_s);
  speed.bottleneck = bottleneck_of(speed);
  return speed;
}

Result<SpeedPrediction> SpeedPredictor::as_a_run() {
  if (!input_.draft) return at(0);
  if (input_.depth || moe()) return at(input_.depth);
  SpeedPrediction best = of_dense(0);
  for (const int depth : kDepths) {
    const SpeedPrediction one = of_dense(depth);
    if (one.tokens_per_s > best.tokens_per_s * (*best.depth == 0 ? kDrafting : 1)) best = one;
  }
  return best;
}

double load_s(const PredictionInput& input) {
  double bytes = static_cast<double>(input.target.dense_bytes);
  if (input.draft) {
    bytes += static_cast<double>(input.draft->dense_bytes);
    for (const LayerWork& layer : input.draft->layers) {
      bytes += layer.n_expert * static_cast<double>(input.draft->expert_bytes);
    }
  }
  return bytes / disk_rate(input.machine, kMostInFlight);
}

}  // namespace

Result<Prediction> predict(const PredictionInput& input) {
  SpeedPredictor predictor(input);
  RETURN_IF_ERROR(predictor.prepare());
  Prediction out;
  out.load_s = load_s(input);
  ASSIGN_OR_RETURN(out.plain, predictor.at(0));
  if (out.plain.demanded > 0) out.hit_rate = 1 - out.plain.missed / out.plain.demanded;
  out.by_depth.push_back(out.plain);
  for (const int depth : kDepths) {
    if (!input.draft || depth >= input.max_window) break;
    ASSIGN_OR_RETURN(SpeedPrediction speed, predictor.at(depth));
    out.by_depth.push_back(speed);
  }
  ASSIGN_OR_RETURN(out.best, predictor.as_a_run());
  out.ttft_s = predictor.ttft_s(out.best);
  return out;
}

Result<SpeedPrediction> predict_speed(const PredictionInput& input) {
  SpeedPredictor predictor(input);
  RETURN_IF_ERROR(predictor.prepare());
  return predictor.as_a_run();
}

Result<std::optional<double>> skew_from_hit_rate(const PredictionInput& input, double hit_rate, int slots,
                                                 double window) {
  std::optional<double> none;
  int experts = 0;
  for (const LayerWork& layer : input.target.layers) experts += layer.n_expert;
  if (slots >= experts || hit_rate >= 1) return none;
  PredictionInput like = input;
  like.slots = slots;
  like.depth = std::clamp(static_cast<int>(std::lround(window)) - 1, 0, input.max_window - 1);
  if (!like.draft) like.depth = 0;
  // The more skewed, the more hits: halve the range.
  constexpr int kHalvings = 12;
  double low = 0;
  double high = 8;
  for (int i = 0; i < kHalvings; ++i) {
    like.text.skew = (low + high) / 2;
    ASSIGN_OR_RETURN(const SpeedPrediction speed, predict_speed(like));
    const double hits = speed.demanded > 0 ? 1 - speed.missed / speed.demanded : 1;
    (hits < hit_rate ? low : high) = like.text.skew;
  }
  return std::optional((low + high) / 2);
}

}  // namespace drafthorse
