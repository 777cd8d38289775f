// How to run a batch on a machine: how many sequences, in which micro-batches, with how many drafted tokens each, and
// what shares of memory go to KV and to experts. Pure.
//
// SpecMoEOff (2508.21706, its optimiser): memory gives sequences and micro-batch in closed form, draft depth and the
// draft's split between device and processor are tried out in an estimator, here the pipelines of pipeline.h. As in
// every planner of ours depth is what is drafted: a window has depth + 1 tokens, which the paper calls k.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "plan/pipeline.h"
#include "plan/throughput_model.h"

namespace drafthorse {

// --- memory

struct BatchMemory {
  uint64_t budget_bytes = 0;
  uint64_t fixed_bytes = 0;  // all that does not depend on the choice: dense weights, the draft's weights, ..
  uint64_t slot_bytes = 0;   // of one expert; 0: experts take nothing here (they lie elsewhere)
  int total_experts = 0;
  int least_slots = 0;  // that must be left: what loads pass through
  // Slots that loads pass through at most, all others keeping their expert: where experts are read one by one, just
  // ahead of their use. 0: a double buffer of whole layers.
  int stream_slots = 0;
  uint64_t kv_bytes_per_token = 0;        // all layers
  uint64_t draft_kv_bytes_per_token = 0;  // 0: no draft, or one on the target's KV cache
  uint64_t sequence_bytes = 0;            // beside its KV: sampler, text, index
  uint64_t token_bytes = 0;               // activations and logits of one token of a pass
};

struct BatchJob {
  int prompt_tokens = 0;  // of a request, mean
  int output_tokens = 0;
  int64_t requests = 0;  // 0: more than fit
};

// KV of a whole request, prompt and answer.
uint64_t request_bytes(const BatchMemory& memory, const BatchJob& job, int window);
// b of the closed form: (budget - fixed - least slots) / request_bytes, at most the job's requests.
int64_t sequences_that_fit(const BatchMemory& memory, const BatchJob& job, int window);
// What is left beside so many sequences, in experts.
int slots_beside(const BatchMemory& memory, const BatchJob& job, int window, int64_t sequences);

// A device of its own beside the budget's memory.
struct DeviceMemory {
  uint64_t bytes = 0;
  uint64_t fixed_bytes = 0;  // dense weights, draft weights, expert buffer
  uint64_t token_bytes = 0;  // activations of one token of a micro-batch
  uint64_t draft_kv_bytes_per_token = 0;
};

// --- the draft's split (its memory-aware draft execution)

struct DraftCost {
  ModelCost model;                    // on what computes
  AttentionCost processor_attention;  // a layer's, on the processor; device set-ups only
};

// Which sequences keep their draft KV on the device, by KV length. Both sides work at once: the device takes what
// fits, but no more than balances the two. Those on it already (`on_device`, empty: none) stay as long as that holds,
// the longest go first where it does not, and are taken up first where there is room.
// device_positions: KV positions there is room for; the seconds are per position and drafted token.
std::vector<bool> split_draft_attention(std::span<const int64_t> kv_lengths, const std::vector<bool>& on_device,
                                        double device_positions, double device_s_per_position,
                                        double processor_s_per_position, double device_base_s);
// The same for equal lengths, as a share of the sequences. 0 to 1.
double draft_share_on_device(double sequences, double kv_length, double device_positions, double device_s_per_position,
                             double processor_s_per_position, double device_base_s);

// --- the whole

struct BatchPlanInput {
  ModelCost target;
  std::optional<DraftCost> draft;
  Platform platform;
  BatchMemory memory;
  std::optional<DeviceMemory> device;
  BatchJob job;
  std::vector<double> acceptance;  // by position, given that it is reached; beyond the last as the last
  int max_depth = 10;
  std::optional<int> depth;          // only this one
  std::optional<int64_t> sequences;  // only so many, or as many as fit if that is less
  double other_s_per_token = 0;      // choosing and bookkeeping, per token whose logits are wanted
};

struct BatchCandidate {
  Pipeline pipeline = Pipeline::kStreamed;
  int64_t sequences = 0;
  int64_t micro_batch = 0;  // sequences of one
  int depth = 0;
  int slots = 0;
  double device_share = 1;  // of the sequences, whose draft attention is the device's
  uint64_t memory_bytes = 0;
  double tokens_per_sequence = 1;  // of an iteration, accepted + 1
  IterationPrediction decode;      // an iteration that only generates
  double decode_tokens_per_s = 0;
  double tokens_per_s = 0;  // generated, with the prompts of the requests that take the place of finished ones
};

struct BatchPlan {
  std::vector<BatchCandidate> candidates;  // by sequences, then depth
  BatchCandidate best;                     // the most tokens_per_s
  BatchCandidate plain;                    // of depth 0, at its own best number of sequences
  BatchCandidate on_demand;                // layer by layer, depth 0, likewise
};

// accepted + 1.
double expected_tokens(std::span<const double> acceptance, int depth);

// Steady state: requests come in as others end, texts are half generated on average.
BatchCandidate evaluate(const BatchPlanInput& input, Pipeline pipeline, int64_t sequences, int depth);
// kMemory, naming the least budget, where not one sequence fits.
Result<BatchPlan> plan_batch(const BatchPlanInput& input);

}  // namespace drafthorse
