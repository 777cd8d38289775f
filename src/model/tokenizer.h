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
  // The bytes of one token; special tokens are empty. A token may be part of a UTF-8 character.
  std::string piece(int32_t token) const;
  bool is_end(int32_t token) const;  // end of text, of turn, ...

 private:
  Tokenizer() = default;
  llama_model* model_ = nullptr;
  const llama_vocab* vocab_ = nullptr;
};

}  // namespace drafthorse
