#include "forward/device_experts.h"

#include <algorithm>

#include "base/units.h"
#include "ops/activation.h"
#include "plan/miss_placement.h"

namespace drafthorse {
namespace {

constexpr size_t kMostOfWave = 8;  // experts

}  // namespace

DeviceExperts::DeviceExperts(Model& model, ExpertCache& host, ExpertBank& bank, DeviceSlots slots, Placement placement,
                             const Clock& clock, const std::atomic<bool>* interrupted)
    : model_(model),
      stages_(*model.device_stages()),
      host_(host),
      bank_(bank),
      slots_(std::move(slots)),
      placement_(placement),
      clock_(clock),
      interrupted_(interrupted),
      tier_(stages_.device(), host, bank, slots_, clock),
      stats_(tier_.stats()),
      first_row_of_(static_cast<size_t>(model.config().n_expert)) {}

Status DeviceExperts::run(const LayerRouting& routing) {
  settle();
  tier_.begin_turn(routing.layer);
  rows_ = 0;
  DeviceLayerStats& stats = stats_[index(routing.layer)];
  std::vector<ExpertId> there;
  std::vector<ExpertId> missing;
  for (const ExpertId expert : routing.experts) {
    const ExpertKey key{routing.layer, expert};
    (slots_.find(key) ? there : missing).push_back(expert);
    if (!slots_.find(key)) continue;
    if (slots_.came_ahead(key)) ++stats.prefetched_used;
    slots_.use(key);
  }
  stats.hits += static_cast<int64_t>(there.size());
  launch(routing, there);
  host_.begin_turn(routing.layer, missing);
  if (!missing.empty()) RETURN_IF_ERROR(bring(routing, missing));
  add(routing);
  return {};
}

void DeviceExperts::run_resident(LayerId layer, std::span<const RoutedExpert> routes) {
  settle();
  const auto k = static_cast<size_t>(model_.config().n_expert_used);
  CHECK(!routes.empty() && routes.size() <= k);
  std::vector<int32_t> slots;
  std::vector<int32_t> rows(k, 0);
  std::vector<float> weights(k, 0.0F);  // of ranks that no expert has: row 0, for nothing
  for (size_t i = 0; i < routes.size(); ++i) {
    slots.push_back(slots_.pin({layer, routes[i].expert}));
    rows[i] = static_cast<int32_t>(i);
    weights[i] = routes[i].weight;
  }
  stages_.device().await_copies();
  stages_.run_experts(bank_, layer, std::vector<int32_t>(slots.size(), 0), slots, 0);
  launched_at_ = stages_.device().waits();
  stages_.add_experts(rows, weights);
}

// Once the device has done what was launched last, the copies that it waited for are done, too. Between layers with
// experts it is: the host has read the router's logits.
void DeviceExperts::settle() {
  if (launched_at_ == stages_.device().waits()) stages_.wait();
  release_copied();
  slots_.unpin_all();
}

// What has been copied by now.
void DeviceExperts::release_copied() {
  for (const ExpertId expert : held_in_ram_) host_.release(expert);
  held_in_ram_.clear();
}

void DeviceExperts::abandon() {
  tier_.abandon();
  stages_.wait();
  held_in_ram_.clear();  // the cache gives its demand up itself
  slots_.unpin_all();
}

// Which of the missing experts the host computes.
std::vector<bool> DeviceExperts::place(const LayerRouting& routing, std::span<const ExpertId> missing) const {
  // A long run has more rows than the host's buffers, and its copies serve many tokens each.
  const bool window = routing.count <= model_.workspace().shape().max_window;
  if (placement_ == Placement::kFixed || !window || costs_.link_bytes_per_s <= 0) {
    for (const ExpertId expert : missing) {
      if (trace_ != nullptr) trace_->placed({routing.layer, expert}, false, 0, 0, clock_.now_ns());
    }
    return std::vector<bool>(missing.size());
  }
  const auto bytes = static_cast<double>(bank_.slot_bytes(bank_.kind_of(routing.layer)));
  std::vector<MissingExpert> costs;
  for (const ExpertId expert : missing) {
    const auto more = static_cast<double>(routing.tokens_of[index(expert)].size() - 1);
    costs.push_back({bytes / costs_.link_bytes_per_s,
                     bytes / costs_.host_bytes_per_s + more * bytes / costs_.host_row_bytes_per_s});
  }
  const std::vector<bool> on_host = compute_on_host(costs);
  for (size_t i = 0; i < missing.size() && trace_ != nullptr; ++i) {
    trace_->placed({routing.layer, missing[i]}, on_host[i], costs[i].copy_s, costs[i].host_s, clock_.now_ns());
  }
  return on_host;
}

Status DeviceExperts::bring(const LayerRouting& routing, std::span<const ExpertId> missing) {
  DeviceLayerStats& stats = stats_[index(routing.layer)];
  const std::vector<bool> on_host = place(routing, missing);
  const auto is_on_host = [&](ExpertId expert) {
    return on_host[static_cast<size_t>(std::find(missing.begin(), missing.end(), expert) - missing.begin())];
  };
  // What waits for copies cannot make room for reads.
  if (std::any_of(missing.begin(), missing.end(), [&](ExpertId e) { return !host_.resident({routing.layer, e}); })) {
    tier_.settle();
  }
  host_.demand_portion(missing);
  size_t to_come = missing.size();
  while (to_come > 0) {
    if (interrupted_ != nullptr && *interrupted_) return interrupted_error();
    ASSIGN_OR_RETURN(const std::vector<ExpertId> ready, host_.take_ready());
    to_come -= ready.size();
    std::vector<ExpertId> wave;
    std::vector<ExpertId> for_host;
    for (const ExpertId expert : ready) {
      if (is_on_host(expert)) {
        for_host.push_back(expert);
        continue;
      }
      const ExpertKey key{routing.layer, expert};
      std::optional<int> slot = slots_.claim(key);
      if (!slot) {
        // Everything is in use: once the device has computed it, it may go.
        launch(routing, wave);
        wave.clear();
        stages_.wait();
        ++stats.extra_waits;
        slots_.unpin_all();
        slot = slots_.claim(key);
        CHECK(slot.has_value());
      }
      copy(routing.layer, expert, *slot);
      held_in_ram_.push_back(expert);
      wave.push_back(expert);
      // Of many, the first are computed while the others are copied.
      if (wave.size() == kMostOfWave) {
        launch(routing, wave);
        wave.clear();
      }
    }
    launch(routing, wave);
    run_on_host(routing, for_host);
    for (const ExpertId expert : for_host) host_.release(expert);
    host_.poll();
    // Others may wait for the slots in RAM that these are copied from.
    if (to_come == 0) break;
    stages_.device().wait_for_copies();
    release_copied();
  }
  return {};
}

void DeviceExperts::copy(LayerId layer, ExpertId expert, int slot) {
  tier_.copy({layer, expert}, slot);
  DeviceLayerStats& stats = stats_[index(layer)];
  ++stats.copied;
  stats.bytes_copied += bank_.slot_bytes(bank_.kind_of(layer));
}

void DeviceExperts::number_rows(const LayerRouting& routing, std::span<const ExpertId> experts) {
  for (const ExpertId expert : experts) {
    first_row_of_[index(expert)] = rows_;
    rows_ += static_cast<int32_t>(routing.tokens_of[index(expert)].size());
  }
}

// Queues these experts, whose copies at least are queued.
void DeviceExperts::launch(const LayerRouting& routing, std::span<const ExpertId> experts) {
  if (experts.empty()) return;
  const int32_t first = rows_;
  number_rows(routing, experts);
  std::vector<int32_t> tokens;
  std::vector<int32_t> slots;
  for (const ExpertId expert : experts) {
    const std::vector<int32_t>& of = routing.tokens_of[index(expert)];
    tokens.insert(tokens.end(), of.begin(), of.end());
    slots.insert(slots.end(), of.size(), *slots_.find({routing.layer, expert}));
  }
  stages_.device().await_copies();
  stages_.run_experts(bank_, routing.layer, tokens, slots, first);
  launched_at_ = stages_.device().waits();
}

// work_, whose rows read these tokens of the workspace's input.
void DeviceExperts::compute_work(std::span<const int32_t> token_of_row, size_t input_row_bytes) {
  const Workspace& workspace = model_.workspace();
  model_.run_experts({{workspace.ffn_input, input_row_bytes},
                      token_of_row,
                      work_,
                      workspace.expert_hidden,
                      workspace.expert_hidden_quantized,
                      workspace.expert_output});
}

void DeviceExperts::run_on_host(const LayerRouting& routing, std::span<const ExpertId> experts) {
  if (experts.empty()) return;
  Workspace& workspace = model_.workspace();
  const int32_t n_embd = model_.config().n_embd;
  const ops::ActivationFormat format = ops::activation_format(model_.layout().layers[index(routing.layer)].gate.type);
  const size_t row_bytes = ops::activation_row_bytes(format, n_embd);
  for (int32_t token = 0; token < routing.count; ++token) {
    ops::write_activation_row(model_.processor().kernels, model_.ffn_input(token).data(),
                              workspace.ffn_input + static_cast<size_t>(token) * row_bytes, n_embd, format);
  }
  const int32_t first = rows_;
  number_rows(routing, experts);
  CHECK(rows_ - first <= workspace.expert_rows);
  std::vector<int32_t> tokens;
  work_.clear();
  for (const ExpertId expert : experts) {
    const std::vector<int32_t>& of = routing.tokens_of[index(expert)];
    const auto begin = static_cast<int32_t>(tokens.size());
    tokens.insert(tokens.end(), of.begin(), of.end());
    work_.push_back({host_.weights(expert), begin, static_cast<int32_t>(tokens.size())});
  }
  compute_work(tokens, row_bytes);
  stages_.set_expert_rows({workspace.expert_output, tokens.size() * static_cast<size_t>(n_embd)}, first);
  stats_[index(routing.layer)].on_host += static_cast<int64_t>(experts.size());
}

void DeviceExperts::add(const LayerRouting& routing) {
  std::vector<int32_t> rows;
  std::vector<float> weights;
  const size_t k = routing.routes.size() / static_cast<size_t>(routing.count);
  for (size_t i = 0; i < routing.routes.size(); ++i) {
    const RoutedExpert& route = routing.routes[i];
    const std::vector<int32_t>& tokens = routing.tokens_of[index(route.expert)];
    const auto token = static_cast<int32_t>(i / k);
    const auto place = std::lower_bound(tokens.begin(), tokens.end(), token) - tokens.begin();
    rows.push_back(first_row_of_[index(route.expert)] + static_cast<int32_t>(place));
    weights.push_back(route.weight);
  }
  stages_.add_experts(rows, weights);
}

// Every layer's first experts before any layer's second: nothing is known yet of which will be used.
Status DeviceExperts::fill(const std::function<bool(int, int)>& progress) {
  settle();
  const ExpertLayout& layout = model_.layout();
  for (int32_t e = 0; e < model_.config().n_expert; ++e) {
    for (int32_t l = 0; l < static_cast<int32_t>(layout.n_layers()); ++l) {
      const ExpertKey key{LayerId{l}, ExpertId{e}};
      if (!model_.is_moe_layer(key.layer) || slots_.find(key) || slots_.full(key.layer)) continue;
      host_.demand(key.layer, {&key.expert, 1});
      const Status status = host_.wait_for(key.expert);
      if (!status.ok()) {
        host_.abandon();
        return status;
      }
      tier_.copy(key, *slots_.claim(key));
      stages_.device().wait_for_copies();
      host_.release(key.expert);
      if (progress && !progress(slots_.held(), slots_.slots())) return interrupted_error();
    }
  }
  stages_.device().await_copies();
  slots_.unpin_all();
  return {};
}

Status DeviceExperts::measure() {
  constexpr int kRows = 4;
  constexpr int kRounds = 3;
  settle();
  const ExpertLayout& layout = model_.layout();
  const auto layer = std::find_if(layout.layers.begin(), layout.layers.end(),
                                  [](const ExpertLayer& one) { return !one.experts.empty(); });
  if (layer == layout.layers.end()) return {};
  const ExpertKey key{LayerId{static_cast<int32_t>(layer - layout.layers.begin())}, ExpertId{0}};
  host_.demand(key.layer, {&key.expert, 1});
  const Status status = host_.wait_for(key.expert);
  if (!status.ok()) {
    host_.abandon();
    return status;
  }
  const auto bytes = static_cast<double>(bank_.slot_bytes(bank_.kind_of(key.layer)));
  const ops::ExpertWeights weights = host_.weights(key.expert);
  const std::optional<int> held = slots_.find(key);
  const int slot = held ? *held : *slots_.claim(key);
  // The fastest of a few: the first one pays for what is set up once.
  const auto fastest_s = [&](const auto& work) {
    double best = 1e9;
    for (int i = 0; i < kRounds; ++i) {
      const int64_t start = clock_.now_ns();
      work();
      best = std::min(best, seconds(std::max<int64_t>(1, clock_.now_ns() - start)));
    }
    return best;
  };
  const double copy_s = fastest_s([&] {
    bank_.copy(key.layer, slot, weights);
    stages_.device().wait_for_copies();
  });
  tier_.set_link_bytes_per_s(bytes / copy_s);
  if (placement_ == Placement::kFixed) {
    host_.release(key.expert);
    slots_.unpin_all();
    return {};
  }
  Workspace& workspace = model_.workspace();
  const ops::ActivationFormat format = ops::activation_format(layer->gate.type);
  const size_t row_bytes = ops::activation_row_bytes(format, model_.config().n_embd);
  const std::vector<float> input(static_cast<size_t>(model_.config().n_embd), 0.5F);
  ops::write_activation_row(model_.processor().kernels, input.data(), workspace.ffn_input, model_.config().n_embd,
                            format);
  const auto compute_s = [&](int rows) {
    const std::vector<int32_t> tokens(static_cast<size_t>(rows));
    work_.assign(1, {weights, 0, rows});
    return fastest_s([&] { compute_work(tokens, row_bytes); });
  };
  const double one_s = compute_s(1);
  const int more = std::min(kRows, workspace.expert_rows);
  const double row_s = more > 1 ? std::max(one_s / 100, (compute_s(more) - one_s) / (more - 1)) : one_s;
  costs_ = {bytes / copy_s, bytes / one_s, bytes / row_s};
  host_.release(key.expert);
  slots_.unpin_all();
  return {};
}

}  // namespace drafthorse
