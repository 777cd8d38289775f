#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "io/gguf_index.h"
#include "io/gguf_reader.h"

namespace drafthorse {

namespace {

constexpr int64_t kUnusedType = 5;
constexpr uint64_t kDefaultGpt2Id = 11;

// Models of one family round their vocabularies up to different sizes; these are what converters fill them with.
bool is_padding(std::string_view token, const std::vector<int64_t>* types, size_t id) {
  if (types != nullptr && id < types->size() && (*types)[id] == kUnusedType) return true;
  constexpr std::string_view kPrefixes[] = {"[PAD",   "<pad",    "<|pad",      "<unused",  "[unused",
                                            "<dummy", "<|dummy", "<|reserved", "<|unused", "<extra_id"};
  return std::any_of(std::begin(kPrefixes), std::end(kPrefixes),
                     [&](std::string_view prefix) { return token.starts_with(prefix); });
}

size_t size_without_padding(const GgufIndex& index, const std::vector<std::string>& tokens) {
  const std::vector<int64_t>* types = index.get_integers("tokenizer.ggml.token_type");
  size_t size = tokens.size();
  while (size > 0 && is_padding(tokens[size - 1], types, size - 1)) --size;
  return size;
}

// The id a model uses: its own, or what libllama takes for its kind of tokenizer.
std::optional<uint64_t> special_id(const GgufIndex& index, std::string_view key, uint64_t sentencepiece_default) {
  if (index.has(key)) return index.get_u64(key);
  const std::string* model = index.get_string("tokenizer.ggml.model");
  if (model != nullptr && *model == "llama") return sentencepiece_default;
  if (model != nullptr && *model == "gpt2") return kDefaultGpt2Id;
  return std::nullopt;
}

std::string shown(std::optional<uint64_t> id) { return id ? fmt::format("{}", *id) : "none"; }

}  // namespace

Status check_same_vocabulary(const GgufIndex& target, const GgufIndex& draft) {
  const auto differs = [&](std::string_view how) {
    return file_error(
        fmt::format("{}: speaks another vocabulary than the target {}, {}; use a draft of the target's "
                    "family.",
                    draft.files()[0].path, target.files()[0].path, how));
  };
  const std::string* target_model = target.get_string("tokenizer.ggml.model");
  const std::string* draft_model = draft.get_string("tokenizer.ggml.model");
  const std::vector<std::string>* target_tokens = target.get_strings("tokenizer.ggml.tokens");
  const std::vector<std::string>* draft_tokens = draft.get_strings("tokenizer.ggml.tokens");
  if (target_model == nullptr || draft_model == nullptr || target_tokens == nullptr || draft_tokens == nullptr) {
    return differs("one of them has none");
  }
  if (*target_model != *draft_model) {
    return differs(
        fmt::format("their tokenizers are '{}' and '{}'", printable(*target_model), printable(*draft_model)));
  }
  // Padding of one may be real tokens of the other, so both are compared as far as either is in earnest.
  const size_t size =
      std::max(size_without_padding(target, *target_tokens), size_without_padding(draft, *draft_tokens));
  for (size_t i = 0; i < size; ++i) {
    const std::string* in_target = i < target_tokens->size() ? &(*target_tokens)[i] : nullptr;
    const std::string* in_draft = i < draft_tokens->size() ? &(*draft_tokens)[i] : nullptr;
    if (in_target == nullptr || in_draft == nullptr) {
      return differs(fmt::format("it has {} tokens and the target {}", draft_tokens->size(), target_tokens->size()));
    }
    if (*in_target != *in_draft) {
      return differs(
          fmt::format("token {} is '{}' and the target's is '{}'", i, printable(*in_draft), printable(*in_target)));
    }
  }
  struct Special {
    std::string_view name;
    std::string_view key;
    uint64_t sentencepiece_default;
  };
  constexpr Special kCompared[] = {{"BOS", "tokenizer.ggml.bos_token_id", 1},
                                   {"EOS", "tokenizer.ggml.eos_token_id", 2}};
  for (const Special& special : kCompared) {
    const std::optional<uint64_t> in_target = special_id(target, special.key, special.sentencepiece_default);
    const std::optional<uint64_t> in_draft = special_id(draft, special.key, special.sentencepiece_default);
    if (in_target != in_draft) {
      return differs(
          fmt::format("its {} token is {} and the target's is {}", special.name, shown(in_draft), shown(in_target)));
    }
  }
  // A missing EOT or EOM is found by its text, the same in both; only two that are named can disagree.
  for (const std::string_view key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const std::optional<uint64_t> in_target = target.get_u64(key);
    const std::optional<uint64_t> in_draft = draft.get_u64(key);
    if (in_target && in_draft && *in_target != *in_draft) {
      return differs(fmt::format("'{}' is {} and the target's is {}", key, *in_draft, *in_target));
    }
  }
  return {};
}

}  // namespace drafthorse
