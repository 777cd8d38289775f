// A pass's experts: how a layer's are computed, and which of the next layer's are read meanwhile.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/units.h"
#include "forward/forward_pass.h"
#include "plan/throughput_model.h"

namespace drafthorse {

namespace {

constexpr int64_t kAccumulateGrain = 16;  // rows
// While an expert's many rows are computed nobody polls: enough must be under way to keep the disk busy.
constexpr uint64_t kStreamBackgroundBytes = uint64_t{kReadQueueCapacity} * kReadPieceBytes;
constexpr uint64_t kLeastAheadBytes = 32 * kMiB;
constexpr double kAssumedReadRate = 1e9;  // bytes per second, until it has been seen

uint64_t least_ahead_bytes(uint64_t slot_bytes) {
  constexpr uint64_t kExperts = 2;
  return std::max(kExperts * slot_bytes, kLeastAheadBytes);
}

}  // namespace

int stream_slots(const ExpertLayout& layout) {
  const uint64_t slot = ExpertCache::slot_bytes(layout);
  if (slot == 0) return 0;
  return static_cast<int>(std::min<uint64_t>((least_ahead_bytes(slot) + slot - 1) / slot + 1,
                                             static_cast<uint64_t>(layout.total_experts())));
}

Status ForwardPass::experts(LayerId layer, int32_t count) {
  if (device_experts_ != nullptr) return experts_on_device(layer, count);
  if (count > model_.workspace().shape().max_window) return experts_in_order(layer, count);
  // A batch that reads ahead claims slots one by one: a demand for all of a layer's at once would take those of experts
  // that the next iteration uses again.
  const bool reads_ahead = is_batch_ && read_ahead_ != ReadAhead::kNever;
  const auto absent = [&](ExpertId expert) { return !cache_->resident({layer, expert}); };
  const bool streams = reads_ahead && std::any_of(union_.begin(), union_.end(), absent);
  return streams ? experts_in_order(layer, count) : experts_by_arrival(layer, count);
}

Status ForwardPass::experts_on_device(LayerId layer, int32_t count) {
  const bool window = count <= model_.workspace().shape().max_window;
  const int64_t stall_before = cache_->stats()[index(layer)].stall_ns;
  device_experts_->tier().set_background_limit(window && !is_batch_ ? kBackgroundBytesInFlight
                                                                    : kStreamBackgroundBytes);
  if (window) tell_routed(layer);
  RETURN_IF_ERROR(device_experts_->run({layer, count, routes_[index(layer)], tokens_of_, union_}));
  if (window && observer() != nullptr) {
    observer()->demanded(layer);
    observer()->worked();
  }
  if (is_batch_) {
    // Behind this layer's copies, while it is computed.
    foresee_next_layer(layer, count);
    for (const ExpertKey key : ahead_) device_experts_->tier().prefetch(key);
  }
  stats_.stall_ns += cache_->stats()[index(layer)].stall_ns - stall_before;
  return {};
}

Status ForwardPass::experts_by_arrival(LayerId layer, int32_t count) {
  give_rows();
  CHECK(static_cast<int32_t>(token_of_row_.size()) <= model_.workspace().expert_rows);
  cache_->set_background_limit(is_batch_ ? kStreamBackgroundBytes : kBackgroundBytesInFlight);
  foresee_next_layer(layer, count);

  const int64_t stall_before = cache_->stats()[index(layer)].stall_ns;
  tell_routed(layer);
  cache_->demand(layer, union_);
  if (observer() != nullptr) observer()->demanded(layer);
  while (true) {
    if (interrupted_ != nullptr && *interrupted_) return interrupted_error();
    ASSIGN_OR_RETURN(const std::vector<ExpertId> ready, cache_->take_ready());
    if (ready.empty()) break;
    read_ahead(layer, {});
    compute_group(layer, ready);
    for (const ExpertId expert : ready) cache_->release(expert);
    if (observer() != nullptr) observer()->worked();
  }
  stats_.stall_ns += cache_->stats()[index(layer)].stall_ns - stall_before;

  add_rows(layer, count);
  return {};
}

// Every (token, expert) pair gets a row; an expert's rows are neighbours.
void ForwardPass::give_rows() {
  token_of_row_.clear();
  for (const ExpertId expert : union_) {
    first_row_of_[index(expert)] = static_cast<int32_t>(token_of_row_.size());
    const std::vector<int32_t>& tokens = tokens_of_[index(expert)];
    token_of_row_.insert(token_of_row_.end(), tokens.begin(), tokens.end());
  }
}

// What give_rows() gave a row, computed in any order: tokens_of_ is in ascending order and so are a token's routes, so
// that its experts are added in the order of their ids.
void ForwardPass::add_rows(LayerId layer, int32_t count) {
  Workspace& workspace = model_.workspace();
  const auto n_embd = static_cast<size_t>(model_.config().n_embd);
  clear_sum(count);
  model_.pool().run(count, kAccumulateGrain, [&](int64_t first, int64_t end) {
    for (auto t = static_cast<int32_t>(first); t < end; ++t) {
      for (const RoutedExpert& one : routed(layer, t)) {
        const std::vector<int32_t>& tokens = tokens_of_[index(one.expert)];
        const auto place = std::lower_bound(tokens.begin(), tokens.end(), t) - tokens.begin();
        const auto row = static_cast<size_t>(first_row_of_[index(one.expert)] + place);
        ops::accumulate(workspace.expert_sum + static_cast<size_t>(t) * n_embd, workspace.expert_output + row * n_embd,
                        one.weight, model_.config().n_embd);
      }
    }
  });
  add_sum(count);
}

void ForwardPass::clear_sum(int32_t count) {
  std::fill_n(model_.workspace().expert_sum, static_cast<size_t>(count) * static_cast<size_t>(model_.config().n_embd),
              0.0F);
}

void ForwardPass::add_sum(int32_t count) {
  const Workspace& workspace = model_.workspace();
  const size_t total = static_cast<size_t>(count) * static_cast<size_t>(model_.config().n_embd);
  for (size_t i = 0; i < total; ++i) workspace.residual[i] += workspace.expert_sum[i];
}

void ForwardPass::compute(LayerId layer, std::span<const int32_t> token_of_row, float* output) {
  const Workspace& workspace = model_.workspace();
  const ops::ActivationFormat format = ops::activation_format(model_.layout().layers[index(layer)].gate.type);
  model_.run_experts({{workspace.ffn_input, ops::activation_row_bytes(format, model_.config().n_embd)},
                      token_of_row,
                      work_,
                      workspace.expert_hidden,
                      workspace.expert_hidden_quantized,
                      output});
}

// Computes these demanded, handed-out experts for all of their rows.
void ForwardPass::compute_group(LayerId layer, std::span<const ExpertId> experts) {
  work_.clear();
  for (const ExpertId expert : experts) {
    const int32_t first = first_row_of_[index(expert)];
    work_.push_back({cache_->weights(expert), first, first + static_cast<int32_t>(tokens_of_[index(expert)].size())});
  }
  compute(layer, token_of_row_, model_.workspace().expert_output);
  look_after_reads();
}

Status ForwardPass::experts_in_order(LayerId layer, int32_t count) {
  // Where every (token, expert) pair's row can be kept until all are there, a batch computes what is there while it
  // waits for the others.
  const bool keeps_rows = is_batch_ && count * model_.config().n_expert_used <= model_.workspace().output_rows;
  if (keeps_rows) {
    give_rows();
    turn_.begin(*cache_, layer, union_);
  } else {
    clear_sum(count);
    turn_.begin_by_id(union_);
  }
  const int64_t stall_before = cache_->stats()[index(layer)].stall_ns;
  cache_->set_background_limit(kStreamBackgroundBytes);
  foresee_next_layer(layer, count);
  cache_->begin_turn(layer, union_);
  while (!turn_.done()) {
    if (interrupted_ != nullptr && *interrupted_) return interrupted_error();
    const ExpertId expert = turn_.take(*cache_, layer);
    cache_->demand_portion({&expert, 1});
    read_ahead(layer, turn_.awaited());
    RETURN_IF_ERROR(cache_->wait_for(expert));
    compute_expert(layer, expert, keeps_rows);
    cache_->release(expert);
    look_after_reads();
  }
  stats_.stall_ns += cache_->stats()[index(layer)].stall_ns - stall_before;
  if (keeps_rows)
    add_rows(layer, count);
  else
    add_sum(count);
  return {};
}

// All of the present layer's rows of one expert: kept as give_rows() has them, or added to their tokens' sums at once.
void ForwardPass::compute_expert(LayerId layer, ExpertId expert, bool keeps_rows) {
  Workspace& workspace = model_.workspace();
  const auto n_embd = static_cast<size_t>(model_.config().n_embd);
  const std::vector<int32_t>& tokens = tokens_of_[index(expert)];
  for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(workspace.expert_rows)) {
    const size_t rows = std::min(static_cast<size_t>(workspace.expert_rows), tokens.size() - begin);
    const size_t first_row = keeps_rows ? static_cast<size_t>(first_row_of_[index(expert)]) + begin : 0;
    work_.assign(1, {cache_->weights(expert), 0, static_cast<int32_t>(rows)});
    compute(layer, {tokens.data() + begin, rows}, workspace.expert_output + first_row * n_embd);
    if (keeps_rows) continue;
    // A row each to another token's sum: any thread may add it.
    model_.pool().run(static_cast<int64_t>(rows), kAccumulateGrain, [&](int64_t first, int64_t end) {
      for (int64_t row = first; row < end; ++row) {
        const int32_t t = tokens[begin + static_cast<size_t>(row)];
        const std::span<const RoutedExpert> routes = routed(layer, t);
        const auto route = std::find_if(routes.begin(), routes.end(),
                                        [expert](const RoutedExpert& one) { return one.expert == expert; });
        ops::accumulate(workspace.expert_sum + static_cast<size_t>(t) * n_embd,
                        workspace.expert_output + static_cast<size_t>(row) * n_embd, route->weight,
                        model_.config().n_embd);
      }
    });
  }
}

void ForwardPass::experts_among_residents(LayerId layer) {
  const ModelConfig& config = model_.config();
  const float* router_logits = model_.workspace().router_logits;
  std::vector<float> logits(router_logits, router_logits + config.n_expert);
  const auto absent = [&](ExpertId expert) { return !is_there({layer, expert}); };
  bool any = false;
  for (int32_t e = 0; e < config.n_expert; ++e) {
    if (absent(ExpertId{e}))
      logits[e] = -std::numeric_limits<float>::infinity();
    else
      any = true;
  }
  if (!any) return;  // this layer adds nothing
  std::vector<RoutedExpert> routes(static_cast<size_t>(config.n_expert_used));
  model_.route(layer, logits, routes);
  // Where fewer are there than a token uses, those share its weight.
  std::erase_if(routes, [&](const RoutedExpert& one) { return absent(one.expert); });
  if (routes.empty()) return;
  if (device_experts_ != nullptr) {
    device_experts_->run_resident(layer, routes);
    return;
  }
  std::vector<ExpertId> experts;
  for (const RoutedExpert& one : routes) experts.push_back(one.expert);
  cache_->borrow(layer, experts);
  work_.clear();
  for (const ExpertId expert : experts) {
    const auto row = static_cast<int32_t>(work_.size());
    work_.push_back({cache_->weights({layer, expert}), row, row + 1});
  }
  token_of_row_.assign(experts.size(), 0);
  compute(layer, token_of_row_, model_.workspace().expert_output);
  cache_->give_back();
  clear_sum(1);
  for (size_t row = 0; row < routes.size(); ++row) {
    ops::accumulate(model_.workspace().expert_sum,
                    model_.workspace().expert_output + row * static_cast<size_t>(config.n_embd), routes[row].weight,
                    config.n_embd);
  }
  add_sum(1);
}

// The next layer with experts; of a batch, which goes round and round, the first one after the last.
std::optional<LayerId> ForwardPass::next_moe_layer(LayerId layer) const {
  const int32_t n_layer = model_.config().n_layer;
  for (int32_t step = 1; step < n_layer; ++step) {
    const int32_t next = index(layer) + step;
    if (next >= n_layer && !is_batch_) break;
    if (model_.is_moe_layer(LayerId{next % n_layer})) return LayerId{next % n_layer};
  }
  return std::nullopt;
}

// Which experts of the next layer are likely enough to be used by as many tokens to be read before its router has
// spoken, and how much may be read ahead.
void ForwardPass::foresee_next_layer(LayerId layer, int32_t count) {
  ahead_.clear();
  ahead_bytes_ = least_ahead_bytes(slot_bytes_);
  const std::optional<LayerId> next = next_moe_layer(layer);
  if (read_ahead_ == ReadAhead::kNever || !next) return;
  const ModelConfig& config = model_.config();
  // What a session's window will use the scheduler foresees better; of a prompt that goes as a window this much is
  // sure.
  constexpr int64_t kUsesPerExpert = 4;
  const bool window = !is_batch_ && count <= model_.workspace().shape().max_window;
  if (window && int64_t{count} * config.n_expert_used < kUsesPerExpert * config.n_expert) return;
  const double even = static_cast<double>(config.n_expert_used) / config.n_expert;
  for (int32_t e = 0; e < config.n_expert; ++e) {
    const ExpertKey key{*next, ExpertId{e}};
    // A text uses experts unevenly, many texts less so.
    const double used = 1 - std::pow(1 - std::max(cache_->use_rate(key), even / 2), count);
    if (read_ahead_ == ReadAhead::kAlways || used >= kForeseenUse) ahead_.push_back(key);
  }
  // Between two layers' experts nobody computes any: what the disk brings meanwhile must have been asked for. Between
  // two passes of a batch as well, but nothing is gained: all slots hold what the next pass uses either way, and the
  // rest is to be read in it.
  const double gap_s = seconds(stage_ns_);
  const double rate = cache_->load_bytes_per_s() > 0 ? cache_->load_bytes_per_s() : kAssumedReadRate;
  // However fast it is, it brings no more between two looks at the reads than are handed to it.
  const int32_t looks = (count + model_.stage_tokens() - 1) / model_.stage_tokens();
  const uint64_t most = static_cast<uint64_t>(looks) * kStreamBackgroundBytes;
  ahead_bytes_ += std::min(most, static_cast<uint64_t>(gap_s * rate));
}

// Keeps reads under way while experts are computed: those that this layer still has to compute, then the next layer's.
// No further ahead than keeps the disk busy, since each expert read ahead takes the slot of one that would be used
// again.
void ForwardPass::read_ahead(LayerId layer, std::span<const ExpertId> still) {
  uint64_t bytes = 0;
  const auto read = [&](ExpertKey key) {
    if (!cache_->resident(key) || cache_->awaits_turn(key)) bytes += slot_bytes_;
    if (bytes > ahead_bytes_) return false;
    return cache_->prefetch(key) != Prefetched::kNoSlot;
  };
  for (const ExpertId expert : still) {
    if (!read({layer, expert})) return;
  }
  for (const ExpertKey key : ahead_) {
    if (!read(key)) return;
  }
}

}  // namespace drafthorse
