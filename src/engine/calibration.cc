#include "engine/calibration.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>

#include "forward/pass_observer.h"
#include "predict/ranking.h"
#include "predict/ridge_fit.h"

namespace drafthorse {
namespace {

constexpr std::array kLambdas = {1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0};
constexpr int64_t kParts = 10;  // of the positions' blocks, by turns
constexpr int64_t kChoosingPart = 4;
constexpr int64_t kJudgingPart = 9;
// Neighbours are alike: what is judged by lies apart from what was fitted to, but for a block's ends.
constexpr int64_t kMostBlock = 128;
constexpr int64_t kLeastBlocks = 4 * kParts;

enum class Use { kFit, kChoose, kJudge };

int64_t block_size(int64_t positions) { return std::clamp<int64_t>(positions / kLeastBlocks, 1, kMostBlock); }

Use use_of(int64_t position, int64_t block) {
  const int64_t part = position / block % kParts;
  return part == kChoosingPart ? Use::kChoose : part == kJudgingPart ? Use::kJudge : Use::kFit;
}

// At most so many positions are kept of those that choose, or judge.
uint64_t held_positions(int32_t positions) { return static_cast<uint64_t>(positions / kParts + kMostBlock); }

// [n_embd, n_expert] of a router of any type.
std::vector<float> floats_of(const ggml_tensor& matrix) {
  std::vector<float> out(static_cast<size_t>(ggml_nelements(&matrix)));
  if (matrix.type == GGML_TYPE_F32) {
    std::copy_n(static_cast<const float*>(matrix.data), out.size(), out.begin());
  } else {
    ggml_get_type_traits(matrix.type)->to_float(matrix.data, out.data(), static_cast<int64_t>(out.size()));
  }
  return out;
}

// Adds up how well rankings fit the truth.
class Judge {
 public:
  Judge(const Model& target, LayerId layer)
      : target_(target), layer_(layer), truth_(static_cast<size_t>(target.config().n_expert_used)) {}

  // truth, predicted: router logits of one token.
  void add(std::span<const float> truth, std::span<const float> predicted) {
    target_.ranking_scores(layer_, predicted, scores_);
    add_ranked(truth, scores_);
  }
  // scores: what to rank by.
  void add_ranked(std::span<const float> truth, std::span<const float> scores) {
    target_.route(layer_, truth, truth_);
    const std::vector<ExpertId> ranked = rank_experts(scores, 2 * truth_.size());
    for (const RoutedExpert& one : truth_) {
      const auto rank = static_cast<size_t>(std::find(ranked.begin(), ranked.end(), one.expert) - ranked.begin());
      used_ += 1;
      weight_ += one.weight;
      if (rank < truth_.size()) sum_.recall += 1;
      if (rank < ranked.size()) sum_.wide_recall += 1;
      if (rank < ranked.size()) sum_.wide_weight += one.weight;
    }
  }
  PredictionQuality quality() const {
    if (used_ == 0) return {};
    return {sum_.recall / used_, sum_.wide_recall / used_, weight_ > 0 ? sum_.wide_weight / weight_ : 0};
  }

 private:
  const Model& target_;
  LayerId layer_;
  std::vector<RoutedExpert> truth_;
  std::vector<float> scores_;
  double used_ = 0;
  double weight_ = 0;
  PredictionQuality sum_;
};

// Positions kept as they are.
struct Held {
  std::vector<float> x;  // [n_embd of the draft, n]
  std::vector<float> y;  // [outputs, n]
};

// A layer of the draft and the layers of the target that it speaks for, side by side as outputs.
struct DraftLayer {
  LayerId id{};
  std::vector<LayerId> targets;
  RidgeFit fit;
  Held choosing;
  Held judging;
  std::vector<std::vector<double>> uses;  // by target layer: of each expert, where was fitted
  std::vector<double> last_hits;          // by target layer: experts that the token before used as well
};

class TargetObserver final : public PassObserver {
 public:
  // logits: by layer [n_expert, window]; those that are empty are not wanted.
  TargetObserver(Model& model, std::vector<std::vector<float>>& logits) : model_(model), logits_(logits) {}
  void reached(LayerId layer, int32_t count) override {
    std::vector<float>& out = logits_[index(layer)];
    if (out.empty()) return;
    const auto experts = static_cast<size_t>(model_.config().n_expert);
    const auto first = static_cast<size_t>(model_.kv().length());
    CHECK((first + static_cast<size_t>(count)) * experts <= out.size());
    std::copy_n(model_.workspace().router_logits, static_cast<size_t>(count) * experts,
                out.begin() + static_cast<std::ptrdiff_t>(first * experts));
  }

 private:
  Model& model_;
  std::vector<std::vector<float>>& logits_;
};

class Calibrator {
 public:
  Calibrator(Engine& engine, std::span<const std::vector<int32_t>> texts, const LoadProgress& progress)
      : engine_(engine),
        target_(*engine.target().model),
        draft_(*engine.draft().model),
        texts_(texts),
        progress_(progress),
        logits_(static_cast<size_t>(target_.config().n_layer)) {
    for (const auto& text : texts) positions_ += static_cast<int64_t>(text.size());
    block_ = block_size(positions_);
  }

  Result<CalibrationResult> run() {
    std::map<LayerId, std::vector<LayerId>> speaks_for;
    for (int32_t i = 0; i < target_.config().n_layer; ++i) {
      if (!target_.is_moe_layer(LayerId{i})) continue;
      speaks_for[corresponding_layer(LayerId{i}, target_.config().n_layer, draft_.config().n_layer)].push_back(
          LayerId{i});
    }
    std::vector<std::pair<LayerId, std::vector<LayerId>>> all(speaks_for.begin(), speaks_for.end());
    const auto at_once = static_cast<size_t>(engine_.calibration_layers());
    groups_ = (all.size() + at_once - 1) / at_once;
    for (group_ = 0; group_ < groups_; ++group_) {
      const size_t first = group_ * at_once;
      const size_t count = std::min(at_once, all.size() - first);
      RETURN_IF_ERROR(fit_group(std::span(all).subspan(first, count)));
    }
    const auto by_layer = [](const auto& a, const auto& b) { return index(a.layer) < index(b.layer); };
    std::sort(result_.routers.begin(), result_.routers.end(), by_layer);
    std::sort(result_.layers.begin(), result_.layers.end(), by_layer);
    return std::move(result_);
  }

 private:
  class DraftObserver final : public PassObserver {
   public:
    explicit DraftObserver(Calibrator& calibrator) : calibrator_(calibrator) {}
    void reached(LayerId layer, int32_t count) override { calibrator_.take(layer, count); }

   private:
    Calibrator& calibrator_;
  };

  Status check() const { return engine_.interrupted() ? interrupted_error() : Status(); }

  void report(std::string_view what, double part) const {
    if (progress_) progress_(what, (static_cast<double>(group_) + part) / static_cast<double>(groups_));
  }

  size_t experts() const { return static_cast<size_t>(target_.config().n_expert); }

  Status fit_group(std::span<const std::pair<LayerId, std::vector<LayerId>>> group) {
    layers_.clear();
    for (std::vector<float>& one : logits_) one = {};
    for (const auto& [id, targets] : group) {
      const auto outputs = static_cast<int>(targets.size() * experts());
      layers_.push_back({id, targets, RidgeFit(draft_.config().n_embd, outputs), {}, {}, {}, {}});
      layers_.back().uses.assign(targets.size(), std::vector<double>(experts()));
      layers_.back().last_hits.assign(targets.size(), 0);
      for (const LayerId target : targets) {
        logits_[index(target)].resize(experts() * static_cast<size_t>(calibration_window(engine_)));
      }
    }
    RETURN_IF_ERROR(read_texts());
    for (size_t i = 0; i < layers_.size(); ++i) {
      report("fitting", 0.8 + 0.2 * static_cast<double>(i) / static_cast<double>(layers_.size()));
      RETURN_IF_ERROR(finish(layers_[i]));
    }
    return {};
  }

  Status read_texts() {
    TargetObserver target_observer(target_, logits_);
    DraftObserver draft_observer(*this);
    ForwardPass& target_pass = *engine_.target().pass;
    ForwardPass& draft_pass = *engine_.draft().pass;
    target_pass.set_observer(&target_observer);
    draft_pass.set_observer(&draft_observer);
    base_ = 0;
    Status status;
    for (size_t i = 0; i < texts_.size() && status.ok(); ++i) {
      const double done = static_cast<double>(i) / static_cast<double>(texts_.size());
      const auto part = [&](double of_text) {
        report("reading the texts", 0.8 * (done + of_text / static_cast<double>(texts_.size())));
      };
      part(0);
      status = read_text(texts_[i], target_pass, draft_pass, part);
      base_ += static_cast<int64_t>(texts_[i].size());
    }
    target_.kv().truncate(0);
    draft_.kv().truncate(0);
    target_pass.set_observer(nullptr);
    draft_pass.set_observer(nullptr);
    return status;
  }

  Status read_text(std::span<const int32_t> text, ForwardPass& target_pass, ForwardPass& draft_pass,
                   const std::function<void(double)>& part) {
    RETURN_IF_ERROR(check());
    target_.kv().truncate(0);
    draft_.kv().truncate(0);
    RETURN_IF_ERROR(target_pass.run(text, 0, part));
    // A draft may know fewer tokens; it reads others as ModelDrafter has it read them.
    std::vector<int32_t> readable(text.begin(), text.end());
    for (int32_t& token : readable) token = token < draft_.config().n_vocab ? token : 0;
    return draft_pass.run(readable, 0);
  }

  // The draft has reached a layer with `count` more tokens of the present text.
  void take(LayerId id, int32_t count) {
    const auto found =
        std::find_if(layers_.begin(), layers_.end(), [id](const DraftLayer& one) { return one.id == id; });
    if (found == layers_.end()) return;
    const int32_t first = draft_.kv().length();
    // Nothing is ever drafted like a text's first token, and its states are like no other's.
    for (int32_t begin = first == 0 ? 1 : 0; begin < count;) {
      const Use use = use_of(base_ + first + begin, block_);
      int32_t end = begin + 1;
      while (end < count && use_of(base_ + first + end, block_) == use) ++end;
      take_run(*found, use, first, begin, end);
      begin = end;
    }
  }

  // Columns [begin, end) of the draft's part that begins at position `first` of the text.
  void take_run(DraftLayer& layer, Use use, int32_t first, int32_t begin, int32_t end) {
    const auto width = static_cast<size_t>(draft_.config().n_embd);
    const auto count = static_cast<size_t>(end - begin);
    const std::span<const float> x(draft_.ffn_input(begin).data(), count * width);
    const size_t outputs = layer.targets.size() * experts();
    run_y_.resize(count * outputs);
    for (size_t t = 0; t < count; ++t) {
      const auto position = static_cast<size_t>(first + begin) + t;
      for (size_t i = 0; i < layer.targets.size(); ++i) {
        const std::span<const float> logits = logits_of(layer.targets[i], position);
        std::copy(logits.begin(), logits.end(),
                  run_y_.begin() + static_cast<std::ptrdiff_t>(t * outputs + i * experts()));
        if (use == Use::kFit) note_uses(layer, i, logits);
        if (use == Use::kJudge) note_last(layer, i, position);
      }
    }
    if (use == Use::kFit) {
      layer.fit.add(x, run_y_, target_.pool());
      return;
    }
    Held& held = use == Use::kChoose ? layer.choosing : layer.judging;
    held.x.insert(held.x.end(), x.begin(), x.end());
    held.y.insert(held.y.end(), run_y_.begin(), run_y_.end());
  }

  std::span<const float> logits_of(LayerId layer, size_t position) const {
    return {logits_[index(layer)].data() + position * experts(), experts()};
  }

  std::vector<RoutedExpert> route(LayerId layer, std::span<const float> logits) const {
    std::vector<RoutedExpert> routed(static_cast<size_t>(target_.config().n_expert_used));
    target_.route(layer, logits, routed);
    return routed;
  }

  void note_uses(DraftLayer& layer, size_t target, std::span<const float> logits) {
    for (const RoutedExpert& one : route(layer.targets[target], logits)) layer.uses[target][index(one.expert)] += 1;
  }

  void note_last(DraftLayer& layer, size_t target, size_t position) {
    const LayerId id = layer.targets[target];
    const std::vector<RoutedExpert> before = route(id, logits_of(id, position - 1));
    for (const RoutedExpert& one : route(id, logits_of(id, position))) {
      layer.last_hits[target] += std::any_of(before.begin(), before.end(),
                                             [&](const RoutedExpert& last) { return last.expert == one.expert; });
    }
  }

  // Of the outputs those of one target layer, by a map of all.
  PredictionQuality judge(const DraftLayer& layer, size_t target, const LinearMap& map, const Held& held) const {
    const auto width = static_cast<size_t>(draft_.config().n_embd);
    const size_t outputs = layer.targets.size() * experts();
    Judge judge(target_, layer.targets[target]);
    std::vector<float> predicted(experts());
    for (size_t t = 0; t * outputs < held.y.size(); ++t) {
      apply(map, std::span(held.x).subspan(t * width, width), predicted);
      judge.add(std::span(held.y).subspan(t * outputs + target * experts(), experts()), predicted);
    }
    return judge.quality();
  }

  LinearMap slice(const LinearMap& all, size_t target) const {
    const size_t weights = experts() * static_cast<size_t>(draft_.config().n_embd);
    const auto part = [](const std::vector<float>& of, size_t begin, size_t count) {
      const auto first = of.begin() + static_cast<std::ptrdiff_t>(begin);
      return std::vector<float>(first, first + static_cast<std::ptrdiff_t>(count));
    };
    return {part(all.weights, target * weights, weights), part(all.offsets, target * experts(), experts())};
  }

  Status finish(DraftLayer& layer) {
    const size_t targets = layer.targets.size();
    if (layer.fit.samples() == 0) {
      return runtime_error("the two models give no numbers that could be fitted to: one of their files may be damaged");
    }
    std::vector<double> lambdas(targets, kLambdas.front());
    std::vector<double> best(targets, -1);
    for (const double lambda : kLambdas) {
      RETURN_IF_ERROR(check());
      const LinearMap map = layer.fit.solve(lambda);
      for (size_t i = 0; i < targets; ++i) {
        const double recall = judge(layer, i, slice(map, i), layer.choosing).recall;
        if (recall < best[i]) continue;  // of equals the one that holds back more
        best[i] = recall;
        lambdas[i] = lambda;
      }
    }
    layer.fit.add(layer.choosing.x, layer.choosing.y, target_.pool());
    result_.fitted_positions = layer.fit.samples();
    result_.judged_positions = static_cast<int64_t>(layer.judging.y.size() / (targets * experts()));
    std::map<double, LinearMap> solved;
    for (size_t i = 0; i < targets; ++i) {
      RETURN_IF_ERROR(check());
      const auto [entry, fresh] = solved.try_emplace(lambdas[i]);
      if (fresh) entry->second = layer.fit.solve(lambdas[i]);
      LinearMap map = slice(entry->second, i);
      result_.layers.push_back(describe(layer, i, lambdas[i], map));
      result_.routers.push_back({layer.targets[i], std::move(map.weights), std::move(map.offsets)});
    }
    return {};
  }

  LayerCalibration describe(const DraftLayer& layer, size_t target, double lambda, const LinearMap& map) const {
    LayerCalibration out{layer.targets[target], layer.id, lambda, judge(layer, target, map, layer.judging), {}, {}, 0};
    const size_t outputs = layer.targets.size() * experts();
    const size_t judged = layer.judging.y.size() / outputs;
    Judge frequency(target_, out.layer);
    const std::vector<float> uses(layer.uses[target].begin(), layer.uses[target].end());
    for (size_t t = 0; t < judged; ++t) {
      frequency.add_ranked(std::span(layer.judging.y).subspan(t * outputs + target * experts(), experts()), uses);
    }
    out.frequency = frequency.quality();
    if (draft_.config().n_embd == target_.config().n_embd) {
      const LinearMap own{floats_of(*target_.router(out.layer)), std::vector<float>(experts())};
      out.cross = judge(layer, target, own, layer.judging);
    }
    const double used = static_cast<double>(judged) * target_.config().n_expert_used;
    if (judged > 0) out.last_token = layer.last_hits[target] / used;
    return out;
  }

  Engine& engine_;
  Model& target_;
  Model& draft_;
  std::span<const std::vector<int32_t>> texts_;
  const LoadProgress& progress_;
  int64_t positions_ = 0;
  int64_t block_ = 1;
  size_t group_ = 0;
  size_t groups_ = 1;
  int64_t base_ = 0;                        // positions of the texts before the present one
  std::vector<DraftLayer> layers_;          // of the present group
  std::vector<std::vector<float>> logits_;  // of the present text, by layer of the target: [n_expert, window]
  std::vector<float> run_y_;
  CalibrationResult result_;
};

}  // namespace

int32_t default_calibration_positions(int32_t draft_width) {
  constexpr int32_t kLeast = 4096;
  constexpr int32_t kMost = 16384;
  return std::clamp(8 * draft_width, kLeast, kMost);
}

uint64_t calibration_bytes(const ModelConfig& target, const ModelConfig& draft, int32_t positions, int layers_at_once) {
  const int moe_layers = target.n_layer - target.n_dense_lead;
  // Of the target's layers, that one of the draft's speaks for.
  const int together = (moe_layers + draft.n_layer - 1) / draft.n_layer + 1;
  const int outputs = together * target.n_expert;
  const auto row = static_cast<uint64_t>(draft.n_embd + outputs) * sizeof(float);
  const auto layers = static_cast<uint64_t>(layers_at_once);
  // Vectors that grow hold twice what is in them while they do.
  const uint64_t held = 2 * 2 * held_positions(positions) * row;
  const uint64_t logits = static_cast<uint64_t>(kCalibrationWindow) * static_cast<uint64_t>(outputs) * sizeof(float);
  const uint64_t results = static_cast<uint64_t>(moe_layers) * static_cast<uint64_t>(target.n_expert) *
                           static_cast<uint64_t>(draft.n_embd + 1) * (sizeof(float) + sizeof(uint16_t));
  return layers * (RidgeFit::bytes(draft.n_embd, outputs) + held + logits) +
         RidgeFit::solving_bytes(draft.n_embd, 3 * outputs) + kMostBlock * 2 * row + results;
}

int32_t calibration_window(const Engine& engine) { return std::min(kCalibrationWindow, engine.context()); }

Result<CalibrationResult> calibrate(Engine& engine, std::span<const std::vector<int32_t>> texts,
                                    const LoadProgress& progress) {
  CHECK(engine.calibration_layers() > 0 && engine.draft().model != nullptr);
  size_t positions = 0;
  for (const std::vector<int32_t>& text : texts) {
    CHECK(static_cast<int32_t>(text.size()) <= calibration_window(engine));
    positions += text.size();
  }
  if (positions < static_cast<size_t>(kLeastCalibrationPositions)) {
    return usage_error(fmt::format("{} tokens of text are too few to fit anything to: at least {} are needed",
                                   positions, kLeastCalibrationPositions));
  }
  return Calibrator(engine, texts, progress).run();
}

}  // namespace drafthorse
