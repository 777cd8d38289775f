// libllama's own opinion of a file's vocabulary.
#pragma once

#include <llama.h>

#include <cstdint>
#include <string>

namespace drafthorse {

// Loads it as the engine does, and speaks a little; false where libllama refuses it.
inline bool loads_in_libllama(const std::string& path) {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_model_params params = llama_model_default_params();
  params.vocab_only = true;
  llama_model* model = llama_model_load_from_file(path.c_str(), params);
  if (model == nullptr) return false;
  const llama_vocab* vocabulary = llama_model_get_vocab(model);
  std::string text = "in the thing <|endoftext|>";
  for (int byte = 0; byte < 256; ++byte) text += static_cast<char>(byte);
  llama_token tokens[1024];
  for (const bool parse_special : {false, true}) {
    llama_tokenize(vocabulary, text.data(), static_cast<int32_t>(text.size()), tokens, 1024, true, parse_special);
  }
  llama_model_free(model);
  return true;
}

}  // namespace drafthorse
