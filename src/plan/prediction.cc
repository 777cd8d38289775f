#include "plan/prediction.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/units.h"

namespace drafthorse {
namespace {

constexpr double kPieceBytes = 1024.0 * 1024.0;
constexpr int kMostInFlight = 64;
constexpr int kDepths[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
constexpr double kDrafting = 1.06;  // drafting must promise this much, as the engine's policy wants it
constexpr int kNodesPerLayer = 24;
constexpr int kPassesPerLayer = 8;    // of norms, additions and rotations over a token's floats
constexpr double kMemoryBound = 0.6;  // of the time at which memory alone would have delivered the weights
constexpr double kMostSkew = 30;
constexpr double kDiskBound = 0.3;  // of the time spent waiting

double used_in(double p, double tokens) { return 1 - std::pow(1 - p, tokens); }

// How much of the expert of this rank is not among so many resident ones.
double absent(size_t rank, double resident) { return std::clamp(static_cast<double>(rank) + 1 - resident, 0.0, 1.0); }

// M(n) of the header.
double missed_experts(const std::vector<double>& popularity, double resident, double tokens) {
  double total = 0;
  for (size_t i = 0; i < popularity.size(); ++i) total += absent(i, resident) * used_in(popularity[i], tokens);
  return total;
}

// C of the header.
double resident_share(const std::vector<double>& popularity, int layers, double slots, double tokens) {
  const auto experts = static_cast<double>(popularity.size());
  if (slots >= experts * layers) return experts;
  double resident = slots / layers;
  for (int i = 0; i < 50; ++i) {
    const double next = std::clamp((slots - missed_experts(popularity, resident, tokens)) / layers, 0.0, experts);
    resident = (resident + next) / 2;
  }
  return resident;
}

class Predictor {
 public:
  Predictor(const MachineProfile& machine, const ModelWork& model, double skew, double keys)
      : machine_(machine), model_(model), keys_(keys) {
    for (const LayerWork& layer : model.layers) {
      if (layer.n_expert > 0) {
        ++moe_layers_;
        popularity_ = expert_popularity(layer.n_expert, model.n_expert_used, skew);
      }
    }
  }

  Status check() const {
    for (const LayerWork& layer : model_.layers) {
      for (const MatrixWork& matrix : layer.dense) RETURN_IF_ERROR(known(matrix.type));
      for (const MatrixWork& matrix : layer.expert) RETURN_IF_ERROR(known(matrix.type));
    }
    return known(model_.head.type);
  }

  // slots: of all layers together; below 0: everything is resident.
  PassPrediction pass(int tokens, double slots) const {
    PassPrediction out;
    const double resident = resident_experts(tokens, slots);
    for (const LayerWork& layer : model_.layers) {
      add_dense(layer, tokens, out);
      if (layer.n_expert > 0) add_experts(layer, tokens, resident, out);
    }
    add_matrix(model_.head, tokens, out);
    out.seconds = out.compute_s + out.stall_s;
    return out;
  }

  // The whole prompt, `at_once` tokens at a time; nothing is resident before.
  double prefill(int tokens, int at_once, double slots) const {
    double total = 0;
    for (int done = 0; done < tokens; done += at_once) {
      const int count = std::min(at_once, tokens - done);
      total += prefill_chunk(count, done == 0 ? 0 : resident_experts(count, slots));
    }
    return total;
  }

 private:
  const KernelProfile* find(const std::string& type) const {
    for (const KernelProfile& kernel : machine_.kernels) {
      if (kernel.type == type) return &kernel;
    }
    return nullptr;
  }
  Status known(const std::string& type) const {
    if (find(type) != nullptr) return {};
    return usage_error(
        fmt::format("the profile of this machine has no figures for weights of type {}; run "
                    "`drafthorse profile` again",
                    type));
  }

  void add_matrix(const MatrixWork& matrix, double tokens, PassPrediction& out) const {
    const KernelProfile& kernel = *find(matrix.type);
    out.compute_s += matrix.weights * interpolate(kernel.linear, tokens);
    out.memory_s += matrix.weights * kernel.bytes_per_weight / machine_.ram_bytes_per_s;
  }

  void add_dense(const LayerWork& layer, int tokens, PassPrediction& out) const {
    for (const MatrixWork& matrix : layer.dense) add_matrix(matrix, tokens, out);
    out.compute_s += machine_.attention_s_per_key_float * tokens * model_.attention_width * keys_ +
                     machine_.node_overhead_s * kNodesPerLayer +
                     machine_.elementwise_s_per_float * kPassesPerLayer * tokens * model_.n_embd;
  }

  double expert_seconds(const LayerWork& layer, double rows) const {
    double taken = 0;
    for (const MatrixWork& matrix : layer.expert) {
      taken += matrix.weights * interpolate(find(matrix.type)->experts, std::max(1.0, rows));
    }
    return taken;
  }
  double expert_memory_s(const LayerWork& layer) const {
    double bytes = 0;
    for (const MatrixWork& matrix : layer.expert) bytes += matrix.weights * find(matrix.type)->bytes_per_weight;
    return bytes / machine_.ram_bytes_per_s;
  }

  double resident_experts(double tokens, double slots) const {
    if (moe_layers_ == 0) return 0;
    return slots < 0 ? static_cast<double>(popularity_.size())
                     : resident_share(popularity_, moe_layers_, slots, tokens);
  }
  double missed(double tokens, double resident) const { return missed_experts(popularity_, resident, tokens); }

  // The chance of 0, 1, 2, .. misses in a layer.
  std::vector<double> miss_distribution(double tokens, double resident) const {
    std::vector<double> chance = {1.0};
    for (size_t i = 0; i < popularity_.size(); ++i) {
      const double p = absent(i, resident) * used_in(popularity_[i], tokens);
      if (p <= 0) continue;
      chance.push_back(0);
      for (size_t j = chance.size(); j-- > 1;) chance[j] = chance[j] * (1 - p) + chance[j - 1] * p;
      chance[0] *= 1 - p;
    }
    return chance;
  }

  void add_experts(const LayerWork& layer, int tokens, double resident, PassPrediction& out) const {
    double hits = 0;
    double hit_rows = 0;
    double misses = 0;
    double miss_rows = 0;
    for (size_t i = 0; i < popularity_.size(); ++i) {
      const double gone = absent(i, resident);
      const double used = used_in(popularity_[i], tokens);
      hits += (1 - gone) * used;
      hit_rows += (1 - gone) * popularity_[i] * tokens;
      misses += gone * used;
      miss_rows += gone * popularity_[i] * tokens;
    }
    const double hit_s = hits > 0 ? hits * expert_seconds(layer, hit_rows / hits) : 0;
    const double each_miss_s = misses > 0 ? expert_seconds(layer, miss_rows / misses) : 0;
    out.demanded += hits + misses;
    out.missed += misses;
    out.memory_s += (hits + misses) * expert_memory_s(layer);
    out.compute_s += hit_s + misses * each_miss_s;
    const std::vector<double> chance = miss_distribution(tokens, resident);
    const double pieces_each = static_cast<double>(model_.expert_bytes) / kPieceBytes;
    for (size_t count = 1; count < chance.size(); ++count) {
      const double rate =
          disk_rate(machine_, std::min<double>(kMostInFlight, static_cast<double>(count) * pieces_each));
      const double each_read_s = static_cast<double>(model_.expert_bytes) / rate;
      // All but the last miss is computed while others are read.
      const double slowdown = machine_.compute_slowdown_while_reading;
      double now = hit_s * slowdown;
      double waited = 0;
      for (size_t j = 1; j <= count; ++j) {
        const double there = machine_.disk_latency_s + static_cast<double>(j) * each_read_s;
        if (there > now) waited += there - now;
        now = std::max(now, there) + each_miss_s * (j < count ? slowdown : 1);
      }
      out.compute_s += chance[count] * (slowdown - 1) * (hit_s + static_cast<double>(count - 1) * each_miss_s);
      out.stall_s += chance[count] * waited;
    }
  }

  // Each expert is read once, the next layer's while this one computes: the slower of the two decides.
  double prefill_chunk(int tokens, double resident) const {
    double computing = 0;
    double reading = 0;
    double first_read = 0;
    for (const LayerWork& layer : model_.layers) {
      PassPrediction dense;
      add_dense(layer, tokens, dense);
      computing += dense.compute_s;
      if (layer.n_expert == 0) continue;
      const double used = distinct_experts(popularity_, tokens);
      const double rows = static_cast<double>(tokens) * model_.n_expert_used / used;
      computing += used * expert_seconds(layer, rows);
      const double read_s = static_cast<double>(model_.expert_bytes) / disk_rate(machine_, kMostInFlight);
      reading += missed(tokens, resident) * read_s;
      if (first_read == 0 && missed(tokens, resident) > 0) first_read = read_s;
    }
    return std::max(computing + first_read, reading + computing / static_cast<double>(model_.layers.size()));
  }

  const MachineProfile& machine_;
  const ModelWork& model_;
  double keys_;  // that attention reads
  int moe_layers_ = 0;
  std::vector<double> popularity_;
};

Bottleneck bottleneck_of(const PassPrediction& pass) {
  if (pass.stall_s > kDiskBound * pass.seconds) return Bottleneck::kDisk;
  return pass.memory_s > kMemoryBound * pass.compute_s ? Bottleneck::kMemory : Bottleneck::kCompute;
}

}  // namespace

std::vector<double> expert_popularity(int experts, int used, double skew) {
  CHECK(experts > 0 && used > 0 && used <= experts);
  std::vector<double> shape(static_cast<size_t>(experts));
  for (int i = 0; i < experts; ++i) shape[i] = std::exp(-skew * (i + 0.5) / experts);
  // Scaled until they add up, what exceeds 1 cut off.
  std::vector<double> popularity(shape.size());
  double low = 0;
  double high = static_cast<double>(used) / shape.back();
  for (int round = 0; round < 100; ++round) {
    const double scale = (low + high) / 2;
    double sum = 0;
    for (size_t i = 0; i < shape.size(); ++i) sum += popularity[i] = std::min(1.0, scale * shape[i]);
    (sum < used ? low : high) = scale;
  }
  return popularity;
}

double distinct_experts(const std::vector<double>& popularity, int tokens) {
  double total = 0;
  for (const double p : popularity) total += used_in(p, tokens);
  return total;
}

double expected_hit_rate(const RoutingShape& shape, double skew) {
  const std::vector<double> popularity = expert_popularity(shape.experts, shape.used, skew);
  const double resident = resident_share(popularity, shape.layers, shape.slots, shape.window);
  double demanded = 0;
  for (const double p : popularity) demanded += used_in(p, shape.window);
  return 1 - missed_experts(popularity, resident, shape.window) / demanded;
}

std::optional<double> skew_from_hit_rate(const RoutingShape& shape, double hit_rate) {
  if (shape.slots >= shape.experts * shape.layers || hit_rate >= 1) return std::nullopt;
  double low = 0;
  double high = kMostSkew;
  for (int round = 0; round < 60; ++round) {
    const double middle = (low + high) / 2;
    (expected_hit_rate(shape, middle) < hit_rate ? low : high) = middle;
  }
  return (low + high) / 2;
}

double interpolate(const std::vector<KernelRate>& rates, double tokens) {
  CHECK(!rates.empty());
  if (rates.size() == 1) return rates.front().seconds_per_weight * std::max(1.0, tokens / rates.front().tokens);
  size_t right = 1;
  while (right + 1 < rates.size() && rates[right].tokens < tokens) ++right;
  const KernelRate& a = rates[right - 1];
  const KernelRate& b = rates[right];
  const double slope = (b.seconds_per_weight - a.seconds_per_weight) / (b.tokens - a.tokens);
  return std::max(0.0, a.seconds_per_weight + slope * (tokens - a.tokens));
}

double disk_rate(const MachineProfile& machine, double pieces) {
  const DiskRate* below = nullptr;
  const DiskRate* above = nullptr;
  uint64_t largest = 0;
  for (const DiskRate& rate : machine.disk) largest = std::max(largest, rate.read_bytes);
  for (const DiskRate& rate : machine.disk) {
    if (rate.read_bytes != largest) continue;
    if (rate.in_flight <= pieces && (below == nullptr || rate.in_flight > below->in_flight)) below = &rate;
    if (rate.in_flight >= pieces && (above == nullptr || rate.in_flight < above->in_flight)) above = &rate;
  }
  CHECK(below != nullptr || above != nullptr);
  if (below == nullptr) return above->bytes_per_s;
  if (above == nullptr || above == below) return below->bytes_per_s;
  const double part = (pieces - below->in_flight) / (above->in_flight - below->in_flight);
  return below->bytes_per_s + part * (above->bytes_per_s - below->bytes_per_s);
}

Result<Prediction> predict(const PredictionInput& input) {
  CHECK(!input.machine.disk.empty() && input.machine.ram_bytes_per_s > 0);
  const double keys = input.prompt_tokens + input.generated_tokens / 2.0;
  const Predictor target(input.machine, input.target, input.skew, keys);
  RETURN_IF_ERROR(target.check());
  std::optional<Predictor> draft;
  if (input.draft) {
    draft.emplace(input.machine, *input.draft, input.skew, keys);
    RETURN_IF_ERROR(draft->check());
  }
  const double draft_token_s = draft ? draft->pass(1, -1).seconds : 0;

  Prediction out;
  const auto at = [&](int depth) {
    SpeedPrediction speed;
    speed.depth = depth;
    speed.verify = target.pass(depth + 1, input.slots);
    speed.draft_s = depth * draft_token_s;
    speed.cycle_s = speed.draft_s + speed.verify.seconds;
    double reached = 1;
    for (int i = 0; i < depth; ++i) speed.tokens_per_cycle += reached *= input.acceptance;
    speed.tokens_per_s = speed.tokens_per_cycle / speed.cycle_s;
    speed.bytes_per_token =
        speed.verify.missed * static_cast<double>(input.target.expert_bytes) / speed.tokens_per_cycle;
    speed.bottleneck = bottleneck_of(speed.verify);
    return speed;
  };
  out.plain = at(0);
  out.by_depth.push_back(out.plain);
  out.best = out.plain;
  if (out.plain.verify.demanded > 0) out.hit_rate = 1 - out.plain.verify.missed / out.plain.verify.demanded;
  if (draft) {
    for (const int depth : kDepths) {
      out.by_depth.push_back(at(depth));
      const bool better =
          out.by_depth.back().tokens_per_s > out.best.tokens_per_s * (out.best.depth == 0 ? kDrafting : 1);
      if (better) out.best = out.by_depth.back();
    }
    if (input.depth) out.best = at(*input.depth);
  }
  const double disk = disk_rate(input.machine, kMostInFlight);
  const double draft_experts = input.draft ? [&] {
    double bytes = 0;
    for (const LayerWork& layer : input.draft->layers) {
      bytes += layer.n_expert * static_cast<double>(input.draft->expert_bytes);
    }
    return bytes;
  }() : 0;
  out.load_s = (static_cast<double>(input.target.dense_bytes) +
                (input.draft ? static_cast<double>(input.draft->dense_bytes) : 0) + draft_experts) /
               disk;
  const int body = input.prompt_tokens - 1;
  if (body > 0) {
    const int at_once = std::max(1, input.prefill_tokens);
    out.ttft_s += target.prefill(body, at_once, input.slots);
    if (draft) out.ttft_s += draft->pass(body, -1).compute_s;
  }
  out.ttft_s += out.best.cycle_s;
  return out;
}

}  // namespace drafthorse
