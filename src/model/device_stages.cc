#include "model/device_stages.h"

#include <fmt/format.h>
#include <ggml-alloc.h>

#include <algorithm>
#include <cstring>

#include "base/units.h"
#include "model/device_attention.h"
#include "model/device_stage_builder.h"

namespace drafthorse {
namespace {

constexpr int32_t kMostKeptWindow = 17;
constexpr size_t kMoreTensors = 40;  // that a device's layer has at most beyond a host's
constexpr size_t kProbeTensors = 8;  // per probe
constexpr int32_t kFewRows = 64;     // up to so many each row is an expert of one token: kernels for vectors

}  // namespace

DeviceStages::DeviceStages(Device& device, const ModelConfig& config, const Family& family, const ModelWeights& weights,
                           const ExpertLayout& layout, const KvCache& kv, const DeviceStageShape& shape)
    : device_(device), config_(config), family_(family), weights_(weights), layout_(layout), kv_(kv), shape_(shape) {
  CHECK(shape.columns >= shape.fixed_window && shape.max_window > 0);
}

DeviceStages::~DeviceStages() {
  if (!idle_) wait();
  if (scratch_ != nullptr) ggml_gallocr_free(scratch_);
}

size_t DeviceStages::graph_tensors() const {
  return family_.layer_tensors + kMoreTensors + 2 * static_cast<size_t>(config_.n_expert_used) +
         probes_.size() * kProbeTensors;
}

uint64_t DeviceStages::graph_bytes() const {
  const auto kept = static_cast<uint64_t>(std::min(kMostKeptWindow, shape_.columns));
  return kept * static_cast<uint64_t>(config_.n_layer) * StageGraph::context_bytes(graph_tensors());
}

uint64_t DeviceStages::queued_bytes() const {
  const auto columns = static_cast<uint64_t>(std::max(shape_.columns, shape_.fixed_window));
  const uint64_t mask = shape_.host_attention ? 0 : sizeof(ggml_fp16_t) * static_cast<uint64_t>(kv_.device_rows());
  // Rows' tokens, slots, places and weights.
  const uint64_t routes = 4 * sizeof(int32_t) * static_cast<uint64_t>(config_.n_expert_used);
  return columns * (sizeof(float) * static_cast<uint64_t>(config_.n_embd) + mask + routes);
}

int32_t DeviceStages::padded(int32_t count) const {
  return std::max(count, count <= shape_.fixed_window ? shape_.fixed_window : 0);
}

// A multiple of kDeviceRows: kernels want even ones, and graphs are built anew when it grows.
int32_t DeviceStages::extent_for(int32_t positions) const {
  return fixed() ? kv_.device_rows() : (positions + kDeviceRows - 1) / kDeviceRows * kDeviceRows;
}

Status DeviceStages::plan(std::span<const RouterProbe> probes) {
  CHECK(!memory_ || !memory_->allocated());
  probes_.assign(probes.begin(), probes.end());
  context_.reset(ggml_init({(24 + 3 * probes_.size()) * ggml_tensor_overhead(), nullptr, true}));
  memory_.emplace(device_);
  const auto tensor = [&](ggml_type type, int64_t width, int64_t rows) {
    ggml_tensor* made = ggml_new_tensor_2d(context_.get(), type, width, rows);
    memory_->add(made);
    return made;
  };
  const int64_t columns = shape_.columns;
  positions_ = tensor(GGML_TYPE_I32, columns, 1);
  if (shape_.host_attention) {
    q_ = tensor(GGML_TYPE_F32, int64_t{config_.head_dim} * config_.n_head, columns);
    k_ = tensor(GGML_TYPE_F32, int64_t{config_.head_dim} * config_.n_head_kv, columns);
    if (!config_.is_latent()) v_ = tensor(GGML_TYPE_F32, int64_t{config_.value_dim} * config_.n_head_kv, columns);
    attended_ = tensor(GGML_TYPE_F32, int64_t{config_.value_dim} * config_.n_head, columns);
  } else {
    kv_rows_ = tensor(GGML_TYPE_I64, columns, 1);
    mask_ = tensor(GGML_TYPE_F16, int64_t{kv_.device_rows()} * columns, 1);
  }
  residual_ = tensor(GGML_TYPE_F32, config_.n_embd, columns);
  logits_ = tensor(GGML_TYPE_F32, config_.n_vocab, std::max(shape_.max_window, shape_.fixed_window));
  head_columns_ = tensor(GGML_TYPE_I32, logits_->ne[1], 1);
  if (config_.is_moe()) {
    const int64_t rows = columns * config_.n_expert_used;
    ffn_input_ = tensor(GGML_TYPE_F32, config_.n_embd, columns);
    router_logits_ = tensor(GGML_TYPE_F32, config_.n_expert, columns);
    expert_rows_ = tensor(GGML_TYPE_F32, config_.n_embd, rows);
    row_tokens_ = tensor(GGML_TYPE_I32, rows, 1);
    row_slots_ = tensor(GGML_TYPE_I32, rows, 1);
    route_rows_ = tensor(GGML_TYPE_I32, rows, 1);
    route_weights_ = tensor(GGML_TYPE_F32, 1, rows);
  }
  probe_logits_.clear();
  uploaded_.clear();
  const auto here = [&](ggml_tensor*& of) {
    if (of == nullptr || of->buffer == nullptr || !ggml_backend_buffer_is_host(of->buffer)) return;
    uploaded_.push_back({of, tensor(of->type, of->ne[0], of->ne[1])});
    of = uploaded_.back().to;
  };
  for (RouterProbe& probe : probes_) {
    here(probe.router);
    here(probe.offset);
    probe_logits_.push_back(tensor(GGML_TYPE_F32, probe.router->ne[1], shape_.max_window));
  }

  scratch_bytes_ = 0;
  if (scratch_ != nullptr) ggml_gallocr_free(scratch_);
  scratch_ = ggml_gallocr_new(device_.memory_type());
  for (int32_t i = 0; i < config_.n_layer; ++i) {
    // A single token may go through other operations.
    for (const int32_t count : {shape_.columns, padded(1)}) {
      if (shape_.host_attention) {
        RETURN_IF_ERROR(measure(build_before(LayerId{i}, 0, count)));
        RETURN_IF_ERROR(measure(build_after(LayerId{i}, 0, count)));
      } else {
        RETURN_IF_ERROR(measure(build_layer(LayerId{i}, count, kv_.device_rows())));
      }
    }
  }
  if (mirror_ != nullptr) {
    mirror_->pretend_all();
    RETURN_IF_ERROR(measure(build_mirrored(LayerId{0})));
  }
  RETURN_IF_ERROR(measure(build_head(0, static_cast<int32_t>(logits_->ne[1]))));
  RETURN_IF_ERROR(measure(build_gathered_head(static_cast<int32_t>(logits_->ne[1]))));
  if (config_.is_moe()) {
    ExpertBank bank(device_, layout_);
    bank.set_slots(std::vector<int>(static_cast<size_t>(bank.kinds()), 2));
    for (int32_t i = 0; i < config_.n_layer; ++i) {
      if (bank.kind_of(LayerId{i}) < 0) continue;
      RETURN_IF_ERROR(measure(build_experts(bank, LayerId{i}, static_cast<int32_t>(expert_rows_->ne[1]), 0)));
      RETURN_IF_ERROR(measure(build_experts(bank, LayerId{i}, 1, 0)));
    }
    RETURN_IF_ERROR(measure(build_add(shape_.columns)));
  }
  // Smaller graphs may be laid out in a little more than the largest.
  scratch_bytes_ += scratch_bytes_ / 16;
  return {};
}

Status DeviceStages::measure(const Graph& graph) {
  for (int i = 0; i < ggml_graph_n_nodes(graph->graph); ++i) {
    const ggml_tensor* node = ggml_graph_node(graph->graph, i);
    if (device_.supports(node)) continue;
    return usage_error(fmt::format(
        "device {} cannot compute {} of {}{}: use --device cpu", device_.info().name, ggml_op_desc(node),
        ggml_type_name(node->src[0] != nullptr ? node->src[0]->type : node->type),
        node->src[0] != nullptr && node->src[0]->name[0] != '\0' ? fmt::format(" ({})", node->src[0]->name) : ""));
  }
  size_t bytes = 0;
  ggml_gallocr_reserve_n_size(scratch_, graph->graph, nullptr, nullptr, &bytes);
  scratch_bytes_ = std::max<uint64_t>(scratch_bytes_, bytes);
  return {};
}

Status DeviceStages::allocate() {
  RETURN_IF_ERROR(memory_->allocate("activations"));
  // The largest graphs first, so that kept ones never see their memory move.
  const auto reserve = [&](const Graph& graph) { return ggml_gallocr_reserve(scratch_, graph->graph); };
  bool done = reserve(build_head(0, static_cast<int32_t>(logits_->ne[1])));
  if (done && mirror_ != nullptr) {
    mirror_->pretend_all();
    done = reserve(build_mirrored(LayerId{0}));
  }
  done = done && reserve(build_gathered_head(static_cast<int32_t>(logits_->ne[1])));
  for (int32_t i = 0; i < config_.n_layer && done; ++i) {
    if (shape_.host_attention) {
      done =
          reserve(build_before(LayerId{i}, 0, shape_.columns)) && reserve(build_after(LayerId{i}, 0, shape_.columns));
    } else {
      done = reserve(build_layer(LayerId{i}, shape_.columns, kv_.device_rows()));
    }
  }
  if (done) return {};
  return memory_error(fmt::format("device {} has no {} for intermediate results: give a smaller --vram or --ctx",
                                  device_.info().name, format_size(scratch_bytes_)));
}

void DeviceStages::upload_probes() {
  for (const Uploaded& one : uploaded_) ggml_backend_tensor_set(one.to, one.from->data, 0, ggml_nbytes(one.to));
}

ggml_tensor* DeviceStages::columns(const Graph& graph, ggml_tensor* of, int64_t first, int64_t count) const {
  return ggml_view_2d(graph->context, of, of->ne[0], count, of->nb[1], static_cast<size_t>(first) * of->nb[1]);
}

ggml_tensor* DeviceStages::elements(const Graph& graph, ggml_tensor* of, int64_t first, int64_t count) const {
  return ggml_view_1d(graph->context, of, count, static_cast<size_t>(first) * of->nb[0]);
}

void DeviceStages::place(const Graph& graph, ggml_tensor* tensor, const ggml_tensor* where, uint64_t offset) const {
  memory_->place(tensor, where, offset);
  ggml_build_forward_expand(graph->graph, tensor);
}

DeviceStages::Graph DeviceStages::build_layer(LayerId layer, int32_t count, int32_t extent) {
  Graph graph = new_graph();
  ggml_context* context = graph->context;
  ggml_tensor* mask = ggml_view_2d(context, mask_, extent, count, sizeof(ggml_fp16_t) * static_cast<size_t>(extent), 0);
  DeviceStageBuilder builder(context, config_, mask);
  const LayerInputs inputs = {columns(graph, residual_, 0, count), elements(graph, positions_, 0, count),
                              elements(graph, kv_rows_, 0, count)};
  const LayerStage stage = family_.build_layer(builder, weights_, kv_, index(layer), inputs);
  for (size_t i = 0; i < probes_.size() && count <= probe_logits_[i]->ne[1]; ++i) {
    const RouterProbe& probe = probes_[i];
    if (probe.at != layer) continue;
    ggml_tensor* x = stage.ffn_input;
    if (probe.other_norm.weight != nullptr) {
      if (probe.norm.bias != nullptr) x = ggml_sub(context, x, probe.norm.bias);
      x = ggml_mul(context, ggml_div(context, x, probe.norm.weight), probe.other_norm.weight);
      if (probe.other_norm.bias != nullptr) x = ggml_add(context, x, probe.other_norm.bias);
    }
    place(graph, builder.linear(probe.router, x, probe.offset), probe_logits_[i], 0);
  }
  place_stage(graph, stage, 0);
  return graph;
}

// The residual last: nothing that reads it may come after.
void DeviceStages::place_stage(const Graph& graph, const LayerStage& stage, int32_t first) const {
  const auto column = static_cast<uint64_t>(first);
  if (stage.router_logits != nullptr) {
    place(graph, stage.router_logits, router_logits_, column * router_logits_->nb[1]);
    place(graph, stage.ffn_input, ffn_input_, column * ffn_input_->nb[1]);
  }
  place(graph, stage.residual, residual_, column * residual_->nb[1]);
}

DeviceStages::Graph DeviceStages::build_before(LayerId layer, int32_t first, int32_t count) {
  Graph graph = new_graph();
  SplitStageBuilder builder(graph->context, config_, columns(graph, attended_, first, count));
  const LayerInputs inputs = {columns(graph, residual_, first, count), elements(graph, positions_, first, count),
                              nullptr};
  family_.build_layer(builder, weights_, kv_, index(layer), inputs);
  const auto column = static_cast<uint64_t>(first);
  place(graph, builder.q(), q_, column * q_->nb[1]);
  place(graph, builder.k(), k_, column * k_->nb[1]);
  if (builder.v() != nullptr) place(graph, builder.v(), v_, column * v_->nb[1]);
  return graph;
}

DeviceStages::Graph DeviceStages::build_after(LayerId layer, int32_t first, int32_t count) {
  Graph graph = new_graph();
  SplitStageBuilder builder(graph->context, config_, columns(graph, attended_, first, count));
  const LayerInputs inputs = {columns(graph, residual_, first, count), elements(graph, positions_, first, count),
                              nullptr};
  place_stage(graph, family_.build_layer(builder, weights_, kv_, index(layer), inputs), first);
  return graph;
}

DeviceStages::Graph DeviceStages::build_mirrored(LayerId layer) {
  Graph graph = new_graph();
  mirror_->build(*graph, layer, q_, k_, v_, attended_);
  return graph;
}

ggml_tensor* DeviceStages::logits_of(const Graph& graph, ggml_tensor* residual) const {
  DeviceStageBuilder builder(graph->context, config_, nullptr);
  return builder.linear(weights_.output, builder.rms_norm(residual, weights_.output_norm, weights_.output_norm_bias),
                        weights_.output_bias);
}

DeviceStages::Graph DeviceStages::build_head(int32_t first, int32_t count) {
  Graph graph = new_graph();
  place(graph, logits_of(graph, columns(graph, residual_, first, count)), logits_, 0);
  return graph;
}

DeviceStages::Graph DeviceStages::build_gathered_head(int32_t count) {
  Graph graph = new_graph();
  ggml_tensor* wanted = ggml_get_rows(graph->context, residual_, elements(graph, head_columns_, 0, count));
  place(graph, logits_of(graph, wanted), logits_, 0);
  return graph;
}

DeviceStages::Graph DeviceStages::build_experts(const ExpertBank& bank, LayerId layer, int32_t rows,
                                                int32_t first_row) {
  Graph graph = new_graph();
  ggml_context* context = graph->context;
  ggml_tensor* slots = elements(graph, row_slots_, first_row, rows);
  // Many rows: each is a token with one expert, and kernels gather an expert's tokens. Few, or in fixed mode: one token
  // with so many experts, each product a vector's, whose bits do not depend on the others.
  const bool together = rows > kFewRows && !fixed();
  ggml_tensor* ids = together ? ggml_reshape_2d(context, slots, 1, rows) : ggml_reshape_2d(context, slots, rows, 1);
  const auto shaped = [&](ggml_tensor* x) {
    return together ? ggml_reshape_3d(context, x, x->ne[0], 1, rows) : ggml_reshape_3d(context, x, x->ne[0], rows, 1);
  };
  ggml_tensor* tokens = elements(graph, row_tokens_, first_row, rows);
  ggml_tensor* x = shaped(ggml_get_rows(context, ffn_input_, tokens));
  ggml_tensor* hidden = ggml_swiglu_split(context, ggml_mul_mat_id(context, bank.gate(layer), x, ids),
                                          ggml_mul_mat_id(context, bank.up(layer), x, ids));
  ggml_tensor* out = ggml_mul_mat_id(context, bank.down(layer), hidden, ids);
  place(graph, out, expert_rows_, static_cast<uint64_t>(first_row) * expert_rows_->nb[1]);
  return graph;
}

DeviceStages::Graph DeviceStages::build_add(int32_t count) {
  Graph graph = new_graph();
  ggml_context* context = graph->context;
  const int64_t k = config_.n_expert_used;
  ggml_tensor* weights = ggml_view_2d(context, route_weights_, 1, count * k, route_weights_->nb[1], 0);
  ggml_tensor* rows = ggml_get_rows(context, expert_rows_, elements(graph, route_rows_, 0, count * k));
  rows = ggml_mul(context, rows, weights);  // [n_embd, count * k]
  const auto of_rank = [&](int64_t rank) {
    return ggml_view_2d(context, rows, config_.n_embd, count, static_cast<size_t>(k) * rows->nb[1],
                        static_cast<size_t>(rank) * rows->nb[1]);
  };
  ggml_tensor* sum = of_rank(0);
  for (int64_t rank = 1; rank < k; ++rank) sum = ggml_add(context, sum, of_rank(rank));
  place(graph, ggml_add(context, columns(graph, residual_, 0, count), sum), residual_, 0);
  return graph;
}

void DeviceStages::allocate_graph(const Graph& graph) {
  const size_t before = ggml_gallocr_get_buffer_size(scratch_, 0);
  CHECK(ggml_gallocr_alloc_graph(scratch_, graph->graph));
  if (ggml_gallocr_get_buffer_size(scratch_, 0) != before) kept_.clear();  // they lie where memory was
}

void DeviceStages::run_once(Graph graph) {
  allocate_graph(graph);
  device_.compute(graph->graph);
  queued_.push_back(std::move(graph));
  idle_ = false;
}

template <typename T>
void DeviceStages::write(ggml_tensor* tensor, std::span<const T> data, uint64_t offset) {
  const auto bytes = std::as_bytes(data);
  written_.emplace_back(bytes.begin(), bytes.end());
  device_.write(tensor, written_.back().data(), offset, bytes.size());
  idle_ = false;
}

void DeviceStages::wait() {
  device_.wait();
  written_.clear();
  queued_.clear();
  idle_ = true;
}

void DeviceStages::begin(const float* embedded, std::span<const int32_t> positions, std::span<const int64_t> kv_rows) {
  if (!idle_) wait();
  count_ = static_cast<int32_t>(positions.size());
  CHECK(count_ > 0 && count_ <= shape_.columns);
  if (shape_.host_attention) {
    write(positions_, positions);
    write(residual_,
          std::span<const float>(embedded, static_cast<size_t>(count_) * static_cast<size_t>(config_.n_embd)));
    return;
  }
  const int32_t last = positions.back();
  extent_ = extent_for(last + 1);
  std::vector<int32_t> all_positions(positions.begin(), positions.end());
  std::vector<int64_t> all_rows(kv_rows.begin(), kv_rows.end());
  all_positions.resize(static_cast<size_t>(padded(count_)), last);
  all_rows.resize(static_cast<size_t>(padded(count_)), kv_.spare_row());
  std::vector<ggml_fp16_t> mask(static_cast<size_t>(extent_) * all_positions.size(), kUnseen);
  for (size_t t = 0; t < all_positions.size(); ++t) {
    const std::span row(mask.data() + t * static_cast<size_t>(extent_), static_cast<size_t>(extent_));
    mark_seen(row, all_positions[t], config_.attention_window);
  }
  write(positions_, std::span<const int32_t>(all_positions));
  write(kv_rows_, std::span<const int64_t>(all_rows));
  write(mask_, std::span<const ggml_fp16_t>(mask));
  write(residual_, std::span<const float>(embedded, static_cast<size_t>(count_) * static_cast<size_t>(config_.n_embd)));
}

void DeviceStages::layer(LayerId layer, const LayerResults& results) {
  const int32_t width = padded(count_);
  if (width > kMostKeptWindow) {
    run_once(build_layer(layer, width, extent_));
  } else {
    if (kept_extent_ != extent_) {
      if (!idle_) wait();
      kept_.clear();
      kept_extent_ = extent_;
    }
    const std::pair key{index(layer), width};
    if (!kept_.contains(key)) {
      Graph fresh = build_layer(layer, width, extent_);
      allocate_graph(fresh);
      kept_[key] = std::move(fresh);
    }
    device_.compute(kept_[key]->graph);
    idle_ = false;
  }
  finish(layer, results);
}

void DeviceStages::before_attention(LayerId layer, int32_t first, int32_t count, float* q, float* k, float* v) {
  run_once(build_before(layer, first, count));
  const auto read = [&](const ggml_tensor* tensor, float* to) {
    device_.read(tensor, to, static_cast<uint64_t>(first) * tensor->nb[1],
                 static_cast<uint64_t>(count) * tensor->nb[1]);
  };
  read(q_, q);
  read(k_, k);
  if (v_ != nullptr) read(v_, v);
}

void DeviceStages::mirrored_attention(LayerId layer) { run_once(build_mirrored(layer)); }

void DeviceStages::write_attended(int32_t first, int32_t count, const float* attended) {
  device_.write(attended_, attended, static_cast<uint64_t>(first) * attended_->nb[1],
                static_cast<uint64_t>(count) * attended_->nb[1]);
}

void DeviceStages::after_attention(LayerId layer, int32_t first, int32_t count) {
  run_once(build_after(layer, first, count));
}

void DeviceStages::finish(LayerId layer, const LayerResults& results) {
  bool reads = false;
  const auto read = [&](const ggml_tensor* tensor, float* to) {
    device_.read(tensor, to, 0, tensor->nb[1] * static_cast<uint64_t>(count_));
    reads = true;
  };
  const bool has_experts = !layout_.layers[index(layer)].experts.empty();
  if (has_experts) {
    read(router_logits_, results.router_logits);
    if (results.ffn_input != nullptr) read(ffn_input_, results.ffn_input);
  }
  for (size_t i = 0; i < probes_.size() && padded(count_) <= shape_.max_window; ++i) {
    if (probes_[i].at == layer) read(probe_logits_[i], results.probe_logits[i]);
  }
  if (reads) wait();
}

void DeviceStages::head(int32_t first, int32_t count, float* logits) {
  // In fixed mode a window's logits are made for its whole width.
  const bool whole = fixed() && count_ <= shape_.fixed_window;
  run_once(whole ? build_head(0, shape_.fixed_window) : build_head(first, count));
  const uint64_t offset = whole ? static_cast<uint64_t>(first) * logits_->nb[1] : 0;
  device_.read(logits_, logits, offset, static_cast<uint64_t>(count) * logits_->nb[1]);
  wait();
}

void DeviceStages::head(std::span<const int32_t> columns, float* logits) {
  write(head_columns_, columns);
  run_once(build_gathered_head(static_cast<int32_t>(columns.size())));
  device_.read(logits_, logits, 0, columns.size() * logits_->nb[1]);
  wait();
}

void DeviceStages::run_experts(const ExpertBank& bank, LayerId layer, std::span<const int32_t> token_of_row,
                               std::span<const int32_t> slot_of_row, int32_t first_row) {
  const auto rows = static_cast<int32_t>(token_of_row.size());
  CHECK(rows > 0 && first_row + rows <= expert_rows_->ne[1]);
  const uint64_t offset = static_cast<uint64_t>(first_row) * sizeof(int32_t);
  write(row_tokens_, token_of_row, offset);
  write(row_slots_, slot_of_row, offset);
  run_once(build_experts(bank, layer, rows, first_row));
}

void DeviceStages::set_expert_rows(std::span<const float> rows, int32_t first_row) {
  write(expert_rows_, rows, static_cast<uint64_t>(first_row) * expert_rows_->nb[1]);
}

void DeviceStages::add_experts(std::span<const int32_t> row_of_route, std::span<const float> weight_of_route) {
  CHECK(row_of_route.size() == static_cast<size_t>(count_) * static_cast<size_t>(config_.n_expert_used));
  write(route_rows_, row_of_route);
  write(route_weights_, weight_of_route);
  run_once(build_add(count_));
}

}  // namespace drafthorse
