#include "plan/compute_time.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace drafthorse {
namespace {

constexpr int kNodesPerLayer = 24;
constexpr int kPassesPerLayer = 8;  // of norms, additions and rotations over a token's floats

}  // namespace

int ModelWork::moe_layers() const {
  return static_cast<int>(
      std::count_if(layers.begin(), layers.end(), [](const LayerWork& layer) { return layer.n_expert > 0; }));
}

const KernelProfile* ComputeTime::find(const std::string& type) const {
  for (const KernelProfile& kernel : machine_.kernels) {
    if (kernel.type == type) return &kernel;
  }
  return nullptr;
}

Status ComputeTime::known(const std::string& type) const {
  if (find(type) != nullptr) return {};
  return usage_error(fmt::format(
      "the profile of this machine has no figures for weights of type {}; run `drafthorse profile` again", type));
}

Status ComputeTime::check() const {
  for (const LayerWork& layer : model_.layers) {
    for (const MatrixWork& matrix : layer.dense) RETURN_IF_ERROR(known(matrix.type));
    for (const MatrixWork& matrix : layer.expert) RETURN_IF_ERROR(known(matrix.type));
  }
  return known(model_.head.type);
}

double ComputeTime::matrix_s(const MatrixWork& matrix, double tokens) const {
  return matrix.weights * interpolate(find(matrix.type)->linear, tokens);
}

double ComputeTime::read_s(const MatrixWork& matrix) const {
  return matrix.weights * find(matrix.type)->bytes_per_weight / machine_.ram_bytes_per_s;
}

double ComputeTime::stages_s(double tokens) const {
  double total = 0;
  for (const LayerWork& layer : model_.layers) {
    for (const MatrixWork& matrix : layer.dense) total += matrix_s(matrix, tokens);
    total += machine_.attention_s_per_key_float * tokens * model_.attention_width * keys_ +
             machine_.node_overhead_s * kNodesPerLayer +
             machine_.elementwise_s_per_float * kPassesPerLayer * tokens * model_.n_embd;
  }
  return total;
}

double ComputeTime::head_s(double tokens) const { return matrix_s(model_.head, tokens); }

double ComputeTime::expert_s(double rows) const {
  double total = 0;
  for (const LayerWork& layer : model_.layers) {
    for (const MatrixWork& matrix : layer.expert) {
      total += matrix.weights * interpolate(find(matrix.type)->experts, std::max(1.0, rows));
    }
  }
  return total / std::max(1, model_.moe_layers());
}

double ComputeTime::memory_s(double experts) const {
  double total = read_s(model_.head);
  double each = 0;
  for (const LayerWork& layer : model_.layers) {
    for (const MatrixWork& matrix : layer.dense) total += read_s(matrix);
    for (const MatrixWork& matrix : layer.expert) each += read_s(matrix);
  }
  return total + experts * each / std::max(1, model_.moe_layers());
}

double ComputeTime::token_s() const {
  const double experts = static_cast<double>(model_.moe_layers()) * model_.n_expert_used;
  return stages_s(1) + experts * expert_s(1) + head_s(1);
}

double bytes_per_weight(const MachineProfile& machine, const std::string& type) {
  for (const KernelProfile& kernel : machine.kernels) {
    if (kernel.type == type) return kernel.bytes_per_weight;
  }
  return 0;
}

double interpolate(const std::vector<KernelRate>& rates, double tokens) {
  CHECK(!rates.empty());
  if (rates.size() == 1) return rates.front().seconds_per_weight * std::max(1.0, tokens / rates.front().tokens);
  size_t right = 1;
  while (right + 1 < rates.size() && rates[right].tokens < tokens) ++right;
  const KernelRate& a = rates[right - 1];
  const KernelRate& b = rates[right];
  const double slope = (b.seconds_per_weight - a.seconds_per_weight) / (b.tokens - a.tokens);
  return std::max(0.0, a.seconds_per_weight + slope * (tokens - a.tokens));
}

double disk_rate(const MachineProfile& machine, double pieces) {
  const DiskRate* below = nullptr;
  const DiskRate* above = nullptr;
  uint64_t largest = 0;
  for (const DiskRate& rate : machine.disk) largest = std::max(largest, rate.read_bytes);
  for (const DiskRate& rate : machine.disk) {
    if (rate.read_bytes != largest) continue;
    if (rate.in_flight <= pieces && (below == nullptr || rate.in_flight > below->in_flight)) below = &rate;
    if (rate.in_flight >= pieces && (above == nullptr || rate.in_flight < above->in_flight)) above = &rate;
  }
  CHECK(below != nullptr || above != nullptr);
  if (below == nullptr) return above->bytes_per_s;
  if (above == nullptr || above == below) return below->bytes_per_s;
  const double part = (pieces - below->in_flight) / (above->in_flight - below->in_flight);
  return below->bytes_per_s + part * (above->bytes_per_s - below->bytes_per_s);
}

}  // namespace drafthorse
