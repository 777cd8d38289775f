// Made-up recorded runs, for tests.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "schedule/routing_trace.h"

namespace drafthorse {

inline TracedModel small_model(int layers, int experts, int used, int slots, bool drafted) {
  TracedModel model;
  model.target = "target";
  model.draft = drafted ? "draft" : "";
  model.layers.assign(static_cast<size_t>(layers), {experts, {uint64_t{1} << 20}});
  model.n_expert_used = used;
  model.draft_layers = drafted ? layers : 0;
  model.max_window = 64;
  model.slots = slots;
  model.policy = "on-demand";
  model.predictor = "none";
  model.prefetch = "none";
  model.eviction = "lru";
  return model;
}

// used[layer][token] of a model that uses one expert per token.
inline TracedCycle cycle_of(const std::vector<std::vector<int>>& used, int committed) {
  TracedCycle cycle;
  cycle.tokens = static_cast<int>(used.front().size());
  cycle.depth = cycle.tokens - 1;
  cycle.committed = committed;
  for (const auto& layer : used) {
    auto& out = cycle.used.emplace_back();
    for (const int expert : layer) out.push_back(ExpertId{expert});
  }
  cycle.times.resize(used.size());
  return cycle;
}

// A text whose tokens keep to some experts, with a draft that is right with probability `agreement` and whose scores
// are right with probability `accuracy`, drafted to `depth`. The text does not depend on the depth.
class RandomText {
 public:
  RandomText(const TracedModel& model, int tokens, double agreement, double accuracy, uint64_t seed)
      : model_(model), accuracy_(accuracy) {
    std::mt19937_64 random(seed);
    for (int t = 0; t < tokens; ++t) {
      text_.push_back(token(random));
      agrees_.push_back(draw(random) < agreement);
      auto& wrong = wrong_.emplace_back();
      for (int w = 0; w < 16; ++w) wrong.push_back(token(random));
    }
  }

  TracedText at_depth(int depth) const {
    TracedText text;
    text.prompt.push_back({1, {}});
    for (const TracedLayer& layer : model_.layers) {
      auto& uses = text.prompt.back().uses.emplace_back(static_cast<size_t>(layer.experts));
      for (int k = 0; k < model_.n_expert_used; ++k) uses[static_cast<size_t>(k)] = 1;
    }
    const auto positions = static_cast<int>(text_.size());
    for (int at = 0; at < positions;) {
      const int deep = std::min(depth, positions - at - 1);
      std::vector<const Token*> window = {&text_[static_cast<size_t>(at)]};
      int right = 0;
      while (right < deep && agrees_[static_cast<size_t>(at + right)]) {
        ++right;
        window.push_back(&text_[static_cast<size_t>(at + right)]);
      }
      for (int w = 0; static_cast<int>(window.size()) < deep + 1; ++w) {
        window.push_back(&wrong_[static_cast<size_t>(at + right)][static_cast<size_t>(w)]);
      }
      text.cycles.push_back(cycle(window, deep, right + 1));
      at += right + 1;
    }
    return text;
  }

 private:
  struct Token {
    std::vector<std::vector<ExpertId>> used;    // by layer
    std::vector<std::vector<ExpertId>> ranked;  // by layer: what the draft says
  };

  static double draw(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

  Token token(std::mt19937_64& random) const {
    Token out;
    for (const TracedLayer& layer : model_.layers) {
      std::vector<ExpertId> order;
      for (int e = 0; e < layer.experts; ++e) order.push_back(ExpertId{e});
      for (size_t i = order.size() - 1; i > 0; --i) {
        const auto j = static_cast<size_t>(draw(random) * static_cast<double>(i + 1));
        std::swap(order[i], order[j]);
      }
      std::reverse(order.begin(), order.end());
      // Some experts are used more often than others.
      if (draw(random) < 0.3) std::stable_sort(order.begin(), order.end());
      const auto k = static_cast<size_t>(model_.n_expert_used);
      auto& used = out.used.emplace_back(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k));
      std::sort(used.begin(), used.end());
      if (draw(random) >= accuracy_) std::reverse(order.begin(), order.end());
      order.resize(std::min(order.size(), 4 * k));
      out.ranked.push_back(order);
    }
    return out;
  }

  TracedCycle cycle(const std::vector<const Token*>& window, int depth, int committed) const {
    TracedCycle out;
    out.depth = depth;
    out.tokens = static_cast<int>(window.size());
    out.committed = committed;
    out.times.resize(model_.layers.size());
    for (size_t layer = 0; layer < model_.layers.size(); ++layer) {
      auto& used = out.used.emplace_back();
      for (const Token* token : window) {
        used.insert(used.end(), token->used[layer].begin(), token->used[layer].end());
      }
    }
    for (int t = 0; t + 1 < out.tokens; ++t) {
      for (size_t layer = 0; layer < model_.layers.size(); ++layer) {
        const LayerId id{static_cast<int32_t>(layer)};
        out.scores.push_back({ScoreSource::kCrossModel, t, id, id, window[static_cast<size_t>(t)]->ranked[layer]});
      }
    }
    return out;
  }

  TracedModel model_;
  double accuracy_;
  std::vector<Token> text_;
  std::vector<char> agrees_;
  std::vector<std::vector<Token>> wrong_;
};

}  // namespace drafthorse
