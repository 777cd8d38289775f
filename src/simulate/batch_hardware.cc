#include "simulate/batch_hardware.h"

#include <algorithm>

#include "base/units.h"

namespace drafthorse {
namespace {

constexpr double kBytes = 2;  // of a weight or a number of the KV cache
constexpr double kMultiplyAdd = 2;
constexpr int kDraftRounds = 12;
constexpr uint64_t kDeviceReserveBytes = uint64_t{3} << 29;  // driver, streams

double attention_weights(const BatchModelShape& shape) {
  const double inner = static_cast<double>(shape.heads) * shape.head_dim;
  const double kv = static_cast<double>(shape.kv_heads) * shape.head_dim;
  return shape.width * (2 * inner + 2 * kv);
}
double ffn_weights(const BatchModelShape& shape) { return 3.0 * shape.width * shape.ffn; }
double head_weights(const BatchModelShape& shape) { return static_cast<double>(shape.width) * shape.vocabulary; }
double extra_weights(const BatchModelShape& shape) {
  return static_cast<double>(shape.extra_inputs) * shape.width * shape.width;
}
double dense_layer_weights(const BatchModelShape& shape) {
  return attention_weights(shape) + (shape.experts > 0 ? 0 : ffn_weights(shape));
}

struct Unit {
  double bytes_per_s = 0;
  double flops = 0;
};

CostCurve matrix_cost(double weights, const Unit& unit) {
  return CostCurve::roofline(weights * kBytes / unit.bytes_per_s, weights * kMultiplyAdd / unit.flops);
}

// Scores and sums over a KV row: two multiply-adds for each number of a query.
AttentionCost attention_cost(const BatchModelShape& shape, const Unit& unit) {
  const double query = static_cast<double>(shape.heads) * shape.head_dim;
  return {2 * kMultiplyAdd * query / unit.flops,
          static_cast<double>(kv_bytes_per_token(shape)) / shape.layers / unit.bytes_per_s};
}

ModelCost model_cost_on(const BatchModelShape& shape, const Unit& unit, const Unit& attention) {
  ModelCost cost;
  const LayerCost layer = {matrix_cost(dense_layer_weights(shape), unit),
                           shape.experts > 0 ? matrix_cost(ffn_weights(shape), unit) : CostCurve(), shape.experts};
  cost.layers.assign(static_cast<size_t>(shape.layers), layer);
  if (shape.extra_inputs > 0) {
    cost.layers[0].dense = cost.layers[0].dense.plus(matrix_cost(extra_weights(shape), unit));
  }
  cost.attention = attention_cost(shape, attention);
  cost.head = matrix_cost(head_weights(shape), unit);
  // Thousands of tokens use all experts, evenly enough.
  if (shape.experts > 0) cost.popularity = expert_shares(shape.experts, shape.experts_used, 0);
  cost.expert_bytes = ffn_weights(shape) * kBytes;
  return cost;
}

}  // namespace

const std::vector<BatchHardware>& batch_hardware() {
  static const std::vector<BatchHardware> all = {
      {"a30", 24 * kGiB, 933e9, 165e12, 25e9, 250 * kGiB, 357e9, 2.43e12},
      {"rtx4090d", 24 * kGiB, 1008e9, 83e12, 23e9, 190 * kGiB, 197e9, 1.45e12},
  };
  return all;
}

const BatchHardware* find_batch_hardware(std::string_view name) {
  for (const BatchHardware& one : batch_hardware()) {
    if (one.name == name) return &one;
  }
  return nullptr;
}

BatchModelShape mixtral_8x7b() { return {"mixtral-8x7b", 32, 4096, 14336, 32, 8, 128, 8, 2, 32000, 0}; }
BatchModelShape eagle_for_mixtral() { return {"eagle", 1, 4096, 14336, 32, 8, 128, 0, 0, 32000, 2}; }
BatchModelShape mistral_7b() { return {"mistral-7b", 32, 4096, 14336, 32, 8, 128, 0, 0, 32000, 0}; }

uint64_t weight_bytes(const BatchModelShape& shape) {
  double weights = shape.layers * dense_layer_weights(shape) + extra_weights(shape);
  if (shape.experts > 0) weights += static_cast<double>(shape.layers) * shape.experts * ffn_weights(shape);
  // Embedding and head; a drafter on the target's states has neither of its own.
  if (shape.extra_inputs == 0) weights += 2 * head_weights(shape);
  return static_cast<uint64_t>(weights * kBytes);
}

uint64_t kv_bytes_per_token(const BatchModelShape& shape) {
  return static_cast<uint64_t>(2 * kBytes * shape.kv_heads * shape.head_dim * shape.layers);
}

BatchPlanInput batch_plan_input(const BatchHardware& hardware, const BatchModelShape& target,
                                const BatchModelShape& draft, const BatchStack& stack, const BatchJob& job) {
  const Unit device = {hardware.device_bytes_per_s * stack.device, hardware.device_flops * stack.device};
  const Unit processor = {hardware.processor_bytes_per_s * stack.processor, hardware.processor_flops * stack.processor};
  BatchPlanInput input;
  input.target = model_cost_on(target, device, processor);
  const Unit drafting = {device.bytes_per_s / stack.draft_factor, device.flops / stack.draft_factor};
  input.draft = DraftCost{model_cost_on(draft, drafting, drafting), attention_cost(draft, processor)};
  input.platform.link_bytes_per_s = hardware.link_bytes_per_s * stack.link;
  input.platform.device = true;
  const double inner = static_cast<double>(target.heads) * target.head_dim;
  const double kv = static_cast<double>(target.kv_heads) * target.head_dim;
  input.platform.activation_bytes_out = (inner + 2 * kv) * kBytes;
  input.platform.activation_bytes_in = inner * kBytes;
  // Queries, keys and values before; the output's projection after.
  input.platform.pre_attention_share = (inner + 2 * kv) / (2 * inner + 2 * kv);

  input.platform.prompt_attention = attention_cost(target, device);

  input.memory.budget_bytes = hardware.ram_bytes;
  input.memory.fixed_bytes = weight_bytes(target) + kPaperReserveBytes;
  input.memory.kv_bytes_per_token = kv_bytes_per_token(target);
  const double experts = static_cast<double>(target.layers) * target.experts * input.target.expert_bytes;
  DeviceMemory memory;
  memory.bytes = hardware.device_bytes;
  memory.fixed_bytes = weight_bytes(target) - static_cast<uint64_t>(experts) + weight_bytes(draft) +
                       static_cast<uint64_t>(2 * target.experts * input.target.expert_bytes) + kDeviceReserveBytes;
  // Residual, queries, keys and values, and of each expert used input, gate, up and output.
  memory.token_bytes = static_cast<uint64_t>(
      kBytes * (target.width + inner + 2 * kv + target.experts_used * 2.0 * (target.width + target.ffn)));
  memory.draft_kv_bytes_per_token = kv_bytes_per_token(draft);
  input.device = memory;
  input.job = job;
  input.other_s_per_token = stack.other_s_per_token;
  return input;
}

BatchStack paper_stack() {
  const PaperIteration paper;
  const auto iteration = [](const BatchStack& stack, int64_t& sequences) {
    const BatchPlanInput input =
        batch_plan_input(*find_batch_hardware("a30"), mixtral_8x7b(), eagle_for_mixtral(), stack, kPaperIterationJob);
    sequences = sequences_that_fit(input.memory, kPaperIterationJob, kPaperIterationDepth + 1);
    return evaluate(input, Pipeline::kTwoMicroBatches, sequences, kPaperIterationDepth).decode;
  };
  int64_t sequences = 0;
  const SecondsByComponent busy = iteration({}, sequences).busy;
  const auto of = [&](Component component) { return busy[static_cast<size_t>(component)]; };
  BatchStack stack;
  // Its "GPU MoE" is taken to be all that the device does for the target.
  stack.device = (of(Component::kExperts) + of(Component::kDense)) / paper.experts_s;
  stack.link = of(Component::kLoad) / paper.link_s;
  stack.processor = of(Component::kAttention) / paper.attention_s;
  stack.other_s_per_token = paper.other_s / (static_cast<double>(sequences) * (kPaperIterationDepth + 1));
  // Device and processor share the draft by their speeds, so that its time is found by trying.
  for (int round = 0; round < kDraftRounds; ++round) {
    const IterationPrediction now = iteration(stack, sequences);
    stack.draft_factor *= paper.draft_s / (now.seconds - now.target_s - paper.other_s);
  }
  return stack;
}

std::optional<double> paper_speculation_gain(std::string_view hardware) {
  if (hardware == "a30") return 1.53;
  if (hardware == "rtx4090d") return 1.45;
  return std::nullopt;
}

}  // namespace drafthorse
