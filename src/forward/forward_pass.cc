#include "forward/forward_pass.h"

#include <algorithm>

namespace drafthorse {

ForwardPass::ForwardPass(Model& model, ExpertCache* cache, const Clock& clock, const std::atomic<bool>* interrupted)
    : model_(model), cache_(cache), clock_(clock), interrupted_(interrupted) {
  CHECK(model.config().is_moe() == (cache != nullptr));
  if (cache != nullptr) slot_bytes_ = ExpertCache::slot_bytes(cache->layout());
  routes_.resize(static_cast<size_t>(model.config().n_layer));
  tokens_of_.resize(static_cast<size_t>(model.config().n_expert));
  first_row_of_.resize(static_cast<size_t>(model.config().n_expert));
}

std::span<const float> ForwardPass::logits(int32_t column) const {
  const auto n_vocab = static_cast<size_t>(model_.config().n_vocab);
  return {model_.workspace().logits + static_cast<size_t>(column) * n_vocab, n_vocab};
}

std::span<const RoutedExpert> ForwardPass::routed(LayerId layer, int32_t token) const {
  const auto k = static_cast<size_t>(model_.config().n_expert_used);
  return {routes_[index(layer)].data() + static_cast<size_t>(token) * k, k};
}

Status ForwardPass::run(std::span<const int32_t> tokens, int32_t logits_wanted,
                        const std::function<void(double)>& progress) {
  CHECK(!tokens.empty() && logits_wanted >= 0);
  const int64_t start = clock_.now_ns();
  const int32_t length = model_.kv().length();
  const auto total = static_cast<int32_t>(tokens.size());
  CHECK(length + total <= model_.kv().context());
  stats_ = {};
  const int32_t columns = model_.workspace().shape().columns;
  for (int32_t done = 0; done < total;) {
    int32_t count = std::min(columns, total - done);
    // The last chunk must hold all tokens whose logits are wanted.
    const int32_t rest = total - done - count;
    if (rest > 0 && rest < logits_wanted) count = total - done - logits_wanted;
    const bool last = done + count == total;
    const auto part_progress = [&](double part) {
      if (progress) progress((done + part * count) / total);
    };
    const Status status = run_chunk(tokens.subspan(static_cast<size_t>(done), static_cast<size_t>(count)),
                                    last ? logits_wanted : 0, part_progress);
    if (!status.ok()) {
      abandon();
      model_.kv().truncate(length);
      return status;
    }
    model_.kv().extend(count);
    done += count;
    // Only a prompt takes more than one chunk, and all of it is text. The last one is the caller's to record.
    if (!last) record_prompt();
  }
  stats_.duration_ns = clock_.now_ns() - start;
  return {};
}

Status ForwardPass::run_chunk(std::span<const int32_t> tokens, int32_t logits_wanted,
                              const std::function<void(double)>& progress) {
  const auto count = static_cast<int32_t>(tokens.size());
  CHECK(logits_wanted <= std::min(count, model_.workspace().shape().max_window));
  const SequenceRun run{tokens};
  model_.embed({&run, 1});
  is_batch_ = false;
  RETURN_IF_ERROR(run_layers(count, progress));
  if (logits_wanted > 0) model_.head(count - logits_wanted, logits_wanted);
  if (device_experts_ != nullptr) device_experts_->settle();
  return {};
}

void ForwardPass::abandon() {
  if (device_experts_ != nullptr) device_experts_->abandon();
  if (cache_ != nullptr) cache_->abandon();
}

Status ForwardPass::run_batch(std::span<const BatchRun> runs) {
  const int64_t start = clock_.now_ns();
  stats_ = {};
  KvCache& kv = model_.kv();
  std::vector<SequenceRun> sequences;
  int32_t count = 0;
  for (const BatchRun& one : runs) {
    CHECK(one.logits_wanted <= static_cast<int32_t>(one.run.tokens.size()));
    sequences.push_back(one.run);
    count += static_cast<int32_t>(one.run.tokens.size());
  }
  CHECK(count > 0);
  model_.embed(sequences);
  is_batch_ = true;
  const Status status = run_layers(count, {});
  if (!status.ok()) {
    abandon();
    return status;
  }
  std::vector<int32_t> wanted;
  int32_t column = 0;
  for (const BatchRun& one : runs) {
    column += static_cast<int32_t>(one.run.tokens.size());
    for (int32_t from = column - one.logits_wanted; from < column; ++from) wanted.push_back(from);
    kv.extend(static_cast<int32_t>(one.run.tokens.size()), one.run.sequence);
  }
  model_.keep_columns(wanted);
  if (device_experts_ != nullptr) device_experts_->settle();
  stats_.duration_ns = clock_.now_ns() - start;
  return {};
}

void ForwardPass::head(int32_t first, int32_t count) {
  model_.head(first, count);
  look_after_reads();
}

void ForwardPass::look_after_reads() {
  if (device_experts_ != nullptr) {
    device_experts_->tier().poll();
  } else if (cache_ != nullptr) {
    cache_->poll();
  }
  if (background_) background_();
}

// The embedded tokens through all layers.
Status ForwardPass::run_layers(int32_t count, const std::function<void(double)>& progress) {
  const WorkspaceShape& shape = model_.workspace().shape();
  const int32_t n_layer = model_.config().n_layer;
  const bool window = count <= shape.max_window;
  chunk_tokens_ = count;
  for (int32_t i = 0; i < n_layer; ++i) {
    const LayerId layer{i};
    const int64_t layer_start = clock_.now_ns();
    RETURN_IF_ERROR(stages(layer, count));
    stage_ns_ = clock_.now_ns() - layer_start;
    stats_.stage_ns += stage_ns_;
    if (trace_ != nullptr) trace_->span(Span::kStages, i, layer_start, layer_start + stage_ns_);
    if (observer() != nullptr) observer()->reached(layer, count);
    if (observer() != nullptr && window) observer()->staged(layer, count);
    if (model_.is_moe_layer(layer)) {
      route(layer, count);
      RETURN_IF_ERROR(experts(layer, count));
    }
    if (trace_ != nullptr) trace_->span(Span::kLayer, i, layer_start, clock_.now_ns());
    if (!window && progress) progress(static_cast<double>(i + 1) / n_layer);
  }
  return {};
}

// A layer up to its router.
Status ForwardPass::stages(LayerId layer, int32_t count) {
  for (int32_t first = 0; first < count; first += model_.stage_tokens()) {
    if (interrupted_ != nullptr && *interrupted_) return interrupted_error();
    model_.attention(layer, first, std::min(model_.stage_tokens(), count - first));
    look_after_reads();
  }
  return {};
}

// Router logits -> routes_, tokens_of_, union_.
void ForwardPass::route(LayerId layer, int32_t count) {
  const ModelConfig& config = model_.config();
  const auto k = static_cast<size_t>(config.n_expert_used);
  std::vector<RoutedExpert>& routes = routes_[index(layer)];
  routes.resize(static_cast<size_t>(count) * k);
  for (std::vector<int32_t>& tokens : tokens_of_) tokens.clear();
  for (int32_t t = 0; t < count; ++t) {
    const std::span<RoutedExpert> out(routes.data() + static_cast<size_t>(t) * k, k);
    model_.route(layer,
                 {model_.workspace().router_logits + static_cast<size_t>(t) * config.n_expert,
                  static_cast<size_t>(config.n_expert)},
                 out);
    for (const RoutedExpert& one : out) tokens_of_[index(one.expert)].push_back(t);
  }
  union_.clear();
  for (int32_t e = 0; e < config.n_expert; ++e) {
    if (!tokens_of_[e].empty()) union_.push_back(ExpertId{e});
  }
  if (count <= model_.workspace().shape().max_window) note_prefixes(layer, count);
}

// The first token of a window that uses an expert is the one that adds it to the union.
void ForwardPass::note_prefixes(LayerId layer, int32_t count) {
  stats_.missing_by_prefix.resize(static_cast<size_t>(count));
  for (const ExpertId expert : union_) {
    if (is_there({layer, expert})) continue;
    for (int32_t m = tokens_of_[index(expert)].front(); m < count; ++m) ++stats_.missing_by_prefix[m];
  }
}

bool ForwardPass::is_there(ExpertKey key) const {
  return device_experts_ != nullptr ? device_experts_->resident(key) : cache_->resident(key);
}

void ForwardPass::tell_routed(LayerId layer) {
  if (observer() == nullptr) return;
  used_.clear();
  for (const RoutedExpert& one : routes_[index(layer)]) used_.push_back(one.expert);
  observer()->routed(layer, used_);
}

Status ForwardPass::run_among_residents(int32_t token) {
  CHECK(cache_ != nullptr);
  KvCache& kv = model_.kv();
  CHECK(kv.length() < kv.context());
  const SequenceRun run{{&token, 1}};
  model_.embed({&run, 1});
  is_batch_ = false;
  for (int32_t i = 0; i < model_.config().n_layer; ++i) {
    if (interrupted_ != nullptr && *interrupted_) return interrupted_error();
    model_.attention(LayerId{i}, 0, 1);
    look_after_reads();
    if (model_.is_moe_layer(LayerId{i})) experts_among_residents(LayerId{i});
  }
  model_.head(0, 1);
  if (device_experts_ != nullptr) device_experts_->settle();
  kv.extend(1);
  return {};
}

std::vector<double> ForwardPass::distinct_by_window(int32_t most) const {
  constexpr int32_t kStarts = 16;  // windows looked at, spread over the run
  std::vector<double> distinct;
  if (cache_ == nullptr) return distinct;
  const int32_t longest = std::min(most, chunk_tokens_);
  const int32_t last_start = chunk_tokens_ - longest;
  const int32_t starts = std::min(kStarts, last_start + 1);
  distinct.assign(static_cast<size_t>(longest), 0.0);
  for (int32_t s = 0; s < starts; ++s) {
    const int32_t start = starts == 1 ? 0 : last_start * s / (starts - 1);
    for (int32_t i = 0; i < model_.config().n_layer; ++i) {
      if (!model_.is_moe_layer(LayerId{i})) continue;
      std::vector<bool> seen(static_cast<size_t>(model_.config().n_expert));
      int32_t count = 0;
      for (int32_t t = 0; t < longest; ++t) {
        for (const RoutedExpert& one : routed(LayerId{i}, start + t)) {
          if (!seen[index(one.expert)]) ++count;
          seen[index(one.expert)] = true;
        }
        distinct[t] += static_cast<double>(count) / starts;
      }
    }
  }
  return distinct;
}

void ForwardPass::record(int32_t count, bool window) {
  CHECK(count <= chunk_tokens_);
  if (cache_ == nullptr || count == 0) return;
  std::vector<std::vector<int32_t>> uses(static_cast<size_t>(model_.config().n_layer));
  for (int32_t i = 0; i < model_.config().n_layer; ++i) {
    const LayerId layer{i};
    if (!model_.is_moe_layer(layer)) continue;
    std::vector<int32_t>& used = uses[static_cast<size_t>(i)];
    used.resize(static_cast<size_t>(model_.config().n_expert));
    for (int32_t t = 0; t < count; ++t) {
      for (const RoutedExpert& one : routed(layer, t)) ++used[index(one.expert)];
    }
    std::vector<char> of_window(window ? used.size() : 0);
    for (int32_t t = 0; window && t < chunk_tokens_; ++t) {
      for (const RoutedExpert& one : routed(layer, t)) of_window[static_cast<size_t>(index(one.expert))] = 1;
    }
    cache_->record_uses(layer, used, count, of_window);
    if (device_experts_ != nullptr) device_experts_->slots().record_uses(layer, used, count);
  }
  cache_->advance(count);
  if (device_experts_ != nullptr) device_experts_->slots().advance(count);
  if (observer() != nullptr) observer()->committed(uses, count);
}

}  // namespace drafthorse
