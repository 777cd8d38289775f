#include "simulate/hardware.h"

#include <algorithm>
#include <array>

#include "base/units.h"

namespace drafthorse {
namespace {

constexpr double kPcie4 = 24e9;  // x16, as the paper has it
constexpr int64_t kCopyLatencyNs = 20'000;

struct PaperRow {
  std::string_view hardware;
  std::string_view model;
  std::array<double, 4> tpot;  // by kPaperPolicies
};
constexpr std::array<std::string_view, 4> kPaperPolicies = {"on-demand", "adapmoe", "moe-infinity", "sp-moe"};
constexpr PaperRow kPaperTpot[] = {
    {"rtx3090", "mixtral-8x7b", {1.45, .95, 1.03, .83}},   {"rtx4090", "mixtral-8x7b", {1.43, .91, 1.11, .77}},
    {"a100", "mixtral-8x7b", {1.21, .75, .96, .68}},       {"rtx3090", "phi-3.5-moe", {.50, .34, .74, .34}},
    {"rtx4090", "phi-3.5-moe", {.50, .36, .89, .30}},      {"a100", "phi-3.5-moe", {.33, .24, .65, .21}},
    {"rtx3090", "deepseek-v2-lite", {.31, .26, .53, .23}}, {"rtx4090", "deepseek-v2-lite", {.30, .23, .57, .21}},
    {"a100", "deepseek-v2-lite", {.24, .20, .36, .17}},
};
constexpr PaperRow kPaperHits[] = {
    {"", "mixtral-8x7b", {.150, .421, .159, .209}},
    {"", "phi-3.5-moe", {.276, .494, .147, .427}},
    {"", "deepseek-v2-lite", {.177, .219, .167, .401}},
};

std::optional<size_t> paper_policy(std::string_view policy) {
  for (size_t i = 0; i < kPaperPolicies.size(); ++i) {
    if (kPaperPolicies[i] == policy) return i;
  }
  return std::nullopt;
}

// Of parameters at 16 bits.
constexpr uint64_t fp16(double billions) { return static_cast<uint64_t>(billions * 2e9); }

}  // namespace

const std::vector<Hardware>& hardware_presets() {
  static const std::vector<Hardware> presets = {
      {"rtx3090", 24 * kGiB, 936e9, 71e12, kPcie4, kCopyLatencyNs},
      {"rtx4090", 24 * kGiB, 1008e9, 165e12, kPcie4, kCopyLatencyNs},
      {"a100", 40 * kGiB, 1555e9, 312e12, kPcie4, kCopyLatencyNs},
  };
  return presets;
}

const std::vector<ModelShape>& model_shapes() {
  // The target's experts are 3 matrices of width x FFN; dense is what its parameters leave beside them.
  static const std::vector<ModelShape> shapes = {
      // Mistral-7B drafts: dense, all of it read for a token.
      {"mixtral-8x7b", 32, 8, 2, fp16(3 * 4096 * 14336 * 1e-9), fp16(1.60), 32, fp16(7.24), fp16(7.24)},
      // Phi-mini-MoE drafts: 7.6e9 parameters, of which a token uses 2.4e9.
      {"phi-3.5-moe", 32, 16, 2, fp16(3 * 4096 * 6400 * 1e-9), fp16(1.61), 32, fp16(7.6), fp16(2.4)},
      // Its own AWQ copy drafts: about 4.4 bits a weight.
      {"deepseek-v2-lite", 26, 64, 6, fp16(3 * 2048 * 1408 * 1e-9), fp16(1.31), 26, fp16(15.7) * 11 / 40,
       fp16(2.4) * 11 / 40},
  };
  return shapes;
}

const Hardware* find_hardware(std::string_view name) {
  for (const Hardware& one : hardware_presets()) {
    if (one.name == name) return &one;
  }
  return nullptr;
}

const ModelShape* find_model_shape(std::string_view name) {
  for (const ModelShape& one : model_shapes()) {
    if (one.name == name) return &one;
  }
  return nullptr;
}

ComputeCost roofline(const Hardware& hardware, const TracedModel& model) {
  int layers = 0;
  for (const TracedLayer& layer : model.layers) layers += layer.experts > 0 ? 1 : 0;
  ComputeCost cost;
  const auto read_s = [&](double bytes) { return bytes / hardware.memory_bytes_per_s; };
  // Two operations per weight; at 16 bits that is one per byte.
  const auto multiply_s = [&](double bytes) { return bytes / hardware.flops; };
  const double dense = static_cast<double>(model.dense_bytes) / std::max(1, layers);
  const auto expert = static_cast<double>(model.slot_bytes());
  cost.draft_token_s = read_s(static_cast<double>(model.draft_token_bytes));
  cost.stage_s = read_s(dense);
  cost.stage_token_s = multiply_s(dense);
  cost.expert_s = read_s(expert);
  cost.expert_row_s = multiply_s(expert);
  return cost;
}

std::optional<double> paper_tpot(std::string_view hardware, std::string_view model, std::string_view policy) {
  const std::optional<size_t> column = paper_policy(policy);
  if (!column) return std::nullopt;
  for (const PaperRow& row : kPaperTpot) {
    if (row.hardware == hardware && row.model == model) return row.tpot[*column];
  }
  return std::nullopt;
}

std::optional<double> paper_hit_rate(std::string_view model, std::string_view policy) {
  const std::optional<size_t> column = paper_policy(policy);
  if (!column) return std::nullopt;
  for (const PaperRow& row : kPaperHits) {
    if (row.model == model) return row.tpot[*column];
  }
  return std::nullopt;
}

std::optional<ComputeCost> paper_cost(std::string_view hardware, const ModelShape& shape, double tokens_per_cycle) {
  const std::optional<double> tpot = paper_tpot(hardware, shape.name, "on-demand");
  if (!tpot) return std::nullopt;
  constexpr double kDraftShare = 0.16;
  constexpr double kLoadShare = 0.69;
  const double cycle = *tpot * tokens_per_cycle;
  ComputeCost cost;
  cost.draft_token_s = kDraftShare * cycle;
  // Launches more than products, so the number of tokens does not show in it.
  cost.stage_s = (1 - kDraftShare - kLoadShare) * cycle / shape.layers;
  return cost;
}

}  // namespace drafthorse
