#include "model/workspace.h"

#include <algorithm>
#include <vector>

#include "base/units.h"
#include "ops/linear.h"

namespace drafthorse {
namespace {

constexpr uint64_t kAlignment = 64;

// Hands out offsets first and, once the buffer is there, the pointers at them.
class Layouter {
 public:
  template <typename T>
  void add(T*& pointer, uint64_t count) {
    places_.push_back({reinterpret_cast<void**>(&pointer), total_});
    total_ += align_up(count * sizeof(T), kAlignment);
  }
  uint64_t total() const { return total_; }
  void resolve(std::byte* base) const {
    for (const Place& place : places_) *place.pointer = base + place.offset;
  }

 private:
  struct Place {
    void** pointer;
    uint64_t offset;
  };
  std::vector<Place> places_;
  uint64_t total_ = 0;
};

}  // namespace

Result<Workspace> Workspace::reserve(const ModelConfig& config, const ExpertLayout& layout,
                                     const WorkspaceShape& shape) {
  Workspace w;
  w.shape_ = shape;
  const auto columns = static_cast<uint64_t>(shape.columns);
  const auto n_embd = static_cast<uint64_t>(config.n_embd);
  uint64_t hidden_row_bytes = 0;
  for (const ExpertLayer& layer : layout.layers) {
    if (layer.experts.empty()) continue;
    w.ffn_input_row_bytes = std::max(
        w.ffn_input_row_bytes, ops::activation_row_bytes(ops::activation_format(layer.gate.type), layer.gate.columns));
    hidden_row_bytes = std::max<uint64_t>(
        hidden_row_bytes, ops::activation_row_bytes(ops::activation_format(layer.down.type), layer.down.columns));
  }
  w.ffn_input_row_bytes = align_up(w.ffn_input_row_bytes, kAlignment);

  Layouter layouter;
  layouter.add(w.tokens, columns);
  layouter.add(w.positions, columns);
  layouter.add(w.kv_rows, columns);
  layouter.add(w.residual, columns * n_embd);
  layouter.add(w.logits, static_cast<uint64_t>(shape.max_window) * static_cast<uint64_t>(config.n_vocab));
  if (config.is_moe()) {
    w.expert_rows = std::max(shape.max_window * config.n_expert_used, std::min(kExpertRows, shape.columns));
    w.output_rows = std::max(w.expert_rows, shape.output_rows);
    const auto rows = static_cast<uint64_t>(w.expert_rows);
    layouter.add(w.ffn_input, columns * w.ffn_input_row_bytes);
    layouter.add(w.router_logits, columns * static_cast<uint64_t>(config.n_expert));
    layouter.add(w.expert_sum, columns * n_embd);
    layouter.add(w.expert_hidden, rows * static_cast<uint64_t>(config.n_ff_expert));
    layouter.add(w.expert_hidden_quantized, rows * hidden_row_bytes);
    layouter.add(w.expert_output, static_cast<uint64_t>(w.output_rows) * n_embd);
  }
  ASSIGN_OR_RETURN(w.buffer_, DeviceBuffer::reserve(layouter.total()));
  layouter.resolve(w.buffer_.data());
  return w;
}

}  // namespace drafthorse
