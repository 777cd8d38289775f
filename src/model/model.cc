#include "model/model.h"

#include <fmt/format.h>
#include <ggml-alloc.h>

#include <algorithm>

#include "base/units.h"
#include "model/host_stage_builder.h"
#include "ops/linear.h"

namespace drafthorse {
namespace {

// Windows up to this size keep their graphs; longer ones pay tens of microseconds for building.
constexpr int32_t kMostKeptWindow = 17;
// With fewer columns per part the device would be kept busy by starting work more than by work.
constexpr int32_t kLeastPart = 16;
constexpr size_t kProbeTensors = 12;  // that a probe or a tap adds to a layer's graph at most

}  // namespace

Model::Model(const ModelConfig& config, Compute& compute, const ModelOptions& options)
    : config_(config),
      compute_(compute),
      options_(options),
      nodes_({compute.pool(), ops::simd::kernels(options.isa)}),
      attention_({compute.pool(), ops::simd::kernels(options.isa)},
                 {.key_dim = config.head_dim,
                  .value_dim = config.value_dim,
                  .n_head = config.n_head,
                  .n_head_kv = config.n_head_kv,
                  .kv_type = (options.kv != nullptr ? options.kv->shape().type : options.kv_type),
                  .scale = config.attention_scale,
                  .window = config.attention_window}),
      family_(find_family(config.architecture)) {
  CHECK(family_ != nullptr);
}

Model::~Model() {
  if (scratch_ != nullptr) ggml_gallocr_free(scratch_);
}

Result<std::unique_ptr<Model>> Model::create(const GgufIndex& index, const ModelConfig& config, Compute& compute,
                                             const ModelOptions& options) {
  CHECK(options.context > 0 && options.workspace.max_window > 0);
  CHECK(options.workspace.columns >= options.workspace.max_window);
  std::unique_ptr<Model> model(new Model(config, compute, options));
  WeightDeclarations declarations(index);
  model->weights_ = model->family_->declare(declarations, config);
  RETURN_IF_ERROR(declarations.finish());
  if (options.device != nullptr) model->leave_on_host(declarations);
  model->layout_ = std::move(declarations.layout());
  ASSIGN_OR_RETURN(model->dense_, DenseWeights::reserve(declarations, options.device));
  if (options.kv == nullptr) {
    ASSIGN_OR_RETURN(model->own_kv_, KvCache::reserve(config, {options.context, options.sequences, options.kv_type,
                                                               options.host_attention ? nullptr : options.device}));
  }
  ASSIGN_OR_RETURN(model->workspace_, Workspace::reserve(config, model->layout_, options.workspace));
  if (options.device != nullptr) {
    CHECK(options.host_attention || options.sequences == 1);
    CHECK(model->kv().device() == (options.host_attention ? nullptr : options.device));
    if (options.host_attention) {
      ASSIGN_OR_RETURN(model->host_attention_,
                       HostAttention::create(model->config_, compute, model->nodes_, model->attention_, model->kv(),
                                             model->workspace_));
    }
    const DeviceStageShape shape = {options.workspace.columns, options.workspace.max_window, options.fixed_window,
                                    options.host_attention};
    model->device_stages_ = std::make_unique<DeviceStages>(*options.device, model->config_, *model->family_,
                                                           model->weights_, model->layout_, model->kv(), shape);
    RETURN_IF_ERROR(model->device_stages_->plan({}));
  }
  model->measure_scratch();
  return model;
}

// What the host does for a device: it looks tokens up, and it routes.
void Model::leave_on_host(WeightDeclarations& declarations) {
  if (weights_.output == weights_.token_embedding) weights_.output = declarations.duplicate(weights_.token_embedding);
  declarations.keep_on_host(weights_.token_embedding);
  for (const LayerWeights& layer : weights_.layers) {
    if (layer.router_bias != nullptr) declarations.keep_on_host(layer.router_bias);
  }
}

Status Model::set_probes(std::vector<RouterProbe> probes) {
  CHECK(attention_graphs_.empty());
  probes_ = std::move(probes);
  probe_offsets_.clear();
  uint64_t bytes = 0;
  for (const RouterProbe& probe : probes_) {
    CHECK(probe.router != nullptr && probe.router->ne[0] == config_.n_embd);
    probe_offsets_.push_back(bytes);
    bytes += sizeof(float) * static_cast<uint64_t>(probe.router->ne[1] * options_.workspace.max_window);
  }
  ASSIGN_OR_RETURN(probe_logits_, DeviceBuffer::reserve(bytes));
  if (device_stages_ != nullptr) return device_stages_->plan(probes_);
  measure_scratch();
  return {};
}

Status Model::set_mirror(int32_t slots, int32_t rows) {
  CHECK(host_attention_ != nullptr && mirror_ == nullptr);
  auto mirror = std::make_unique<MirroredAttention>(device_stages_->device(), config_, kv(), slots, rows);
  device_stages_->set_mirror(mirror.get());
  const Status planned = device_stages_->plan(probes_);
  if (!planned.ok()) {
    device_stages_->set_mirror(nullptr);
    CHECK(device_stages_->plan(probes_).ok());  // as before
    return planned;
  }
  mirror_ = std::move(mirror);
  return {};
}

std::span<const float> Model::probe_logits(size_t probe, int32_t column) const {
  const auto experts = static_cast<size_t>(probes_[probe].router->ne[1]);
  const auto* logits = reinterpret_cast<const float*>(probe_logits_.data() + probe_offsets_[probe]);
  return {logits + static_cast<size_t>(column) * experts, experts};
}

Status Model::tap_ffn_inputs() {
  CHECK(attention_graphs_.empty());
  const int64_t floats = int64_t{config_.n_embd} * options_.workspace.columns;
  ASSIGN_OR_RETURN(tapped_, DeviceBuffer::reserve(sizeof(float) * static_cast<uint64_t>(floats)));
  measure_scratch();
  return {};
}

std::span<const float> Model::ffn_input(int32_t column) const {
  CHECK(tapped_.bytes() > 0 && column < options_.workspace.columns);
  const auto width = static_cast<size_t>(config_.n_embd);
  return {reinterpret_cast<const float*>(tapped_.data()) + static_cast<size_t>(column) * width, width};
}

size_t Model::graph_tensors() const {
  std::map<LayerId, size_t> probes_at;
  size_t most = 0;
  for (const RouterProbe& probe : probes_) most = std::max(most, ++probes_at[probe.at]);
  return family_->layer_tensors + (most + (tapped_.bytes() > 0 ? 1 : 0)) * kProbeTensors;
}

int32_t Model::kept_window() const { return std::min(kMostKeptWindow, options_.workspace.max_window); }

// The largest graph of each kind decides how much scratch the intermediates need.
void Model::measure_scratch() {
  if (scratch_ != nullptr) ggml_gallocr_free(scratch_);
  scratch_bytes_ = 0;
  scratch_ = ggml_gallocr_new(ggml_backend_get_default_buffer_type(compute_.backend()));
  CHECK(scratch_ != nullptr);
  const int32_t tokens = std::min(kStageTokens, options_.workspace.columns);
  const auto measure = [&](const std::unique_ptr<Graph>& graph) {
    CHECK(ggml_gallocr_reserve(scratch_, graph->graph));
    scratch_bytes_ = std::max<uint64_t>(scratch_bytes_, ggml_gallocr_get_buffer_size(scratch_, 0));
  };
  measure(build_embed(device_stages_ != nullptr ? options_.workspace.columns : tokens));
  if (device_stages_ != nullptr) return;
  for (int32_t layer = 0; layer < config_.n_layer; ++layer) {
    measure(build_attention(LayerId{layer}, 0, tokens));
    // A smaller graph may, in principle, be laid out in more memory than a larger one, and kept graphs must never
    // see the buffer move.
    for (int32_t count = 1; count <= kept_window(); ++count) measure(build_attention(LayerId{layer}, 0, count));
  }
  measure(build_head(0, options_.workspace.max_window));
}

Status Model::load(const FileSet& files, ReadQueue& queue, const std::function<bool(uint64_t, uint64_t)>& progress) {
  if (device_stages_ != nullptr) {
    RETURN_IF_ERROR(dense_.allocate());
    RETURN_IF_ERROR(own_kv_.allocate());
    if (host_attention_ != nullptr) RETURN_IF_ERROR(host_attention_->allocate(device_stages_->device()));
    if (mirror_ != nullptr) RETURN_IF_ERROR(mirror_->allocate());
    RETURN_IF_ERROR(device_stages_->allocate());
  }
  return dense_.load(files, queue, progress);
}

void Model::account(MemoryLedger& ledger, const std::string& prefix) const {
  const uint64_t graphs = static_cast<uint64_t>(kept_window()) * static_cast<uint64_t>(config_.n_layer) *
                          StageGraph::context_bytes(graph_tensors());
  // A pass's routing: an expert and a weight per (layer, token, rank), and the tokens of each expert.
  const uint64_t routing = static_cast<uint64_t>(options_.workspace.columns) *
                           static_cast<uint64_t>(config_.n_expert_used) *
                           (8 * static_cast<uint64_t>(config_.n_layer) + 8);
  ledger.add(prefix + "dense weights", dense_.bytes());
  if (device_stages_ != nullptr) {
    ledger.add("staging", dense_.staging_bytes());
    ledger.add(prefix + "activations", workspace_.bytes() + scratch_bytes_ + routing + probe_logits_.bytes() +
                                           tapped_.bytes() + device_stages_->queued_bytes());
    ledger.add(prefix + "graphs", device_stages_->graph_bytes());
    if (host_attention_ != nullptr) ledger.add(prefix + "attention", host_attention_->bytes());
    return;
  }
  // Of many sequences not every row is ever written: how many may be is for who admits them to say.
  if (!shares_kv() && options_.sequences == 1) ledger.add(prefix + "KV cache", own_kv_.bytes());
  const uint64_t attention = ops::attention_workspace_bytes(
      attention_.shape, std::min(kStageTokens, options_.workspace.columns), options_.context);
  ledger.add(prefix + "activations",
             workspace_.bytes() + scratch_bytes_ + routing + attention + probe_logits_.bytes() + tapped_.bytes());
  ledger.add(prefix + "graphs", graphs);
}

void Model::account_device(MemoryLedger& ledger, const std::string& prefix) const {
  if (device_stages_ == nullptr) return;
  ledger.add(prefix + "dense weights", dense_.device_bytes());
  if (!shares_kv() && host_attention_ == nullptr) ledger.add(prefix + "KV cache", own_kv_.bytes());
  if (mirror_ != nullptr) ledger.add(prefix + "keys and values of texts", mirror_->bytes());
  ledger.add(prefix + "activations", device_stages_->bytes());
}

ggml_tensor* Model::column_view(Graph& graph, ggml_type type, const void* base, int64_t width, int32_t first,
                                int32_t count) const {
  ggml_tensor* tensor = width == 1 ? ggml_new_tensor_1d(graph.context, type, count)
                                   : ggml_new_tensor_2d(graph.context, type, width, count);
  workspace_.buffer().place(tensor,
                            workspace_.offset_of(base) + ggml_row_size(type, width) * static_cast<uint64_t>(first));
  return tensor;
}

std::unique_ptr<Model::Graph> Model::build_embed(int32_t count) {
  auto graph = std::make_unique<Graph>(graph_tensors());
  ggml_tensor* tokens = column_view(*graph, GGML_TYPE_I32, workspace_.tokens, 1, 0, count);
  ggml_tensor* rows = ggml_get_rows(graph->context, weights_.token_embedding, tokens);
  workspace_.buffer().place(rows, workspace_.offset_of(workspace_.residual));
  ggml_build_forward_expand(graph->graph, rows);
  return graph;
}

std::unique_ptr<Model::Graph> Model::build_attention(LayerId layer, int32_t first, int32_t count) {
  auto graph = std::make_unique<Graph>(graph_tensors());
  HostStageBuilder builder(graph->context, config_, nodes_, attention_);
  const LayerInputs inputs = {
      column_view(*graph, GGML_TYPE_F32, workspace_.residual, config_.n_embd, first, count),
      column_view(*graph, GGML_TYPE_I32, workspace_.positions, 1, first, count),
      column_view(*graph, GGML_TYPE_I64, workspace_.kv_rows, 1, first, count),
  };
  const LayerStage stage = family_->build_layer(builder, weights_, kv(), index(layer), inputs);
  // Results go straight to their columns. The sum into the residual may overwrite its own input, element by element.
  const auto place = [&](ggml_tensor* tensor, const void* base, uint64_t row_bytes) {
    workspace_.buffer().place(tensor, workspace_.offset_of(base) + row_bytes * static_cast<uint64_t>(first));
    ggml_build_forward_expand(graph->graph, tensor);
  };
  if (stage.router_logits != nullptr) {
    const ExpertLayer& experts = layout_.layers[index(layer)];
    ggml_tensor* quantized = builder.quantized(stage.ffn_input, experts.gate.type);
    place(stage.router_logits, workspace_.router_logits, sizeof(float) * static_cast<uint64_t>(config_.n_expert));
    // Rows of this layer's type lie dense from the first column on.
    place(quantized, workspace_.ffn_input, quantized->nb[1]);
  }
  for (size_t i = 0; i < probes_.size() && first == 0 && count <= options_.workspace.max_window; ++i) {
    const RouterProbe& probe = probes_[i];
    if (probe.at != layer) continue;
    ggml_tensor* x = stage.ffn_input;
    if (probe.other_norm.weight != nullptr) {
      ggml_context* context = graph->context;
      if (probe.norm.bias != nullptr) x = ggml_sub(context, x, probe.norm.bias);
      x = ggml_mul(context, ggml_div(context, x, probe.norm.weight), probe.other_norm.weight);
      if (probe.other_norm.bias != nullptr) x = ggml_add(context, x, probe.other_norm.bias);
    }
    ggml_tensor* logits = builder.linear(probe.router, x, probe.offset);
    probe_logits_.place(logits, probe_offsets_[i]);
    ggml_build_forward_expand(graph->graph, logits);
  }
  if (tapped_.bytes() > 0) {
    ggml_tensor* copy = ggml_cont(graph->context, stage.ffn_input);
    tapped_.place(copy, sizeof(float) * static_cast<uint64_t>(config_.n_embd) * static_cast<uint64_t>(first));
    ggml_build_forward_expand(graph->graph, copy);
  }
  place(stage.residual, workspace_.residual, sizeof(float) * static_cast<uint64_t>(config_.n_embd));
  return graph;
}

std::unique_ptr<Model::Graph> Model::build_head(int32_t first, int32_t count) {
  auto graph = std::make_unique<Graph>(graph_tensors());
  HostStageBuilder builder(graph->context, config_, nodes_, attention_);
  ggml_tensor* x = column_view(*graph, GGML_TYPE_F32, workspace_.residual, config_.n_embd, first, count);
  ggml_tensor* logits = builder.linear(
      weights_.output, builder.rms_norm(x, weights_.output_norm, weights_.output_norm_bias), weights_.output_bias);
  workspace_.buffer().place(logits, workspace_.offset_of(workspace_.logits));
  ggml_build_forward_expand(graph->graph, logits);
  return graph;
}

void Model::run(Graph& graph) {
  CHECK(ggml_gallocr_alloc_graph(scratch_, graph.graph));
  CHECK(ggml_gallocr_get_buffer_size(scratch_, 0) <= scratch_bytes_);
  compute_.run(graph.graph);
}

void Model::embed(std::span<const SequenceRun> runs) {
  int32_t column = 0;
  int32_t position = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    const int32_t sequence = runs[i].sequence;
    if (i == 0 || runs[i - 1].sequence != sequence) position = kv().length(sequence);
    CHECK(column + static_cast<int32_t>(runs[i].tokens.size()) <= options_.workspace.columns);
    CHECK(position + static_cast<int32_t>(runs[i].tokens.size()) <= kv().context());
    for (const int32_t token : runs[i].tokens) {
      CHECK(token >= 0 && token < config_.n_vocab);
      workspace_.tokens[column] = token;
      workspace_.positions[column] = position;
      workspace_.kv_rows[column] = kv().first_row(sequence) + position;
      ++column;
      ++position;
    }
  }
  const std::unique_ptr<Graph> graph = build_embed(column);
  run(*graph);
  columns_ = column;
  kept_columns_.clear();
  if (device_stages_ == nullptr) return;
  const auto count = static_cast<size_t>(column);
  device_stages_->begin(workspace_.residual, {workspace_.positions, count}, {workspace_.kv_rows, count});
  if (mirror_ == nullptr) return;
  std::vector<SequenceColumn> columns;
  for (const SequenceRun& run_of : runs) columns.resize(columns.size() + run_of.tokens.size(), {run_of.sequence, 0});
  for (size_t i = 0; i < columns.size(); ++i) columns[i].position = workspace_.positions[i];
  mirrored_ = mirror_->begin(columns);
}

void Model::attention(LayerId layer, int32_t first, int32_t count) {
  CHECK(count > 0 && count <= stage_tokens());
  if (device_stages_ != nullptr) {
    attention_on_device(layer);
    return;
  }
  if (first != 0 || count > kept_window()) {
    const std::unique_ptr<Graph> graph = build_attention(layer, first, count);
    run(*graph);
    return;
  }
  std::unique_ptr<Graph>& graph = attention_graphs_[{index(layer), count}];
  if (graph == nullptr) {
    graph = build_attention(layer, first, count);
    // Addresses into the scratch stay valid: the buffer never grows after measure_scratch().
    CHECK(ggml_gallocr_alloc_graph(scratch_, graph->graph));
    CHECK(ggml_gallocr_get_buffer_size(scratch_, 0) <= scratch_bytes_);
  }
  compute_.run(graph->graph);
}

void Model::attention_on_device(LayerId layer) {
  LayerResults results = {workspace_.router_logits, nullptr, {}};
  // Of more columns the host computes no experts.
  if (tapped_.bytes() > 0 && columns_ <= options_.workspace.max_window) {
    results.ffn_input = reinterpret_cast<float*>(tapped_.data());
  }
  for (const uint64_t offset : probe_offsets_) {
    results.probe_logits.push_back(reinterpret_cast<float*>(probe_logits_.data() + offset));
  }
  if (host_attention_ == nullptr) {
    device_stages_->layer(layer, results);
    return;
  }
  if (mirror_ != nullptr && mirror_->any()) {
    attend_on_both(layer);
  } else {
    attend_in_turns(layer);
  }
  device_stages_->finish(layer, results);
}

// In two parts, where they are worth it: while the host attends to one, the device computes what comes before the
// other's attention, or after the first one's.
void Model::attend_in_turns(LayerId layer) {
  HostAttention& host = *host_attention_;
  struct Part {
    int32_t first;
    int32_t count;
    int mark;
  };
  std::vector<Part> parts = {{0, columns_, 0}};
  if (columns_ >= 2 * kLeastPart) parts = {{0, columns_ / 2, 0}, {columns_ / 2, columns_ - columns_ / 2, 0}};
  for (Part& part : parts) {
    device_stages_->before_attention(layer, part.first, part.count, host.q(part.first), host.k(part.first),
                                     host.has_values() ? host.v(part.first) : nullptr);
    part.mark = device_stages_->device().mark();
  }
  for (const Part& part : parts) {
    device_stages_->device().wait_for(part.mark);
    host.attend(layer, part.first, part.count);
    device_stages_->write_attended(part.first, part.count, host.attended(part.first));
    device_stages_->after_attention(layer, part.first, part.count);
  }
}

// The device attends to the mirrored columns while the host does to the others.
void Model::attend_on_both(LayerId layer) {
  HostAttention& host = *host_attention_;
  device_stages_->before_attention(layer, 0, columns_, host.q(0), host.k(0), host.has_values() ? host.v(0) : nullptr);
  const int mark = device_stages_->device().mark();
  device_stages_->mirrored_attention(layer);
  device_stages_->device().wait_for(mark);
  for (int32_t first = 0; first < columns_;) {
    const bool mirrored = mirrored_[static_cast<size_t>(first)];
    int32_t end = first + 1;
    while (end < columns_ && mirrored_[static_cast<size_t>(end)] == mirrored) ++end;
    if (mirrored) {
      host.write(layer, first, end - first);
    } else {
      host.attend(layer, first, end - first);
      device_stages_->write_attended(first, end - first, host.attended(first));
    }
    first = end;
  }
  device_stages_->after_attention(layer, 0, columns_);
}

void Model::keep_columns(std::span<const int32_t> columns) {
  if (device_stages_ != nullptr) {
    kept_columns_.assign(columns.begin(), columns.end());
    return;
  }
  const auto n_embd = static_cast<size_t>(config_.n_embd);
  for (size_t i = 0; i < columns.size(); ++i) {
    const auto from = static_cast<size_t>(columns[i]);
    if (from != i) std::copy_n(workspace_.residual + from * n_embd, n_embd, workspace_.residual + i * n_embd);
  }
}

std::span<const float> Model::router_bias(LayerId layer) const {
  const ggml_tensor* bias = weights_.layers[index(layer)].router_bias;
  if (bias == nullptr) return {};
  return {static_cast<const float*>(bias->data), static_cast<size_t>(config_.n_expert)};
}

void Model::route(LayerId layer, std::span<const float> logits, std::span<RoutedExpert> out) const {
  route_token(logits, router_bias(layer), config_, out);
}

void Model::ranking_scores(LayerId layer, std::span<const float> logits, std::vector<float>& out) const {
  drafthorse::ranking_scores(logits, router_bias(layer), config_.routing, out);
}

void Model::head(int32_t first, int32_t count) {
  CHECK(count > 0 && count <= options_.workspace.max_window);
  if (device_stages_ != nullptr && !kept_columns_.empty()) {
    device_stages_->head(std::span(kept_columns_).subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
                         workspace_.logits);
    return;
  }
  if (device_stages_ != nullptr) {
    device_stages_->head(first, count, workspace_.logits);
    return;
  }
  const std::unique_ptr<Graph> graph = build_head(first, count);
  run(*graph);
}

}  // namespace drafthorse
