#include "model/host_attention.h"

#include <algorithm>

#include "base/units.h"
#include "model/host_stage_builder.h"

namespace drafthorse {
namespace {

constexpr size_t kTensors = 32;  // of a graph, at most
constexpr uint64_t kAlignment = 64;

}  // namespace

HostAttention::HostAttention(const ModelConfig& config, Compute& compute, const ops::NodeContext& nodes,
                             const ops::AttentionNode& attention, const KvCache& kv, const Workspace& workspace)
    : config_(config),
      compute_(compute),
      nodes_(nodes),
      attention_(attention),
      kv_(kv),
      workspace_(workspace),
      q_width_(int64_t{config.head_dim} * config.n_head),
      k_width_(int64_t{config.head_dim} * config.n_head_kv),
      v_width_(config.is_latent() ? 0 : int64_t{config.value_dim} * config.n_head_kv),
      out_width_(int64_t{config.value_dim} * config.n_head) {}

Result<std::unique_ptr<HostAttention>> HostAttention::create(const ModelConfig& config, Compute& compute,
                                                             const ops::NodeContext& nodes,
                                                             const ops::AttentionNode& attention, const KvCache& kv,
                                                             const Workspace& workspace) {
  std::unique_ptr<HostAttention> made(new HostAttention(config, compute, nodes, attention, kv, workspace));
  const int32_t columns = workspace.shape().columns;
  uint64_t bytes = 0;
  const auto room = [&](uint64_t& part, int64_t width) {
    part = bytes;
    bytes += align_up(sizeof(float) * static_cast<uint64_t>(width) * static_cast<uint64_t>(columns), kAlignment);
  };
  room(made->q_, made->q_width_);
  room(made->k_, made->k_width_);
  room(made->v_, made->v_width_);
  room(made->attended_, made->out_width_);
  ASSIGN_OR_RETURN(made->rows_, DeviceBuffer::reserve(bytes));
  made->scratch_ = ggml_gallocr_new(ggml_backend_get_default_buffer_type(compute.backend()));
  const int32_t tokens = std::min(kStageTokens, columns);
  CHECK(ggml_gallocr_reserve(made->scratch_, made->build(LayerId{0}, 0, tokens, true)->graph));
  made->scratch_bytes_ = ggml_gallocr_get_buffer_size(made->scratch_, 0);
  made->attention_bytes_ = ops::attention_workspace_bytes(attention.shape, tokens, kv.context());
  return made;
}

Status HostAttention::allocate(const Device& device) {
  if (!device.info().pinned) return {};
  ASSIGN_OR_RETURN(Arena arena, device.reserve_host(rows_.bytes()));
  rows_ = DeviceBuffer::over(std::move(arena));
  return {};
}

HostAttention::~HostAttention() {
  if (scratch_ != nullptr) ggml_gallocr_free(scratch_);
}

HostAttention::Graph HostAttention::build(LayerId layer, int32_t first, int32_t count, bool attends) {
  auto graph = std::make_unique<StageGraph>(kTensors);
  ggml_context* context = graph->context;
  const auto rows = [&](const float* where, int64_t width, int64_t heads) {
    ggml_tensor* tensor = ggml_new_tensor_3d(context, GGML_TYPE_F32, width / heads, heads, count);
    rows_.place(tensor, static_cast<uint64_t>(reinterpret_cast<const std::byte*>(where) - rows_.data()));
    return tensor;
  };
  const auto of_workspace = [&](ggml_type type, const void* base) {
    ggml_tensor* tensor = ggml_new_tensor_1d(context, type, count);
    workspace_.buffer().place(tensor, workspace_.offset_of(base) + ggml_type_size(type) * static_cast<uint64_t>(first));
    return tensor;
  };
  ggml_tensor* keys = rows(k(first), k_width_, config_.n_head_kv);
  ggml_tensor* values = has_values() ? rows(v(first), v_width_, config_.n_head_kv) : nullptr;
  ggml_tensor* where = of_workspace(GGML_TYPE_I64, workspace_.kv_rows);
  if (!attends) {
    const auto write = [&](ggml_tensor* cache, ggml_tensor* x) {
      ggml_tensor* flat = ggml_reshape_2d(context, x, x->ne[0] * x->ne[1], count);
      ggml_build_forward_expand(graph->graph, ggml_set_rows(context, cache, flat, where));
    };
    write(kv_.keys(index(layer)), keys);
    if (values != nullptr) write(kv_.values(index(layer)), values);
    return graph;
  }
  HostStageBuilder builder(context, config_, nodes_, attention_);
  ggml_tensor* out = builder.cached_attention(rows(q(first), q_width_, config_.n_head), keys, values, kv_, index(layer),
                                              of_workspace(GGML_TYPE_I32, workspace_.positions), where);
  rows_.place(out, attended_ + sizeof(float) * static_cast<uint64_t>(out_width_) * static_cast<uint64_t>(first));
  ggml_build_forward_expand(graph->graph, out);
  return graph;
}

void HostAttention::attend(LayerId layer, int32_t first, int32_t count) { run(layer, first, count, true); }
void HostAttention::write(LayerId layer, int32_t first, int32_t count) { run(layer, first, count, false); }

void HostAttention::run(LayerId layer, int32_t first, int32_t count, bool attends) {
  for (int32_t done = 0; done < count; done += kStageTokens) {
    const Graph graph = build(layer, first + done, std::min(kStageTokens, count - done), attends);
    CHECK(ggml_gallocr_alloc_graph(scratch_, graph->graph));
    compute_.run(graph->graph);
  }
}

}  // namespace drafthorse
