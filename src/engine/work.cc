#include "engine/work.h"

#include <algorithm>
#include <cstdlib>

#include "base/units.h"
#include "engine/inspect.h"

namespace drafthorse {
namespace {

std::string type_of(const TensorInfo& tensor) { return ggml_type_name(tensor.type); }

// What of `bytes`, meant for `room` rows, is touched when `used` of them are: whole huge pages.
uint64_t touched(uint64_t bytes, int64_t room, int64_t used) {
  if (room <= 0 || used >= room) return bytes;
  const double part = static_cast<double>(used) / static_cast<double>(room);
  return std::min(bytes, align_up(static_cast<uint64_t>(static_cast<double>(bytes) * part), kHugePage));
}

// Activations and KV cache that a text so long leaves untouched.
uint64_t untouched(const Model& model, int64_t prompt_tokens, int64_t generated_tokens) {
  const ModelConfig& config = model.config();
  const int64_t text = prompt_tokens + generated_tokens;
  const KvCache& kv = model.kv();
  const auto tensors = static_cast<uint64_t>(kv.tensors());
  uint64_t rest = kv.bytes() - std::min(kv.bytes(), tensors * touched(kv.bytes() / tensors, kv.context(), text));
  const Workspace& workspace = model.workspace();
  const int64_t columns = workspace.shape().columns;
  const int64_t used = std::min(columns, std::max<int64_t>(prompt_tokens, workspace.shape().max_window));
  const auto add = [&](uint64_t row_bytes, int64_t room, int64_t rows) {
    const uint64_t bytes = row_bytes * static_cast<uint64_t>(room);
    rest += bytes - touched(bytes, room, rows);
  };
  const auto n_embd = static_cast<uint64_t>(config.n_embd);
  add(n_embd * sizeof(float), columns, used);  // residual
  if (config.is_moe()) {
    add(n_embd * sizeof(float), columns, used);  // sums
    add(workspace.ffn_input_row_bytes, columns, used);
    const auto rows_of = [&](int64_t room) { return std::min<int64_t>(room, used * config.n_expert_used); };
    add(static_cast<uint64_t>(config.n_ff_expert) * sizeof(float), workspace.expert_rows,
        rows_of(workspace.expert_rows));
    add(n_embd * sizeof(float), workspace.output_rows, rows_of(workspace.output_rows));
  }
  return rest;
}

}  // namespace

ModelWork model_work(const GgufIndex& index, const Model& model) {
  const ModelConfig& config = model.config();
  const ExpertLayout& layout = model.layout();
  ModelWork work;
  work.n_expert_used = config.n_expert_used;
  work.n_embd = config.n_embd;
  work.attention_width = config.n_head * (config.head_dim + config.value_dim) / 2;
  work.layers.resize(layout.n_layers());
  uint64_t experts_bytes = 0;
  for (size_t i = 0; i < layout.n_layers(); ++i) {
    const ExpertLayer& experts = layout.layers[i];
    if (experts.experts.empty()) continue;
    LayerWork& layer = work.layers[i];
    layer.n_expert = static_cast<int>(experts.experts.size());
    for (const ExpertMatrix* matrix : {&experts.gate, &experts.up, &experts.down}) {
      layer.expert.push_back({ggml_type_name(matrix->type), static_cast<double>(matrix->rows * matrix->columns)});
    }
    const uint64_t bytes = layout.expert_bytes(LayerId{static_cast<int32_t>(i)});
    work.expert_bytes = std::max(work.expert_bytes, bytes);
    experts_bytes += bytes * experts.experts.size();
  }
  const uint64_t all = index.tensor_bytes();
  work.dense_bytes = all - std::min(all, experts_bytes);
  for (const TensorInfo& tensor : index.tensors()) {
    const bool matrix = tensor.ne[1] > 1;
    if (tensor.name == "output.weight" || (tensor.name == "token_embd.weight" && work.head.weights == 0)) {
      work.head = {type_of(tensor), static_cast<double>(tensor.ne[0] * tensor.ne[1])};
    }
    constexpr std::string_view kBlock = "blk.";
    if (!matrix || !tensor.name.starts_with(kBlock)) continue;
    const auto layer = static_cast<size_t>(std::atoi(tensor.name.c_str() + kBlock.size()));
    if (layer >= work.layers.size()) continue;
    const bool routed = work.layers[layer].n_expert > 0 && is_routed_expert(tensor.name);
    if (!routed) {
      // A matrix per head is a third dimension.
      work.layers[layer].dense.push_back(
          {type_of(tensor), static_cast<double>(tensor.ne[0] * tensor.ne[1] * tensor.ne[2])});
    }
  }
  return work;
}

uint64_t expected_peak_bytes(const Engine& engine, int prompt_tokens, int generated_tokens) {
  uint64_t rest = kProcessReserve + untouched(*engine.target().model, prompt_tokens, generated_tokens);
  if (engine.draft().model != nullptr) rest += untouched(*engine.draft().model, prompt_tokens, generated_tokens);
  const uint64_t booked = engine.ledger().total();
  return booked - std::min(booked, rest);
}

}  // namespace drafthorse
