// Text to tokens and back, through libllama's vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "io/gguf_index.h"

struct llama_model;
struct llama_vocab;

namespace drafthorse {

class Tokenizer {
 public:
  // Loads the vocabulary alone. The index must have passed check_vocabulary(): libllama ends the process over some
  // damages that it looks for.
  static Result<std::unique_ptr<Tokenizer>> load(const GgufIndex& index);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // With the beginning-of-text token where the model wants one. Text that spells a special token stays text.
  std::vector<int32_t> tokenize(std::string_view text) const;
  // A whole text too, in which special tokens may be spelled out.
  std::vector<int32_t> tokenize_chat(std::string_view text) const;
  // A piece of a text: no beginning-of-text token. special: text that spells a special token becomes that token.
  std::vector<int32_t> tokenize_piece(std::string_view text, bool special) const;
  // The bytes of one token; special tokens are empty. A token may be part of a UTF-8 character.
  std::string piece(int32_t token) const;
  bool is_end(int32_t token) const;  // end of text, of turn, ...
  int32_t n_tokens() const;

  // The chat template that came with the model; empty: none.
  std::string chat_template() const;
  // For libllama's samplers; valid as long as the tokenizer.
  const llama_vocab* vocabulary() const { return vocab_; }

 private:
  Tokenizer() = default;
  std::vector<int32_t> tokenize(std::string_view text, bool add_beginning, bool special) const;
  llama_model* model_ = nullptr;
  const llama_vocab* vocab_ = nullptr;
};

}  // namespace drafthorse
