#include "simulate/typical_text.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"
#include "predict/ranking.h"

namespace drafthorse {
namespace {

constexpr int kWrongTokens = 16;      // drafted after a wrong one and known; beyond, the text's own stand in
constexpr int kMostDrawn = 256;       // of a part of a prompt; they stand for all of it
constexpr int kScoredPositions = 24;  // of the prompt, where draft and target are compared: the engine's

// splitmix64, and Box and Muller's way from there: the same numbers with any library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  double uniform() {
    state_ += 0x9E3779B97F4A7C15ULL;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }
  double normal() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    const double angle = 2 * std::numbers::pi * uniform();
    spare_ = radius * std::sin(angle);
    has_spare_ = true;
    return radius * std::cos(angle);
  }

 private:
  uint64_t state_;
  double spare_ = 0;
  bool has_spare_ = false;
};

// What one token uses and what is said of it.
struct Token {
  std::vector<std::vector<ExpertId>> used;   // by layer
  std::vector<std::vector<ExpertId>> gate;   // by layer, ranked; none of the first
  std::vector<std::vector<ExpertId>> draft;  // the same of a draft that foresees
};

class Writer {
 public:
  Writer(const TracedModel& model, const TextStatistics& statistics, const TypicalText& text)
      : model_(model), statistics_(statistics), text_(text), random_(text.seed), luck_(~text.seed) {
    for (const TracedLayer& layer : model.layers) {
      auto& popular = popularity_.emplace_back();
      for (int e = 0; e < layer.experts; ++e) popular.push_back(statistics.skew * random_.normal());
    }
  }

  TracedText write() {
    TracedText out;
    write_prompt(out);
    int left = text_.generated_tokens;
    while (left > 0) left -= write_cycle(left, out);
    return out;
  }

 private:
  Token token(bool scored) {
    Token out;
    const auto k = static_cast<size_t>(model_.n_expert_used);
    for (size_t i = 0; i < popularity_.size(); ++i) {
      values_.clear();
      for (const double popular : popularity_[i]) values_.push_back(static_cast<float>(popular + random_.normal()));
      out.used.push_back(rank_experts(values_, k));
      if (!scored) continue;
      out.gate.push_back(i > 0 ? foreseen(statistics_.gate_noise) : std::vector<ExpertId>());
      out.draft.push_back(text_.foreseen ? foreseen(statistics_.draft_noise) : std::vector<ExpertId>());
    }
    return out;
  }

  std::vector<ExpertId> foreseen(double noise) {
    said_.clear();
    for (const float value : values_) said_.push_back(value + static_cast<float>(noise * random_.normal()));
    return rank_experts(said_, static_cast<size_t>(kRanksPerUsed * model_.n_expert_used));
  }

  void write_prompt(TracedText& out) {
    std::vector<Token> tokens;
    const int body = text_.prompt_tokens - 1;
    const int at_once = std::max(1, text_.prefill_tokens);
    for (int first = 0; first < body; first += at_once) {
      TracedPrompt& part = out.prompt.emplace_back();
      part.tokens = std::min(at_once, body - first);
      const int drawn = std::min(part.tokens, kMostDrawn);
      tokens.clear();
      for (int t = 0; t < drawn; ++t) tokens.push_back(token(false));
      for (size_t i = 0; i < popularity_.size(); ++i) {
        auto& uses = part.uses.emplace_back(popularity_[i].size());
        for (const Token& one : tokens) {
          for (const ExpertId expert : one.used[i]) ++uses[static_cast<size_t>(index(expert))];
        }
        for (int32_t& use : uses) use = static_cast<int32_t>(int64_t{use} * part.tokens / drawn);
      }
    }
    if (text_.drafted && !tokens.empty()) write_agreement(tokens, out);
  }

  void write_agreement(const std::vector<Token>& tokens, TracedText& out) {
    TracedAgreement& told = out.agreement.emplace();
    const size_t last = std::min<size_t>(tokens.size(), kScoredPositions);
    told.positions = static_cast<int>(last);
    told.agreed = static_cast<int>(std::lround(statistics_.acceptance * told.positions));
    const size_t most = std::min(tokens.size(), static_cast<size_t>(model_.max_window));
    std::vector<std::vector<char>> seen;
    for (const auto& popular : popularity_) seen.emplace_back(popular.size());
    double distinct = 0;
    for (size_t t = tokens.size() - most; t < tokens.size(); ++t) {
      for (size_t i = 0; i < seen.size(); ++i) {
        for (const ExpertId expert : tokens[t].used[i]) {
          char& known = seen[i][static_cast<size_t>(index(expert))];
          distinct += known == 0 ? 1 : 0;
          known = 1;
        }
      }
      told.distinct_by_window.push_back(distinct);
    }
  }

  // As deep as the draft stays right, and some wrong tokens: any other depth is cut from that. Tokens committed.
  int write_cycle(int left, TracedText& out) {
    TracedCycle& cycle = out.cycles.emplace_back();
    cycle.committed = 1;
    while (text_.drafted && cycle.committed < left && luck_.uniform() < statistics_.acceptance) ++cycle.committed;
    const bool wrong = text_.drafted && cycle.committed < left;
    cycle.tokens = cycle.committed + (wrong ? kWrongTokens : 0);
    cycle.depth = cycle.tokens - 1;
    cycle.used.resize(popularity_.size());
    cycle.times.resize(popularity_.size());
    for (int t = 0; t < cycle.tokens; ++t) add(token(true), t, cycle);
    return cycle.committed;
  }

  void add(const Token& token, int t, TracedCycle& cycle) const {
    for (size_t i = 0; i < popularity_.size(); ++i) {
      cycle.used[i].insert(cycle.used[i].end(), token.used[i].begin(), token.used[i].end());
      const LayerId layer{static_cast<int32_t>(i)};
      if (!token.draft[i].empty()) {
        const LayerId at{static_cast<int32_t>(i) * model_.draft_layers / static_cast<int32_t>(popularity_.size())};
        cycle.scores.push_back({ScoreSource::kDraftRouter, t, layer, at, token.draft[i]});
      }
      if (!token.gate[i].empty()) {
        const LayerId at{static_cast<int32_t>(i) - 1};
        cycle.scores.push_back({ScoreSource::kNextGate, t, layer, at, token.gate[i]});
      }
    }
  }

  const TracedModel& model_;
  const TextStatistics& statistics_;
  const TypicalText& text_;
  Random random_;
  Random luck_;
  std::vector<std::vector<double>> popularity_;  // by layer and expert, times the skew
  std::vector<float> values_;
  std::vector<float> said_;
};

}  // namespace

RoutingTrace typical_text(const TracedModel& model, const TextStatistics& statistics, const TypicalText& text) {
  CHECK(text.generated_tokens > 0 && (!text.drafted || model.draft_layers > 0));
  RoutingTrace out;
  out.model = model;
  out.texts.push_back(Writer(model, statistics, text).write());
  return out;
}

}  // namespace drafthorse
