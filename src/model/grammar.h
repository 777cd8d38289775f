// A grammar that says which tokens may come next (GBNF, llama.cpp's notation, through libllama's grammar sampler).
//
// Outwardly a function of the tokens generated so far. Inwardly it keeps the state after each of the last tokens, so
// that a draft may run ahead and be taken back for the price of a copy, and what draft and target both ask about a
// state is worked out once. One thread uses a Grammar.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

struct llama_sampler;
struct llama_vocab;

namespace drafthorse {

// One JSON object or array, on one line or indented, with whitespace kept short so that it cannot go on for ever.
const char* json_grammar();

class Grammar {
 public:
  // `vocab` must outlive the grammar and have n_vocab tokens. kUsage where the text is not a grammar with a rule
  // `root`.
  static Result<std::unique_ptr<Grammar>> parse(const llama_vocab* vocab, int32_t n_vocab, const std::string& text);

  // The text so far becomes `generated`.
  void move_to(std::span<const int32_t> generated);

  // Of `tokens`, which may come next: 1 or 0 each. An end-of-text token may where the grammar is satisfied.
  void allowed(std::span<const int32_t> tokens, std::vector<uint8_t>& out);
  bool allowed(int32_t token);

  // States kept back from the newest, at most. Anything taken back further is worked out from the beginning.
  static constexpr size_t kStates = 72;

 private:
  struct SamplerDeleter {
    void operator()(llama_sampler* sampler) const;
  };
  using SamplerPtr = std::unique_ptr<llama_sampler, SamplerDeleter>;
  enum Verdict : uint8_t { kUnknown, kRefused, kAllowed };
  struct State {
    SamplerPtr sampler;             // nullptr: nothing fits any more
    std::vector<uint8_t> verdicts;  // [n_vocab], or empty: nothing asked yet
  };

  Grammar(SamplerPtr initial, int32_t n_vocab) : initial_(std::move(initial)), n_vocab_(n_vocab) {}
  void restart();
  void accept(int32_t token);

  SamplerPtr initial_;
  int32_t n_vocab_;
  std::vector<int32_t> tokens_;  // that the newest state has seen
  std::deque<State> states_;     // the last one is after tokens_, the one before it after one token less, ...
};

}  // namespace drafthorse
