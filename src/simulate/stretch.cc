#include "simulate/stretch.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "predict/ranking.h"

namespace drafthorse {
namespace {

// One recorded layer's part in a stretched one.
struct Bank {
  int source = 0;  // recorded layer
  int first = 0;   // its experts' ids begin here
  int experts = 0;
  int used = 0;  // by a token
};

struct Plan {
  const TracedModel* recorded = nullptr;
  std::vector<std::vector<Bank>> layers;  // by stretched layer
  std::vector<int> layer_of;              // recorded layers with experts
};

// `used` distinct experts of the bank out of those that a token used of its source.
void map_used(const Bank& bank, std::span<const ExpertId> recorded, std::vector<ExpertId>& out) {
  std::vector<char> taken(static_cast<size_t>(bank.experts));
  int count = 0;
  const auto take = [&](int expert) {
    while (taken[static_cast<size_t>(expert)] != 0) expert = (expert + 1) % bank.experts;
    taken[static_cast<size_t>(expert)] = 1;
    ++count;
  };
  for (size_t i = 0; count < bank.used; ++i) take(index(recorded[i % recorded.size()]) % bank.experts);
  for (int e = 0; e < bank.experts; ++e) {
    if (taken[static_cast<size_t>(e)] != 0) out.push_back(ExpertId{bank.first + e});
  }
}

// The banks' rankings dealt out in turn, each bank's share of what a token uses first.
std::vector<ExpertId> map_ranked(const std::vector<Bank>& banks,
                                 const std::vector<const std::vector<ExpertId>*>& recorded, size_t most) {
  std::vector<std::vector<ExpertId>> by_bank(banks.size());
  for (size_t b = 0; b < banks.size(); ++b) {
    std::vector<char> taken(static_cast<size_t>(banks[b].experts));
    for (const ExpertId expert : *recorded[b]) {
      const int e = index(expert) % banks[b].experts;
      if (taken[static_cast<size_t>(e)] != 0) continue;
      taken[static_cast<size_t>(e)] = 1;
      by_bank[b].push_back(ExpertId{banks[b].first + e});
    }
  }
  std::vector<ExpertId> out;
  for (int round = 0; out.size() < most; ++round) {
    bool any = false;
    for (size_t b = 0; b < banks.size(); ++b) {
      const auto share = static_cast<size_t>(banks[b].used);
      for (size_t r = static_cast<size_t>(round) * share; r < (static_cast<size_t>(round) + 1) * share; ++r) {
        if (r >= by_bank[b].size()) break;
        out.push_back(by_bank[b][r]);
        any = true;
      }
    }
    if (!any) break;
  }
  out.resize(std::min(out.size(), most));
  return out;
}

TracedPrompt map_prompt(const Plan& plan, const TracedPrompt& prompt) {
  TracedPrompt out{prompt.tokens, {}};
  for (const std::vector<Bank>& banks : plan.layers) {
    auto& uses = out.uses.emplace_back();
    for (const Bank& bank : banks) {
      const size_t first = uses.size();
      uses.resize(first + static_cast<size_t>(bank.experts));
      const auto& recorded = prompt.uses[static_cast<size_t>(bank.source)];
      for (size_t e = 0; e < recorded.size(); ++e) {
        int32_t& to = uses[first + e % static_cast<size_t>(bank.experts)];
        to = std::min(prompt.tokens, to + recorded[e]);
      }
    }
  }
  return out;
}

TracedCycle map_cycle(const Plan& plan, const TracedCycle& cycle, const ModelShape& shape) {
  TracedCycle out;
  out.depth = cycle.depth;
  out.tokens = cycle.tokens;
  out.committed = cycle.committed;
  const auto k = static_cast<size_t>(plan.recorded->n_expert_used);
  for (const std::vector<Bank>& banks : plan.layers) {
    auto& used = out.used.emplace_back();
    for (int t = 0; t < cycle.tokens; ++t) {
      for (const Bank& bank : banks) {
        const std::vector<ExpertId>& recorded = cycle.used[static_cast<size_t>(bank.source)];
        map_used(bank, std::span(recorded).subspan(static_cast<size_t>(t) * k, k), used);
      }
    }
  }
  out.times.resize(plan.layers.size());
  const auto most = static_cast<size_t>(kRanksPerUsed * shape.n_expert_used);
  const int recorded_draft = std::max(1, plan.recorded->draft_layers);
  for (int t = 0; t < cycle.tokens; ++t) {
    for (int s = 0; s < kScoreSources; ++s) {
      const auto source = static_cast<ScoreSource>(s);
      std::vector<const TracedScore*> of_layer(plan.recorded->layers.size());
      for (const TracedScore& score : cycle.scores) {
        if (score.token == t && score.source == source) of_layer[static_cast<size_t>(index(score.layer))] = &score;
      }
      for (size_t layer = 0; layer < plan.layers.size(); ++layer) {
        std::vector<const std::vector<ExpertId>*> ranked;
        const TracedScore* any = nullptr;
        for (const Bank& bank : plan.layers[layer]) {
          // No gate speaks of the first layer: its bank is one that nothing is predicted of.
          static const std::vector<ExpertId> nothing;
          const TracedScore* const score = of_layer[static_cast<size_t>(bank.source)];
          if (score != nullptr) any = score;
          ranked.push_back(score != nullptr ? &score->ranked : &nothing);
        }
        if (any == nullptr) continue;
        int at = static_cast<int>(layer) - 1;
        if (source == ScoreSource::kNextGate) {
          if (at < 0) continue;
        } else {
          at = index(any->at) * shape.draft_layers / recorded_draft;
          // Copies of a layer stand at different depths of the draft.
          at = std::max(at, static_cast<int>(layer) * shape.draft_layers / static_cast<int>(plan.layers.size()));
        }
        out.scores.push_back({source, t, LayerId{static_cast<int32_t>(layer)}, LayerId{at},
                              map_ranked(plan.layers[layer], ranked, most)});
      }
    }
  }
  return out;
}

Result<Plan> make_plan(const TracedModel& model, const ModelShape& shape) {
  Plan plan{&model, {}, {}};
  int experts = 0;
  for (size_t layer = 0; layer < model.layers.size(); ++layer) {
    if (model.layers[layer].experts == 0) continue;
    plan.layer_of.push_back(static_cast<int>(layer));
    experts = std::max(experts, model.layers[layer].experts);
    if (model.layers[layer].experts != model.layers[static_cast<size_t>(plan.layer_of.front())].experts) {
      return usage_error("a trace whose layers differ in their number of experts cannot be stretched");
    }
  }
  const int banks = (shape.experts + experts - 1) / experts;
  const int least = shape.experts / banks;
  const int most_used = (shape.n_expert_used + banks - 1) / banks;
  if (most_used > least || shape.experts % banks != 0) {
    return usage_error(fmt::format("a trace of {} experts cannot be stretched to {} of {} experts per token", experts,
                                   shape.n_expert_used, shape.experts));
  }
  const auto recorded = static_cast<int>(plan.layer_of.size());
  for (int layer = 0; layer < shape.layers; ++layer) {
    auto& of_layer = plan.layers.emplace_back();
    for (int b = 0; b < banks; ++b) {
      const int source = (layer * recorded / shape.layers + b) % recorded;
      const int used = shape.n_expert_used / banks + (b < shape.n_expert_used % banks ? 1 : 0);
      of_layer.push_back({plan.layer_of[static_cast<size_t>(source)], b * least, least, used});
    }
  }
  return plan;
}

}  // namespace

Result<RoutingTrace> stretch(const RoutingTrace& trace, const ModelShape& shape) {
  ASSIGN_OR_RETURN(const Plan plan, make_plan(trace.model, shape));
  RoutingTrace out;
  out.model = trace.model;
  out.model.layers.assign(static_cast<size_t>(shape.layers), {shape.experts, {shape.expert_bytes}});
  out.model.n_expert_used = shape.n_expert_used;
  out.model.draft_layers = trace.model.draft.empty() ? 0 : shape.draft_layers;
  out.model.dense_bytes = shape.dense_bytes;
  out.model.draft_token_bytes = shape.draft_token_bytes;
  out.model.other_bytes = shape.dense_bytes + (trace.model.draft.empty() ? 0 : shape.draft_bytes);
  out.model.load_bytes_per_s = 0;
  const double growth = static_cast<double>(shape.layers) / static_cast<double>(plan.layer_of.size());
  for (const TracedText& text : trace.texts) {
    TracedText& to = out.texts.emplace_back();
    for (const TracedPrompt& prompt : text.prompt) to.prompt.push_back(map_prompt(plan, prompt));
    to.agreement = text.agreement;
    if (to.agreement) {
      for (double& distinct : to.agreement->distinct_by_window) distinct *= growth;
    }
    for (const TracedCycle& cycle : text.cycles) to.cycles.push_back(map_cycle(plan, cycle, shape));
  }
  return out;
}

}  // namespace drafthorse
