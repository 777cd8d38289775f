// Other people's machines and models, for replays: GPUs that hold slots in their memory and read experts over PCIe,
// the three pairs of models of SP-MoE (2510.10302), and the times that paper gives for them.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "simulate/compute_cost.h"
#include "simulate/stretch.h"

namespace drafthorse {

struct Hardware {
  std::string name;
  uint64_t memory_bytes = 0;
  double memory_bytes_per_s = 0;
  double flops = 0;  // FP16 matrix products, dense
  double link_bytes_per_s = 0;
  int64_t link_latency_ns = 0;
};

// Memory of a GPU that neither weights nor slots have: its driver, KV cache, activations.
inline constexpr uint64_t kGpuReserveBytes = uint64_t{3} << 29;  // 1.5 GiB

const std::vector<Hardware>& hardware_presets();       // rtx3090, rtx4090, a100
const std::vector<ModelShape>& model_shapes();         // mixtral-8x7b, phi-3.5-moe, deepseek-v2-lite
const Hardware* find_hardware(std::string_view name);  // nullptr for an unknown name
const ModelShape* find_model_shape(std::string_view name);

// Weights once through the GPU's memory for each pass, products at its peak: what code written for it comes near.
ComputeCost roofline(const Hardware& hardware, const TracedModel& model);

// Seconds per output token in the paper's figure of HumanEval (read off it, +-3 %); nothing where it has none.
// policy: on-demand (its Mixtral-Offloading), adapmoe, moe-infinity or sp-moe.
std::optional<double> paper_tpot(std::string_view hardware, std::string_view model, std::string_view policy);
// Share of demanded experts that were there, as it states them.
std::optional<double> paper_hit_rate(std::string_view model, std::string_view policy);

// The paper's own software: it drafts one token for 16 % of the time that on-demand loading takes for a cycle, loads
// for 69 %, and computes for the rest. Nothing for a pair it does not have.
std::optional<ComputeCost> paper_cost(std::string_view hardware, const ModelShape& shape, double tokens_per_cycle);

}  // namespace drafthorse
