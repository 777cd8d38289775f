#include "model/tokenizer.h"

#include <fmt/format.h>
#include <llama.h>

#include <algorithm>

namespace drafthorse {
namespace {

// libllama reports through a process-wide callback. Errors are kept for our own sentence, the rest is dropped.
struct LogCapture {
  std::string errors;
  LogCapture() { llama_log_set(&LogCapture::receive, this); }
  ~LogCapture() {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  }
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;
  static void receive(ggml_log_level level, const char* text, void* self) {
    if (level == GGML_LOG_LEVEL_ERROR) static_cast<LogCapture*>(self)->errors += text;
  }
};

// The first error is the cause; those after it only say who gave up because of it.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::load(const GgufIndex& index) {
  const std::string& path = index.files().front().path;
  LogCapture log;
  llama_model_params params = llama_model_default_params();
  params.vocab_only = true;
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer);
  tokenizer->model_ = llama_model_load_from_file(path.c_str(), params);
  if (tokenizer->model_ == nullptr) {
    return file_error(fmt::format("{}: the vocabulary cannot be loaded: {}", path, first_line(log.errors)));
  }
  tokenizer->vocab_ = llama_model_get_vocab(tokenizer->model_);
  return tokenizer;
}

Tokenizer::~Tokenizer() {
  if (model_ != nullptr) llama_model_free(model_);
}

std::vector<int32_t> Tokenizer::tokenize(std::string_view text, bool add_beginning, bool special) const {
  std::vector<int32_t> tokens(text.size() + 8);
  const auto length = static_cast<int32_t>(text.size());
  const auto run = [&] {
    return llama_tokenize(vocab_, text.data(), length, tokens.data(), static_cast<int32_t>(tokens.size()),
                          add_beginning, special);
  };
  int32_t count = run();
  if (count < 0) {
    tokens.resize(static_cast<size_t>(-count));
    count = run();
  }
  CHECK(count >= 0);
  tokens.resize(static_cast<size_t>(count));
  return tokens;
}

std::vector<int32_t> Tokenizer::tokenize(std::string_view text) const { return tokenize(text, true, false); }

std::vector<int32_t> Tokenizer::tokenize_chat(std::string_view text) const { return tokenize(text, true, true); }

std::vector<int32_t> Tokenizer::tokenize_piece(std::string_view text, bool special) const {
  return tokenize(text, false, special);
}

std::string Tokenizer::piece(int32_t token) const {
  std::string text(64, '\0');
  int32_t length = llama_token_to_piece(vocab_, token, text.data(), static_cast<int32_t>(text.size()), 0, false);
  if (length < 0) {
    text.resize(static_cast<size_t>(-length));
    length = llama_token_to_piece(vocab_, token, text.data(), static_cast<int32_t>(text.size()), 0, false);
  }
  text.resize(static_cast<size_t>(std::max(0, length)));
  return text;
}

bool Tokenizer::is_end(int32_t token) const { return llama_vocab_is_eog(vocab_, token); }

int32_t Tokenizer::n_tokens() const { return llama_vocab_n_tokens(vocab_); }

std::string Tokenizer::chat_template() const {
  const char* text = llama_model_chat_template(model_, nullptr);
  return text == nullptr ? "" : text;
}

}  // namespace drafthorse
