#include "support/oracle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "llama.h"

namespace drafthorse {

namespace {

void initialise_once() {
  static const bool done = [] {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_backend_init();
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace

Result<std::unique_ptr<Oracle>> Oracle::load(const std::string& path, const OracleOptions& options) {
  initialise_once();
  llama_model_params model_params = llama_model_default_params();
  model_params.n_gpu_layers = 0;
  model_params.use_extra_bufts = false;
  llama_model* model = llama_model_load_from_file(path.c_str(), model_params);
  if (model == nullptr) return file_error(fmt::format("libllama does not load {}", path));

  llama_context_params context_params = llama_context_default_params();
  context_params.n_ctx = static_cast<uint32_t>(options.n_ctx);
  context_params.n_batch = static_cast<uint32_t>(options.n_ctx);
  context_params.n_ubatch = static_cast<uint32_t>(options.n_ctx);
  context_params.n_threads = options.n_threads;
  context_params.n_threads_batch = options.n_threads;
  context_params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  context_params.type_k = options.kv_type;
  context_params.type_v = options.kv_type;
  llama_context* context = llama_init_from_model(model, context_params);
  if (context == nullptr) {
    llama_model_free(model);
    return runtime_error(fmt::format("libllama makes no context of {} tokens for {}", options.n_ctx, path));
  }
  return std::unique_ptr<Oracle>(new Oracle(model, context, options.n_ctx));
}

Oracle::Oracle(llama_model* model, llama_context* context, int32_t n_ctx)
    : model_(model), context_(context), vocab_(llama_model_get_vocab(model)), n_ctx_(n_ctx) {}

Oracle::~Oracle() {
  llama_free(context_);
  llama_model_free(model_);
}

int32_t Oracle::n_vocab() const { return llama_vocab_n_tokens(vocab_); }

std::vector<int32_t> Oracle::tokenize(std::string_view text, bool add_special) const {
  std::vector<int32_t> tokens(text.size() + 8);
  const int32_t n = llama_tokenize(vocab_, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                                   static_cast<int32_t>(tokens.size()), add_special, /*parse_special=*/false);
  CHECK(n >= 0);  // never more tokens than bytes, plus a few special ones
  tokens.resize(static_cast<size_t>(n));
  return tokens;
}

std::string Oracle::detokenize(std::span<const int32_t> tokens) const {
  std::string text(tokens.size() * 16 + 64, '\0');
  const auto call = [&] {
    return llama_detokenize(vocab_, tokens.data(), static_cast<int32_t>(tokens.size()), text.data(),
                            static_cast<int32_t>(text.size()), /*remove_special=*/true, /*unparse_special=*/false);
  };
  int32_t n = call();
  if (n < 0) {  // the size it needs, negated
    text.resize(static_cast<size_t>(-n));
    n = call();
  }
  CHECK(n >= 0);
  text.resize(static_cast<size_t>(n));
  return text;
}

std::span<const float> Oracle::decode(std::span<const int32_t> tokens, bool all_positions) {
  const auto n = static_cast<int32_t>(tokens.size());
  llama_batch batch = llama_batch_init(n, 0, 1);
  const llama_pos first = llama_memory_seq_pos_max(llama_get_memory(context_), 0) + 1;
  batch.n_tokens = n;
  for (int32_t i = 0; i < n; ++i) {
    batch.token[i] = tokens[static_cast<size_t>(i)];
    batch.pos[i] = first + i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = all_positions || i == n - 1;
  }
  const int32_t failed = llama_decode(context_, batch);
  llama_batch_free(batch);
  CHECK(failed == 0);
  const auto n_rows = static_cast<size_t>(all_positions ? n : 1);
  return {llama_get_logits(context_), n_rows * static_cast<size_t>(n_vocab())};
}

Logits Oracle::logits(std::span<const int32_t> tokens) {
  CHECK(!tokens.empty() && static_cast<int32_t>(tokens.size()) <= n_ctx_);
  llama_memory_clear(llama_get_memory(context_), true);
  const std::span<const float> all = decode(tokens, true);
  const auto width = static_cast<size_t>(n_vocab());
  Logits rows;
  rows.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::span<const float> row = all.subspan(i * width, width);
    rows.emplace_back(row.begin(), row.end());
  }
  return rows;
}

std::vector<int32_t> Oracle::greedy(std::span<const int32_t> prompt, int32_t n) {
  CHECK(!prompt.empty() && static_cast<int32_t>(prompt.size()) + n <= n_ctx_);
  llama_memory_clear(llama_get_memory(context_), true);
  std::vector<int32_t> text;
  if (n <= 0) return text;
  text.push_back(argmax(decode(prompt, false)));
  while (static_cast<int32_t>(text.size()) < n) {
    const int32_t last = text.back();
    text.push_back(argmax(decode({&last, 1}, false)));
  }
  return text;
}

int32_t argmax(std::span<const float> values) {
  return static_cast<int32_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

float top2_margin(std::span<const float> values) {
  CHECK(values.size() >= 2);
  float first = -INFINITY;
  float second = -INFINITY;
  for (const float value : values) {
    if (value > first) {
      second = first;
      first = value;
    } else if (value > second) {
      second = value;
    }
  }
  return first - second;
}

double share_of_equal_argmax(const Logits& a, const Logits& b) {
  CHECK(a.size() == b.size() && !a.empty());
  size_t equal = 0;
  for (size_t i = 0; i < a.size(); ++i) equal += argmax(a[i]) == argmax(b[i]);
  return static_cast<double>(equal) / static_cast<double>(a.size());
}

double relative_rms(const Logits& got, const Logits& reference) {
  CHECK(got.size() == reference.size() && !got.empty());
  double difference = 0;
  double magnitude = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    CHECK(got[i].size() == reference[i].size());
    for (size_t j = 0; j < got[i].size(); ++j) {
      const double expected = reference[i][j];
      const double error = got[i][j] - expected;
      difference += error * error;
      magnitude += expected * expected;
    }
  }
  return std::sqrt(difference / magnitude);
}

}  // namespace drafthorse
