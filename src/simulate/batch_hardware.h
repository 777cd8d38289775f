// The machines and models of SpecMoEOff (arXiv 2508.21706), for the throughput optimiser: a GPU that computes experts,
// a processor beside it with the KV cache in its memory, and the figures the paper gives for them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plan/batch_optimizer.h"

namespace drafthorse {

struct BatchHardware {
  std::string name;
  uint64_t device_bytes = 0;
  double device_bytes_per_s = 0;
  double device_flops = 0;  // FP16 matrix products, dense
  double link_bytes_per_s = 0;
  uint64_t ram_bytes = 0;
  double processor_bytes_per_s = 0;
  double processor_flops = 0;
};

// A model by its numbers, weights and KV at 16 bits.
struct BatchModelShape {
  std::string name;
  int layers = 0;
  int width = 0;
  int ffn = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int experts = 0;  // 0: dense
  int experts_used = 0;
  int vocabulary = 0;
  int extra_inputs = 0;  // width x width matrices before the first layer (EAGLE: 2)
};

const std::vector<BatchHardware>& batch_hardware();               // a30, rtx4090d
const BatchHardware* find_batch_hardware(std::string_view name);  // nullptr for an unknown name

BatchModelShape mixtral_8x7b();
// Its drafters: the paper's, one layer on the target's last states, embedding and head shared; and a whole model.
BatchModelShape eagle_for_mixtral();
BatchModelShape mistral_7b();

uint64_t weight_bytes(const BatchModelShape& shape);  // all of them
uint64_t kv_bytes_per_token(const BatchModelShape& shape);

// How much of the data sheet's figures software gets. 1: all of it.
struct BatchStack {
  double device = 1;
  double link = 1;
  double processor = 1;
  double draft_factor = 1;  // seconds of drafting over those computed
  double other_s_per_token = 0;
};
// What the paper's table says its software got, on the A30 at k = 5: the components there are then its own by
// construction, and whatever follows for other depths, batches and machines is a prediction.
BatchStack paper_stack();

// Input for plan_batch: the model's experts and the KV cache in RAM, attention on the processor, the rest on the
// device.
BatchPlanInput batch_plan_input(const BatchHardware& hardware, const BatchModelShape& target,
                                const BatchModelShape& draft, const BatchStack& stack, const BatchJob& job);

// RAM that neither weights nor KV have: with it the closed form gives the paper's batches, 824 with 250 GB and 515 with
// 190 GB (566 tokens of prompt, 1024 of output; GB there being 2^30 bytes).
inline constexpr uint64_t kPaperReserveBytes = uint64_t{3} << 30;

// The paper's table of one iteration: A30, APPS, 512 tokens in, 128 out, k = 5 (four drafted). Seconds.
struct PaperIteration {
  double target_s = 4.39;
  double attention_s = 4.29;
  double experts_s = 3.53;
  double link_s = 3.70;
  double draft_s = 0.56;
  double other_s = 0.097;
  double whole_s = 5.05;
};
inline constexpr BatchJob kPaperIterationJob = {512, 128, 0};
inline constexpr int kPaperIterationDepth = 4;
// The paper's table of accepted tokens is not known to us: this, at every position, makes the gain on the A30 what it
// states; that on the other machine is then predicted.
inline constexpr double kPaperAcceptance = 0.54;
// Its speed with speculation over without, decoding, nothing else changed.
std::optional<double> paper_speculation_gain(std::string_view hardware);

}  // namespace drafthorse
