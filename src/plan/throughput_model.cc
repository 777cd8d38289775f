#include "plan/throughput_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "plan/compute_time.h"

namespace drafthorse {
namespace {

// As in compute_time.cc: of ggml's share of a layer.
constexpr int kNodesPerLayer = 24;
constexpr int kPassesPerLayer = 8;

// Of a machine nobody has measured: a mid-range processor, weights of about a byte.
constexpr double kAssumedWeight_s = 5e-11;
constexpr double kAssumedWeightRow_s = 6e-12;
constexpr double kAssumedKeyFloat_s = 3e-10;
constexpr double kAssumedMemoryBytes_s = 2e10;

double used_in(double p, double tokens) { return 1 - std::pow(1 - p, tokens); }

const KernelProfile* find_kernel(const MachineProfile& machine, const std::string& type) {
  for (const KernelProfile& kernel : machine.kernels) {
    if (kernel.type == type) return &kernel;
  }
  return nullptr;
}

CostCurve matrix_cost(const std::vector<KernelRate>& rates, double weights) {
  std::vector<CostCurve::Point> points;
  for (const KernelRate& rate : rates) {
    if (!points.empty() && rate.tokens <= points.back().count) continue;  // a profile that somebody wrote
    points.push_back({static_cast<double>(rate.tokens), weights * rate.seconds_per_weight});
  }
  return CostCurve(std::move(points));
}

std::vector<double> popularity_of(const ModelWork& model, double skew) {
  for (const LayerWork& layer : model.layers) {
    if (layer.n_expert > 0) return expert_shares(layer.n_expert, model.n_expert_used, skew);
  }
  return {};
}

// of(matrix, routed): the curve of a matrix.
template <typename Of>
ModelCost sum_matrices(const ModelWork& model, const ModelCostOptions& options, const CostCurve& graph, const Of& of) {
  ModelCost cost;
  for (const LayerWork& work : model.layers) {
    LayerCost& layer = cost.layers.emplace_back();
    layer.dense = graph;
    for (const MatrixWork& matrix : work.dense) layer.dense = layer.dense.plus(of(matrix, false));
    for (const MatrixWork& matrix : work.expert) layer.expert = layer.expert.plus(of(matrix, true));
    layer.experts = work.n_expert;
  }
  cost.head = of(model.head, false);
  cost.popularity = popularity_of(model, options.skew);
  cost.expert_bytes = static_cast<double>(model.expert_bytes);
  return cost;
}

double kv_bytes_per_layer(const ModelWork& model, const ModelCostOptions& options) {
  return options.kv_bytes_per_key / static_cast<double>(std::max<size_t>(1, model.layers.size()));
}

}  // namespace

std::vector<double> expert_shares(int experts, int used, double skew) {
  CHECK(experts > 0 && used > 0 && used <= experts && skew >= 0);
  // Whose share exceeds 1 has 1, the others divide what is left.
  std::vector<double> shares(static_cast<size_t>(experts), 1.0);
  const auto shape = [&](int rank) { return std::exp(-skew * (rank + 0.5) / experts); };
  for (int always = 0; always < used; ++always) {
    double rest = 0;
    for (int i = always; i < experts; ++i) rest += shape(i);
    const double scale = (used - always) / rest;
    if (scale * shape(always) > 1) continue;
    for (int i = always; i < experts; ++i) shares[i] = scale * shape(i);
    return shares;
  }
  return shares;  // used == experts
}

double AttentionCost::seconds(double token_keys, double keys) const {
  return std::max(s_per_token_key * token_keys, s_per_key * keys);
}

int ModelCost::moe_layers() const {
  return static_cast<int>(
      std::count_if(layers.begin(), layers.end(), [](const LayerCost& l) { return l.experts > 0; }));
}

Result<ModelCost> model_cost(const MachineProfile& machine, const ModelWork& model, const ModelCostOptions& options) {
  const auto known = [&](const MatrixWork& matrix) -> Status {
    const KernelProfile* kernel = find_kernel(machine, matrix.type);
    if (kernel != nullptr && !kernel->linear.empty() && !kernel->experts.empty()) return {};
    return usage_error(
        fmt::format("the profile of this machine has no figures for weights of type {}; run "
                    "`drafthorse profile` again",
                    matrix.type));
  };
  for (const LayerWork& layer : model.layers) {
    for (const MatrixWork& matrix : layer.dense) RETURN_IF_ERROR(known(matrix));
    for (const MatrixWork& matrix : layer.expert) RETURN_IF_ERROR(known(matrix));
  }
  RETURN_IF_ERROR(known(model.head));
  const CostCurve graph = CostCurve::line(machine.node_overhead_s * kNodesPerLayer,
                                          machine.elementwise_s_per_float * kPassesPerLayer * model.n_embd);
  ModelCost cost = sum_matrices(model, options, graph, [&](const MatrixWork& matrix, bool routed) {
    const KernelProfile& kernel = *find_kernel(machine, matrix.type);
    return matrix_cost(routed ? kernel.experts : kernel.linear, matrix.weights);
  });
  cost.attention.s_per_token_key = machine.attention_s_per_key_float * model.attention_width;
  if (machine.ram_bytes_per_s > 0) {
    cost.attention.s_per_key = kv_bytes_per_layer(model, options) / machine.ram_bytes_per_s;
  }
  return cost;
}

ModelCost assumed_model_cost(const ModelWork& model, const ModelCostOptions& options) {
  ModelCost cost = sum_matrices(model, options, CostCurve(), [](const MatrixWork& matrix, bool) {
    return CostCurve::line(matrix.weights * kAssumedWeight_s, matrix.weights * kAssumedWeightRow_s);
  });
  cost.attention.s_per_token_key = kAssumedKeyFloat_s * model.attention_width;
  cost.attention.s_per_key = kv_bytes_per_layer(model, options) / kAssumedMemoryBytes_s;
  return cost;
}

PassWork window_work(double sequences, double window, double mean_keys) {
  PassWork work;
  work.tokens = sequences * window;
  // The window's j-th token sees what is cached and the j of the window up to itself.
  work.token_keys = work.tokens * (mean_keys + (window + 1) / 2);
  work.keys = sequences * (mean_keys + window);
  work.heads = work.tokens;
  return work;
}

PassWork prompt_work(double tokens, double prompt_length) {
  return {.tokens = tokens, .token_keys = tokens * (prompt_length + 1) / 2, .keys = tokens, .heads = 0};
}

PassWork operator+(const PassWork& a, const PassWork& b) {
  return {a.tokens + b.tokens, a.token_keys + b.token_keys, a.keys + b.keys, a.heads + b.heads};
}

namespace {

// of(layer): seconds of dense work and of experts. Most layers are like the one before.
template <typename Of>
PassSeconds sum_layers(const ModelCost& cost, const Of& of) {
  PassSeconds out;
  std::pair<double, double> seconds;
  for (size_t i = 0; i < cost.layers.size(); ++i) {
    if (i == 0 || !(cost.layers[i] == cost.layers[i - 1])) seconds = of(cost.layers[i]);
    out.dense += seconds.first;
    out.experts += seconds.second;
  }
  return out;
}

}  // namespace

PassSeconds pass_seconds(const ModelCost& cost, const PassWork& work) {
  const ExpertRows rows(cost.popularity, work.tokens);
  PassSeconds out = sum_layers(cost, [&](const LayerCost& layer) {
    return std::pair(layer.dense.at(work.tokens), layer.experts > 0 ? rows.seconds(layer.expert) : 0);
  });
  out.attention = static_cast<double>(cost.layers.size()) * cost.attention.seconds(work.token_keys, work.keys);
  out.head = cost.head.at(work.heads);
  return out;
}

PassSeconds weight_seconds(const ModelCost& cost, const PassWork& work) {
  if (work.tokens <= 0) return {};
  const double used = experts_used(cost.popularity, work.tokens);
  PassSeconds out = sum_layers(cost, [&](const LayerCost& layer) {
    return std::pair(layer.dense.base(), layer.experts > 0 ? used * layer.expert.base() : 0);
  });
  if (work.heads > 0) out.head = cost.head.base();
  return out;
}

double experts_used(const std::vector<double>& popularity, double tokens) {
  double total = 0;
  for (const double p : popularity) total += used_in(p, tokens);
  return total;
}

ExpertLoads expert_loads(const std::vector<double>& popularity, double tokens, double resident) {
  constexpr double kNearlySure = 1 - 1e-12;
  constexpr int kMostSteps = 100;
  constexpr double kClose = 1e-12;  // of the residents
  ExpertLoads out;
  if (tokens <= 0) return out;
  // An expert is unused in x passes with probability exp(-x rate). So many passes back are kept that
  //     sum of 1 - exp(-passes rate) = resident.
  std::vector<double> rates;
  for (const double p : popularity) {
    if (p > 0) rates.push_back(-tokens * std::log1p(-std::min(p, kNearlySure)));
  }
  if (resident >= static_cast<double>(rates.size())) return out;
  double passes = 0;
  // The sum is concave: Newton's steps approach from below.
  for (int step = 0; step < kMostSteps && resident > 0; ++step) {
    double kept = 0;
    double slope = 0;
    for (const double rate : rates) {
      const double unused = std::exp(-passes * rate);
      kept += 1 - unused;
      slope += rate * unused;
    }
    if (resident - kept <= kClose * resident || slope <= 0) break;
    passes += (resident - kept) / slope;
  }
  for (const double rate : rates) {
    const double used = -std::expm1(-rate);
    const double loaded = std::exp(-passes * rate) * used;
    out.all += loaded;
    out.variance += loaded * (1 - used);
    if (used >= kForeseenUse) out.foreseen += loaded;
  }
  return out;
}

double experts_loaded(const std::vector<double>& popularity, double tokens, double resident) {
  return expert_loads(popularity, tokens, resident).all;
}

ExpertRows::ExpertRows(const std::vector<double>& popularity, double tokens) {
  constexpr double kManyRows = 16;  // the spread of more hardly counts
  constexpr double kRest = 1e-6;    // of probability, left out
  for (const double p : popularity) {
    const double used = used_in(p, tokens);
    if (used <= 0) continue;
    const double mean = p * tokens / used;
    if (p >= 1 || mean > kManyRows) {
      many_.emplace_back(mean, used);
      continue;
    }
    // Binomial by recurrence; of a number of tokens that is none, as far as it goes.
    std::vector<double> chances;
    double chance = std::pow(1 - p, tokens);
    double sum = 0;
    for (int rows = 1; rows < tokens + 1; ++rows) {
      sum += chance *= (tokens - rows + 1) / rows * p / (1 - p);
      chances.push_back(chance);
      if (rows > mean && chance < kRest * sum) break;
    }
    if (sum <= 0) {
      many_.emplace_back(mean, used);
      continue;
    }
    if (experts_.size() < chances.size()) experts_.resize(chances.size());
    for (size_t i = 0; i < chances.size(); ++i) experts_[i] += used * chances[i] / sum;
  }
}

double ExpertRows::seconds(const CostCurve& expert) const {
  double total = 0;
  for (size_t i = 0; i < experts_.size(); ++i) total += experts_[i] * expert.at(static_cast<double>(i + 1));
  for (const auto& [rows, used] : many_) total += used * expert.at(rows);
  return total;
}

bool streaming_pays(double sequences, double window, int n_expert, int n_expert_used, double miss_rate) {
  return sequences * window * n_expert_used * miss_rate >= n_expert;
}

}  // namespace drafthorse
