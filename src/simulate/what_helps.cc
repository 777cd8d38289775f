#include "simulate/what_helps.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/units.h"

namespace drafthorse {
namespace {

constexpr double kWorthHaving = 1.05;
constexpr const char* kSmallType = "q4_K";
constexpr int kDraftedWindow = 65;  // that a draft of the deepest kind makes
constexpr const char* kDraftType = "q4_0";

// Bytes of all experts and matrices.
double model_bytes(const MachineProfile& machine, const ModelWork& model) {
  double bytes = model.head.weights * bytes_per_weight(machine, model.head.type);
  for (const LayerWork& layer : model.layers) {
    for (const MatrixWork& matrix : layer.dense) bytes += matrix.weights * bytes_per_weight(machine, matrix.type);
    for (const MatrixWork& matrix : layer.expert) {
      bytes += layer.n_expert * matrix.weights * bytes_per_weight(machine, matrix.type);
    }
  }
  return bytes;
}

// The model with what exceeds `type` in size as `type`. False where nothing does.
bool shrink(const MachineProfile& machine, const std::string& type, bool dense_too, ModelWork& model) {
  const double small = bytes_per_weight(machine, type);
  bool changed = false;
  double before = 0;
  double after = 0;
  const auto shrink_matrix = [&](MatrixWork& matrix) {
    if (bytes_per_weight(machine, matrix.type) < 1.2 * small) return;
    matrix.type = type;
    changed = true;
  };
  for (LayerWork& layer : model.layers) {
    for (MatrixWork& matrix : layer.expert) {
      before += matrix.weights * bytes_per_weight(machine, matrix.type);
      shrink_matrix(matrix);
      after += matrix.weights * bytes_per_weight(machine, matrix.type);
    }
    if (dense_too) std::for_each(layer.dense.begin(), layer.dense.end(), shrink_matrix);
  }
  if (before > 0) model.expert_bytes = static_cast<uint64_t>(static_cast<double>(model.expert_bytes) * after / before);
  return changed && small > 0;
}

int slots_in(uint64_t room, uint64_t slot_bytes, int total) {
  return slot_bytes == 0 ? 0 : static_cast<int>(std::min<uint64_t>(room / slot_bytes, static_cast<uint64_t>(total)));
}

}  // namespace

std::vector<Suggestion> what_helps(const PredictionInput& input, const Memory& memory, const SpeedPrediction& now) {
  std::vector<Suggestion> out;
  const auto try_out = [&](const PredictionInput& changed, const std::string& what) {
    const Result<SpeedPrediction> then = predict_speed(changed);
    if (!then.ok() || then->tokens_per_s < kWorthHaving * now.tokens_per_s) return;
    out.push_back({what, then->tokens_per_s});
  };
  const uint64_t room = memory.budget_bytes - std::min(memory.budget_bytes, memory.fixed_bytes);
  if (input.slots < memory.total_experts) {
    for (const uint64_t more : {memory.budget_bytes / 4, memory.budget_bytes / 2}) {
      PredictionInput changed = input;
      changed.slots = slots_in(room + more, memory.slot_bytes, memory.total_experts);
      if (changed.slots >= memory.total_experts) break;
      try_out(changed,
              fmt::format("{} more memory (--ram {}M)", format_size(more), (memory.budget_bytes + more) / kMiB));
    }
    PredictionInput changed = input;
    changed.slots = memory.total_experts;
    const uint64_t all = memory.fixed_bytes + memory.slot_bytes * static_cast<uint64_t>(memory.total_experts);
    try_out(changed, fmt::format("memory for all experts (--ram {}M)", align_up(all, kMiB) / kMiB + 2));
  }
  PredictionInput smaller = input;
  if (shrink(input.machine, kSmallType, false, smaller.target)) {
    const double ratio = static_cast<double>(smaller.target.expert_bytes) /
                         static_cast<double>(std::max<uint64_t>(1, input.target.expert_bytes));
    if (memory.slot_bytes > 0) {
      const auto slot = static_cast<uint64_t>(static_cast<double>(memory.slot_bytes) * ratio) + 12 * kKiB;
      smaller.slots = slots_in(room, slot, memory.total_experts);
    }
    try_out(smaller,
            fmt::format("the experts as {} ({:.0f} % of their size; not the same text)", kSmallType, ratio * 100));
  }
  if (!input.draft) {
    PredictionInput drafted = input;
    drafted.draft = input.target;
    if (shrink(input.machine, kDraftType, true, *drafted.draft)) {
      const auto bytes = static_cast<uint64_t>(model_bytes(input.machine, *drafted.draft));
      drafted.foreseen = true;
      drafted.max_window = std::max(drafted.max_window, kDraftedWindow);
      drafted.text.acceptance = kSameModelAcceptance;
      drafted.depth.reset();
      drafted.slots = slots_in(room - std::min(room, bytes), memory.slot_bytes, memory.total_experts);
      if (memory.slot_bytes == 0 || drafted.slots >= 2) {
        try_out(drafted,
                fmt::format("its own copy as {} for a draft (-d; it takes {})", kDraftType, format_size(bytes)));
      }
    }
  } else if (input.slots < memory.total_experts) {
    PredictionInput alone = input;
    alone.draft.reset();
    alone.depth.reset();
    const auto freed = static_cast<uint64_t>(model_bytes(input.machine, *input.draft));
    alone.slots = slots_in(room + freed, memory.slot_bytes, memory.total_experts);
    try_out(alone, fmt::format("no draft: its {} hold experts instead", format_size(freed)));
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const Suggestion& a, const Suggestion& b) { return a.tokens_per_s > b.tokens_per_s; });
  return out;
}

}  // namespace drafthorse
