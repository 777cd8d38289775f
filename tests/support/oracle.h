// libllama as the oracle: what a GGUF file computes, by an implementation that is not ours.
//
// CPU only, flash attention disabled and weights not repacked, so that the arithmetic is that of ggml's plain
// kernels. Its results still differ from any other order of summation in the last bits; compare argmax where the
// margin is larger than that error, and logits by relative RMS.
//
// libllama's log is silenced for the whole process by the first load. Not for use from several threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "ggml.h"

struct llama_context;
struct llama_model;
struct llama_vocab;

namespace drafthorse {

struct OracleOptions {
  int32_t n_ctx = 512;  // positions; the most tokens one call may work on
  // One by default: ggml's threads spin at every barrier, so on a busy machine two may take fifty times as long.
  int32_t n_threads = 1;
  ggml_type kv_type = GGML_TYPE_F16;
};

using Logits = std::vector<std::vector<float>>;  // [position][token of the vocabulary]

class Oracle {
 public:
  // Loads a file (of several shards: the first). File error if libllama refuses it; note that on damaged files it
  // may abort the process instead.
  static Result<std::unique_ptr<Oracle>> load(const std::string& path, const OracleOptions& options = {});
  ~Oracle();
  Oracle(const Oracle&) = delete;
  Oracle& operator=(const Oracle&) = delete;

  int32_t n_vocab() const;
  // Special tokens written out in the text are not recognised as such.
  std::vector<int32_t> tokenize(std::string_view text, bool add_special = true) const;
  std::string detokenize(std::span<const int32_t> tokens) const;

  // Teacher-forced: the logits after each of the tokens, computed from an empty cache in one batch.
  Logits logits(std::span<const int32_t> tokens);
  // The `n` tokens that follow the prompt, one decoded at a time, by largest logit (the lowest id of equals).
  // Goes on after an end-of-text token.
  std::vector<int32_t> greedy(std::span<const int32_t> prompt, int32_t n);

 private:
  Oracle(llama_model* model, llama_context* context, int32_t n_ctx);
  std::span<const float> decode(std::span<const int32_t> tokens, bool all_positions);

  llama_model* model_;
  llama_context* context_;
  const llama_vocab* vocab_;
  int32_t n_ctx_;
};

// The index of the largest, the lowest of equals.
int32_t argmax(std::span<const float> values);

// Largest minus second largest.
float top2_margin(std::span<const float> values);

// Share of positions where both have the same argmax. The two must be of one shape.
double share_of_equal_argmax(const Logits& a, const Logits& b);

// RMS of the difference over RMS of the reference.
double relative_rms(const Logits& got, const Logits& reference);

}  // namespace drafthorse
