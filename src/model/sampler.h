// From logits to the next token: a chain of samplers, then a choice.
//
// The chain: end-of-text tokens masked (if asked for), repetition penalty, grammar, top-k, top-p, min-p, temperature.
// Penalty, grammar and truncation are libllama's. What remains is a distribution p, and the token at position i is
//     argmax over t of log p(t) + g(seed, i, t),     g: Gumbel noise that depends on nothing else (noise.h),
// which is distributed as p (Gumbel-max). The draft chooses with the same noise, chain and text, so it proposes the
// target's own token wherever it is close to the target, and a proposed token is accepted iff it *is* the target's.
// The text is therefore a function of the model, the prompt, the options and the seed: not of draft, depth or memory.
// Temperature 0 is the case without noise.
//
// With `rejection` the choice is standard speculative sampling instead (Leviathan, Kalman, Matias, ICML 2023, section
// 2.3): a proposed x ~ q is accepted with probability min(1, p(x)/q(x)), else the token is drawn from max(0, p - q).
// The distribution is the same, more is accepted, and the text depends on what was proposed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/grammar.h"
#include "model/noise.h"
#include "model/tokenizer.h"

struct llama_token_data;

namespace drafthorse {

inline constexpr int32_t kNoToken = -1;

struct SamplingOptions {
  double temperature = 0;     // 0: the most likely token
  int32_t top_k = 0;          // 0: all
  double top_p = 1;           // (0, 1]; 1: all
  double min_p = 0;           // [0, 1]; of the most likely token's probability; 0: all
  double repeat_penalty = 1;  // 1: none
  int32_t repeat_last_n = 64;
  uint64_t seed = 0;
  std::string grammar = {};  // GBNF; empty: none
  bool ignore_end = false;   // end-of-text tokens are never chosen
  bool rejection = false;    // needs a draft and a temperature to make a difference

  bool random() const { return temperature > 0; }
  bool operator==(const SamplingOptions&) const = default;
};

// kUsage where a value makes no sense.
Status check_sampling(const SamplingOptions& options);

// Memory a sampler holds, with up to `depth` tokens proposed ahead.
uint64_t sampler_bytes(const SamplingOptions& options, int32_t n_vocab, int32_t depth);

class Sampler {
 public:
  // `tokenizer` must outlive it. kUsage where the options make no sense or the grammar is none.
  static Result<std::unique_ptr<Sampler>> create(const Tokenizer& tokenizer, const SamplingOptions& options);
  ~Sampler();
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  // The tokens of a text from `prompt_tokens` on are generated: the grammar begins there.
  void begin(size_t prompt_tokens);
  void set_seed(uint64_t seed) { options_.seed = seed; }
  const SamplingOptions& options() const { return options_; }

  // --- the token that follows `text` (prompt included), by logits [of at least the target's vocabulary, or fewer]

  // For a draft: what to propose. kNoToken where the grammar allows nothing.
  int32_t propose(std::span<const float> logits, std::span<const int32_t> text);
  // For a drafter that has a token and no logits: puts it up, as if it were certain of it. False where it cannot follow
  // (the grammar does not allow it, or the text may not end): nothing is proposed then.
  bool propose_token(int32_t token, std::span<const int32_t> text);
  // For the target: what follows, where `proposed` was proposed (kNoToken: nothing was). Proposals are forgotten when
  // the next token is proposed for the same place. kNoToken where the grammar allows nothing.
  int32_t decide(std::span<const float> logits, std::span<const int32_t> text, int32_t proposed);
  // What would be chosen at `position` by temperature, truncation and noise alone: to compare two models along a
  // given text, which need not follow a grammar.
  int32_t choose_freely(std::span<const float> logits, size_t position);

  // p after the chain: [target's vocabulary], zero where truncated. All zero where the grammar allows nothing.
  void distribution(std::span<const float> logits, std::span<const int32_t> text, std::vector<float>& p);

  bool is_end(int32_t token) const { return tokenizer_.is_end(token); }

 private:
  struct Chain;  // libllama's samplers
  // For rejection: what a proposed token was drawn from.
  struct Proposal {
    std::vector<float> q;  // [target's vocabulary]; empty: all of it on `certain`
    int32_t certain = kNoToken;
  };
  Sampler(const Tokenizer& tokenizer, const SamplingOptions& options);
  bool truncates() const { return options_.top_k > 0 || options_.top_p < 1 || options_.min_p > 0; }

  int32_t choose(std::span<const float> logits, std::span<const int32_t> text);
  int32_t choose_by_residual(std::span<const float> p, const Proposal& proposal, size_t position) const;
  // Logits into work_: unusable ones are -inf.
  void load(std::span<const float> logits);
  void penalize(std::span<const int32_t> text);
  // work_ through the grammar (if any) and truncation into candidates_.
  void truncate(Grammar* grammar);
  void take_candidates(Grammar* grammar);
  void refuse(Grammar& grammar);  // all of work_ that the grammar does not allow becomes -inf

  const Tokenizer& tokenizer_;
  SamplingOptions options_;
  int32_t n_vocab_;
  size_t prompt_tokens_ = 0;
  std::unique_ptr<Grammar> grammar_;
  std::unique_ptr<Chain> chain_;
  std::vector<int32_t> end_tokens_;
  std::vector<float> work_;  // [n_vocab]
  std::vector<llama_token_data> candidates_;
  std::vector<int32_t> ids_;
  std::vector<uint8_t> verdicts_;
  std::vector<float> target_p_;
  std::map<size_t, Proposal> proposals_;  // by position
};

}  // namespace drafthorse
