#include "model/expert_bank.h"

#include <algorithm>

namespace drafthorse {
namespace {

bool same_shape(const ExpertMatrix& a, const ExpertMatrix& b) {
  return a.type == b.type && a.columns == b.columns && a.rows == b.rows;
}

uint64_t matrix_bytes(const ExpertMatrix& matrix) {
  return ggml_row_size(matrix.type, matrix.columns) * static_cast<uint64_t>(matrix.rows);
}

}  // namespace

ExpertBank::ExpertBank(Device& device, const ExpertLayout& layout) : device_(device), memory_(device) {
  for (const ExpertLayer& layer : layout.layers) {
    if (layer.experts.empty()) {
      kind_of_.push_back(-1);
      continue;
    }
    auto kind = std::find_if(kinds_.begin(), kinds_.end(), [&](const Kind& one) {
      return same_shape(one.shapes[0], layer.gate) && same_shape(one.shapes[1], layer.up) &&
             same_shape(one.shapes[2], layer.down);
    });
    if (kind == kinds_.end()) {
      Kind fresh;
      fresh.shapes[0] = layer.gate;
      fresh.shapes[1] = layer.up;
      fresh.shapes[2] = layer.down;
      for (const ExpertMatrix& matrix : fresh.shapes) fresh.slot_bytes += matrix_bytes(matrix);
      kind = kinds_.insert(kinds_.end(), fresh);
    }
    kind->experts += static_cast<int>(layer.experts.size());
    kind_of_.push_back(static_cast<int>(kind - kinds_.begin()));
  }
}

uint64_t ExpertBank::all_bytes() const {
  uint64_t bytes = 0;
  for (const Kind& kind : kinds_) bytes += kind.slot_bytes * static_cast<uint64_t>(kind.experts);
  return bytes;
}

std::vector<int> ExpertBank::slots_for(uint64_t bytes) const {
  const double share =
      std::min(1.0, static_cast<double>(bytes) / static_cast<double>(std::max<uint64_t>(1, all_bytes())));
  // A tensor may be as large as the device allows.
  const uint64_t most = ggml_backend_buft_get_max_size(device_.memory_type()) / 3;
  std::vector<int> slots;
  for (const Kind& kind : kinds_) {
    const auto wanted = static_cast<uint64_t>(share * kind.experts);
    slots.push_back(static_cast<int>(
        std::clamp<uint64_t>(std::min(wanted, most / kind.slot_bytes), 1, static_cast<uint64_t>(kind.experts))));
  }
  return slots;
}

void ExpertBank::set_slots(std::span<const int> slots) {
  CHECK(context_ == nullptr && slots.size() == kinds_.size());
  context_.reset(ggml_init({(3 * kinds_.size() + 1) * ggml_tensor_overhead(), nullptr, true}));
  for (size_t i = 0; i < kinds_.size(); ++i) {
    Kind& kind = kinds_[i];
    kind.slots = slots[i];
    const auto bank = [&](const ExpertMatrix& matrix) {
      ggml_tensor* tensor = ggml_new_tensor_3d(context_.get(), matrix.type, matrix.columns, matrix.rows, kind.slots);
      memory_.add(tensor);
      return tensor;
    };
    kind.gate = bank(kind.shapes[0]);
    kind.up = bank(kind.shapes[1]);
    kind.down = bank(kind.shapes[2]);
  }
}

void ExpertBank::copy(LayerId layer, int slot, const ops::ExpertWeights& expert) {
  const auto one = [&](ggml_tensor* bank, const ops::WeightMatrix& matrix) {
    CHECK(slot < bank->ne[2] && matrix.row_bytes * static_cast<size_t>(matrix.rows) == bank->nb[2]);
    device_.copy(bank, matrix.data, static_cast<uint64_t>(slot) * bank->nb[2], bank->nb[2]);
  };
  one(gate(layer), expert.gate);
  one(up(layer), expert.up);
  one(down(layer), expert.down);
}

}  // namespace drafthorse
