#include "plan/batch_optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/check.h"
#include "base/units.h"
#include "plan/memory_plan.h"

namespace drafthorse {
namespace {

constexpr int kMostMicroBatches = 16;
// Of the most sequences that fit, in 24ths: what is left goes to experts.
constexpr int kShares[] = {24, 21, 18, 15, 12, 9, 6, 4, 3, 2, 1};

int window_of(int depth) { return depth + 1; }

// Of each layer, where loads pass through a window of slots: those of it that hold what is loaded are not its
// residents'. A layer's experts are loaded in the order in which they are used, from when the layer is reached. So the
// window is full where many are, and where few are each of them waits for its turn for half of the layer on average.
double resident_beside_stream(const BatchPlanInput& input, int slots, double tokens) {
  constexpr int kSteps = 8;  // each changes the next by a small part of itself
  const int layers = input.target.moe_layers();
  const auto experts = static_cast<double>(input.target.popularity.size());
  double resident = 0;
  double held = input.memory.stream_slots;
  for (int step = 0; step < kSteps; ++step) {
    resident = std::clamp((slots - held) / layers, 0.0, experts);
    const double loaded = experts_loaded(input.target.popularity, tokens, resident);
    held = std::min<double>(input.memory.stream_slots, loaded / 2);
  }
  return resident;
}

double resident_experts(const BatchPlanInput& input, int slots, double tokens) {
  const int layers = input.target.moe_layers();
  const auto experts = static_cast<double>(input.target.popularity.size());
  if (layers == 0 || input.memory.slot_bytes == 0) return 0;
  if (slots >= input.memory.total_experts) return experts;
  if (input.memory.stream_slots > 0) return resident_beside_stream(input, slots, tokens);
  // What two layers do not keep passes through the buffer: C layers + 2 (experts - C) = slots.
  if (layers <= 2) return 0;
  return std::clamp((slots - 2 * experts) / (layers - 2), 0.0, experts);
}

struct MicroBatches {
  int count = 1;
  double draft_positions = 0;  // room for draft KV on the device
};

// As few micro-batches as leave the draft's KV of all requests room on the device; draft data outranks the target's.
MicroBatches divide(const BatchPlanInput& input, int64_t sequences, int window, double kv_length) {
  CHECK(input.device);
  const DeviceMemory& device = *input.device;
  const auto left = [&](int count) {
    const double tokens = std::ceil(static_cast<double>(sequences) / count) * window;
    return static_cast<double>(device.bytes) - static_cast<double>(device.fixed_bytes) -
           tokens * static_cast<double>(device.token_bytes);
  };
  const double wanted =
      static_cast<double>(sequences) * kv_length * static_cast<double>(device.draft_kv_bytes_per_token);
  MicroBatches out{2, 0};
  while (out.count < kMostMicroBatches && left(out.count) < wanted) out.count *= 2;
  // Where nothing helps, large micro-batches are better than small ones; activations must fit all the same.
  if (left(out.count) < wanted) {
    out.count = 2;
    while (out.count < kMostMicroBatches && left(out.count) < 0) out.count *= 2;
  }
  if (device.draft_kv_bytes_per_token > 0) {
    out.draft_positions = std::max(0.0, left(out.count) / static_cast<double>(device.draft_kv_bytes_per_token));
  }
  return out;
}

}  // namespace

uint64_t request_bytes(const BatchMemory& memory, const BatchJob& job, int window) {
  const auto text = static_cast<uint64_t>(job.prompt_tokens) + static_cast<uint64_t>(job.output_tokens);
  return text * (memory.kv_bytes_per_token + memory.draft_kv_bytes_per_token) + memory.sequence_bytes +
         static_cast<uint64_t>(window) * memory.token_bytes;
}

int64_t sequences_that_fit(const BatchMemory& memory, const BatchJob& job, int window) {
  const uint64_t taken = memory.fixed_bytes + static_cast<uint64_t>(memory.least_slots) * memory.slot_bytes;
  if (taken >= memory.budget_bytes) return 0;
  const uint64_t each = std::max<uint64_t>(1, request_bytes(memory, job, window));
  const auto fit = static_cast<int64_t>((memory.budget_bytes - taken) / each);
  return job.requests > 0 ? std::min(fit, job.requests) : fit;
}

int slots_beside(const BatchMemory& memory, const BatchJob& job, int window, int64_t sequences) {
  if (memory.slot_bytes == 0) return 0;
  const uint64_t taken = memory.fixed_bytes + static_cast<uint64_t>(sequences) * request_bytes(memory, job, window);
  if (taken >= memory.budget_bytes) return 0;
  const uint64_t slots = (memory.budget_bytes - taken) / memory.slot_bytes;
  return static_cast<int>(std::min<uint64_t>(slots, static_cast<uint64_t>(memory.total_experts)));
}

double expected_tokens(std::span<const double> acceptance, int depth) {
  double tokens = 1;
  double reached = 1;
  for (int i = 0; i < depth && !acceptance.empty(); ++i) {
    tokens += reached *= acceptance[std::min<size_t>(static_cast<size_t>(i), acceptance.size() - 1)];
  }
  return tokens;
}

std::vector<bool> split_draft_attention(std::span<const int64_t> kv_lengths, const std::vector<bool>& on_device,
                                        double device_positions, double device_s_per_position,
                                        double processor_s_per_position, double device_base_s) {
  CHECK(on_device.empty() || on_device.size() == kv_lengths.size());
  double total = 0;
  for (const int64_t length : kv_lengths) total += static_cast<double>(length);
  // At the balance base + device x = processor (total - x).
  double most = total;
  if (device_s_per_position + processor_s_per_position > 0) {
    most = (processor_s_per_position * total - device_base_s) / (device_s_per_position + processor_s_per_position);
  }
  most = std::clamp(most, 0.0, device_positions);

  std::vector<size_t> order(kv_lengths.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  const auto stays = [&](size_t i) { return !on_device.empty() && on_device[i]; };
  // Who is there is asked first, the shortest first, so that the longest go; of the others the longest first.
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (stays(a) != stays(b)) return stays(a);
    if (kv_lengths[a] != kv_lengths[b]) return stays(a) == (kv_lengths[a] < kv_lengths[b]);
    return a < b;
  });
  std::vector<bool> chosen(kv_lengths.size(), false);
  double used = 0;
  for (const size_t i : order) {
    if (used + static_cast<double>(kv_lengths[i]) > most) continue;
    used += static_cast<double>(kv_lengths[i]);
    chosen[i] = true;
  }
  return chosen;
}

double draft_share_on_device(double sequences, double kv_length, double device_positions, double device_s_per_position,
                             double processor_s_per_position, double device_base_s) {
  const double total = sequences * kv_length;
  if (total <= 0) return 1;
  double most = total;
  if (device_s_per_position + processor_s_per_position > 0) {
    most = (processor_s_per_position * total - device_base_s) / (device_s_per_position + processor_s_per_position);
  }
  return std::clamp(most, 0.0, std::min(total, device_positions)) / total;
}

BatchCandidate evaluate(const BatchPlanInput& input, Pipeline pipeline, int64_t sequences, int depth) {
  const int window = window_of(depth);
  const auto b = static_cast<double>(sequences);
  const double kv_length = input.job.prompt_tokens + input.job.output_tokens / 2.0;
  BatchCandidate out;
  out.pipeline = pipeline;
  out.sequences = sequences;
  out.depth = depth;
  out.slots = slots_beside(input.memory, input.job, window, sequences);
  out.tokens_per_sequence = expected_tokens(input.acceptance, depth);
  out.memory_bytes = input.memory.fixed_bytes + static_cast<uint64_t>(out.slots) * input.memory.slot_bytes +
                     static_cast<uint64_t>(sequences) * request_bytes(input.memory, input.job, window);

  Iteration iteration;
  iteration.pipeline = pipeline;
  iteration.pass = window_work(b, window, kv_length);
  if (pipeline != Pipeline::kOnDemand) {
    iteration.resident_experts = resident_experts(input, out.slots, iteration.pass.tokens);
  }
  const auto experts = static_cast<double>(input.target.popularity.size());
  iteration.buffer_experts = input.memory.slot_bytes == 0
                                 ? 2 * experts
                                 : std::max<double>(input.memory.stream_slots,
                                                    out.slots - iteration.resident_experts * input.target.moe_layers());
  MicroBatches parts;
  if (pipeline == Pipeline::kTwoMicroBatches) parts = divide(input, sequences, window, kv_length);
  iteration.micro_batches = static_cast<int>(std::min<int64_t>(parts.count, sequences));
  out.micro_batch = (sequences + iteration.micro_batches - 1) / iteration.micro_batches;

  const auto draft = [&](double prompt_tokens) {
    DraftWork work;
    if (!input.draft || depth == 0) return work;
    const DraftCost& cost = *input.draft;
    const PassWork step = window_work(b, 1, kv_length);
    const PassSeconds seconds = pass_seconds(cost.model, step);
    const auto layers = static_cast<double>(cost.model.layers.size());
    double attention = seconds.attention;
    const double base = seconds.total() - attention;
    if (input.device) {
      const double processor = layers * cost.processor_attention.seconds(step.token_keys, step.keys);
      const double positions = b * kv_length;
      out.device_share = draft_share_on_device(b, kv_length, parts.draft_positions, attention / positions,
                                               processor / positions, base);
      attention *= out.device_share;
      work.processor_s = depth * (1 - out.device_share) * processor;
    }
    work.device_s = depth * (base + attention);
    if (prompt_tokens > 0) {
      work.device_s += pass_seconds(cost.model, prompt_work(prompt_tokens, input.job.prompt_tokens)).total();
    }
    return work;
  };
  iteration.draft = draft(0);
  iteration.other_s = input.other_s_per_token * iteration.pass.heads;
  out.decode = simulate_iteration(input.target, input.platform, iteration);
  const double made = b * out.tokens_per_sequence;
  out.decode_tokens_per_s = made / out.decode.seconds;

  // As many requests begin as end.
  const double begun = made / std::max(1, input.job.output_tokens);
  const double prompt_tokens = begun * input.job.prompt_tokens;
  iteration.prompt = prompt_work(prompt_tokens, input.job.prompt_tokens);
  iteration.prompt.heads = begun;
  iteration.draft = draft(prompt_tokens);
  out.tokens_per_s = made / simulate_iteration(input.target, input.platform, iteration).seconds;
  return out;
}

namespace {

// The best number of sequences at one depth: shares of the most, then steps around the best of them.
class Search {
 public:
  Search(const BatchPlanInput& input, Pipeline pipeline, int depth)
      : input_(input), pipeline_(pipeline), depth_(depth) {
    most_ = sequences_that_fit(input.memory, input.job, window_of(depth));
    if (input.sequences) most_ = std::min(most_, *input.sequences);
  }

  std::vector<BatchCandidate> run() {
    if (most_ < 1) return {};
    if (input_.sequences) {
      tried(most_);
      return std::move(all_);
    }
    for (const int share : kShares) tried(std::max<int64_t>(1, most_ * share / 24));
    for (int64_t step = std::max<int64_t>(1, most_ / 24); step >= std::max<int64_t>(1, most_ / 200); step /= 2) {
      const int64_t around = best().sequences;
      tried(std::clamp<int64_t>(around - step, 1, most_));
      tried(std::clamp<int64_t>(around + step, 1, most_));
      if (step == 1) break;
    }
    return std::move(all_);
  }

 private:
  void tried(int64_t sequences) {
    if (seen_.insert(sequences).second) all_.push_back(evaluate(input_, pipeline_, sequences, depth_));
  }
  const BatchCandidate& best() const {
    return *std::max_element(all_.begin(), all_.end(), [](const BatchCandidate& a, const BatchCandidate& b) {
      return a.tokens_per_s < b.tokens_per_s;
    });
  }

  const BatchPlanInput& input_;
  Pipeline pipeline_;
  int depth_;
  int64_t most_ = 0;
  std::set<int64_t> seen_;
  std::vector<BatchCandidate> all_;
};

}  // namespace

Result<BatchPlan> plan_batch(const BatchPlanInput& input) {
  const BatchMemory& memory = input.memory;
  if (sequences_that_fit(memory, input.job, window_of(0)) < 1) {
    const uint64_t least = memory.fixed_bytes + static_cast<uint64_t>(memory.least_slots) * memory.slot_bytes +
                           request_bytes(memory, input.job, window_of(0));
    return memory_error(
        fmt::format("a budget of {} is too small for one request of {} + {} tokens and the experts "
                    "that are read ahead: at least --ram {}M is needed",
                    format_size(memory.budget_bytes), input.job.prompt_tokens, input.job.output_tokens,
                    named_budget(least) / kMiB));
  }
  BatchPlan plan;
  const Pipeline pipeline = input.platform.device ? Pipeline::kTwoMicroBatches : Pipeline::kStreamed;
  const int deepest = input.draft ? input.max_depth : 0;
  const auto take_better = [](BatchCandidate& best, const BatchCandidate& one) {
    if (one.tokens_per_s > best.tokens_per_s) best = one;
  };
  for (int depth = 0; depth <= deepest; ++depth) {
    const std::vector<BatchCandidate> found = Search(input, pipeline, depth).run();
    for (const BatchCandidate& one : found) {
      if (depth == 0) take_better(plan.plain, one);
      if (!input.depth || *input.depth == depth) take_better(plan.best, one);
    }
    plan.candidates.insert(plan.candidates.end(), found.begin(), found.end());
  }
  if (plan.best.sequences == 0) plan.best = plan.plain;  // the depth asked for leaves no room for anybody
  for (const BatchCandidate& one : Search(input, Pipeline::kOnDemand, 0).run()) take_better(plan.on_demand, one);
  std::sort(plan.candidates.begin(), plan.candidates.end(), [](const BatchCandidate& a, const BatchCandidate& b) {
    return std::pair(a.sequences, a.depth) < std::pair(b.sequences, b.depth);
  });
  return plan;
}

}  // namespace drafthorse
