// What libllama 0.5 asserts, reads out of bounds or throws across its C interface, by kind of tokenizer:
//   all       two tokens with the same text (as C strings; empty ones get a made-up text) abort the load
//   all       byte tokens are cut at fixed places of their text
//   llama     a byte that has no token throws out of llama_tokenize
//   gpt2      a token outside the byte alphabet is decoded to something of the square of its length
//   llama3-like, gemma4  BOS is added to every prompt, and asserted to exist
// Kinds that language models with experts do not use (bert, t5, rwkv, ...) have more of these and are refused.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include <fmt/format.h>

#include "base/utf8.h"
#include "io/gguf_index.h"
#include "io/gguf_reader.h"

namespace drafthorse {

namespace {

constexpr size_t kMaxTokens = 1 << 22;
constexpr size_t kMaxTokenBytes = 1 << 16;
constexpr uint64_t kMaxDecodedBytes = 256 << 20;  // of all tokens together, see decoded_bytes()
constexpr uint64_t kDefaultGpt2Id = 11;           // libllama's BOS and EOS for gpt2 where the file names none

enum TokenType { kNormal = 1, kByte = 6 };

enum class Kind { kSentencePiece, kBytePair, kGemma };

struct SpecialToken {
  std::string_view name;
  std::string_view key;
};
constexpr SpecialToken kSpecialTokens[] = {
    {"BOS", "tokenizer.ggml.bos_token_id"},         {"EOS", "tokenizer.ggml.eos_token_id"},
    {"EOT", "tokenizer.ggml.eot_token_id"},         {"EOM", "tokenizer.ggml.eom_token_id"},
    {"UNK", "tokenizer.ggml.unknown_token_id"},     {"SEP", "tokenizer.ggml.seperator_token_id"},
    {"PAD", "tokenizer.ggml.padding_token_id"},     {"CLS", "tokenizer.ggml.cls_token_id"},
    {"MASK", "tokenizer.ggml.mask_token_id"},       {"FIM PRE", "tokenizer.ggml.fim_pre_token_id"},
    {"FIM SUF", "tokenizer.ggml.fim_suf_token_id"}, {"FIM MID", "tokenizer.ggml.fim_mid_token_id"},
    {"FIM PAD", "tokenizer.ggml.fim_pad_token_id"}, {"FIM REP", "tokenizer.ggml.fim_rep_token_id"},
    {"FIM SEP", "tokenizer.ggml.fim_sep_token_id"}, {"PREFIX", "tokenizer.ggml.prefix_token_id"},
    {"SUFFIX", "tokenizer.ggml.suffix_token_id"},   {"MIDDLE", "tokenizer.ggml.middle_token_id"},
};

// Byte-level BPE writes each byte as one of these 256 characters.
bool is_in_byte_alphabet(uint32_t code) {
  return (code >= 33 && code <= 126) || (code >= 161 && code <= 172) || (code >= 174 && code <= 255) ||
         (code >= 256 && code <= 323);
}

// What libllama's decoding of a normal byte-level token may take: a character outside the alphabet is replaced by a
// note that contains the whole token.
uint64_t decoded_bytes(std::string_view text) {
  const uint64_t length = text.size();
  uint64_t bytes = length;
  while (!text.empty()) {
    if (!is_in_byte_alphabet(next_code_point(text))) bytes += length + 24;
  }
  return bytes;
}

bool is_byte_token(std::string_view text) {
  const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f'); };
  return text.size() == 6 && text.starts_with("<0x") && text[5] == '>' && is_hex(text[3]) && is_hex(text[4]);
}

// The text under which libllama files a token: it reads C strings, and makes up a text for empty ones.
std::string filed_text(const std::string& token, size_t id) {
  std::string text(token.c_str());
  return text.empty() ? fmt::format("[EMPTY_{}]", id) : text;
}

class VocabularyCheck {
 public:
  explicit VocabularyCheck(const GgufIndex& index) : index_(index) {}

  Status run() {
    RETURN_IF_ERROR(check_model());
    RETURN_IF_ERROR(check_types());
    RETURN_IF_ERROR(check_scores());
    RETURN_IF_ERROR(check_tokens());
    RETURN_IF_ERROR(kind_ == Kind::kSentencePiece ? check_byte_tokens() : check_merges());
    RETURN_IF_ERROR(check_special_ids());
    return check_added_tokens();
  }

 private:
  Status bad(std::string_view what) const {
    return file_error(fmt::format("{}: the vocabulary is not usable, {}; download or convert the model again.",
                                  index_.files()[0].path, what));
  }

  Status check_model() {
    const std::string* model = index_.get_string("tokenizer.ggml.model");
    if (model == nullptr) return bad("'tokenizer.ggml.model' is missing");
    if (*model == "llama") {
      kind_ = Kind::kSentencePiece;
    } else if (*model == "gpt2") {
      kind_ = Kind::kBytePair;
    } else if (*model == "gemma4") {
      kind_ = Kind::kGemma;
    } else {
      return bad(fmt::format("its tokenizer '{}' is none of gpt2, llama and gemma4", printable(*model)));
    }
    if (index_.has("tokenizer.ggml.pre")) {
      const std::string* pre = index_.get_string("tokenizer.ggml.pre");
      if (pre == nullptr || pre->find('\0') != std::string::npos) return bad("'tokenizer.ggml.pre' is not a name");
      pre_ = *pre;
    }
    // libllama's merge look-up asserts that no space reaches it, which this one lets through.
    if (pre_ == "whitespace") return bad("its pre-tokenizer 'whitespace' is not supported");

    tokens_ = index_.get_strings("tokenizer.ggml.tokens");
    if (tokens_ == nullptr || tokens_->empty()) return bad("it has no tokens");
    if (tokens_->size() > kMaxTokens) return bad(fmt::format("it has {} tokens", tokens_->size()));
    return {};
  }

  Status check_types() {
    if (!index_.has("tokenizer.ggml.token_type")) return {};
    types_ = index_.get_integers("tokenizer.ggml.token_type");
    if (types_ == nullptr) return bad("'tokenizer.ggml.token_type' is not an array of integers");
    if (types_->size() != tokens_->size()) {
      return bad(fmt::format("it has {} tokens and {} token types", tokens_->size(), types_->size()));
    }
    for (size_t i = 0; i < types_->size(); ++i) {
      const int64_t type = (*types_)[i];
      if (type < 0 || type > kByte) return bad(fmt::format("token {} has the unknown type {}", i, type));
      if (type == kByte && !is_byte_token((*tokens_)[i])) {
        return bad(fmt::format("token {} ('{}') is a byte, but not written as one", i, printable((*tokens_)[i])));
      }
    }
    return {};
  }

  Status check_scores() const {
    if (!index_.has("tokenizer.ggml.scores")) return {};
    size_t count = 0;
    if (const std::vector<double>* scores = index_.get_floats("tokenizer.ggml.scores")) {
      count = scores->size();
      for (size_t i = 0; i < count; ++i) {
        if (std::isnan((*scores)[i])) return bad(fmt::format("the score of token {} is not a number", i));
      }
    } else if (const std::vector<int64_t>* ranks = index_.get_integers("tokenizer.ggml.scores")) {
      count = ranks->size();
    } else {
      return bad("'tokenizer.ggml.scores' is not an array of numbers");
    }
    if (count != tokens_->size()) {
      return bad(fmt::format("it has {} tokens and {} scores", tokens_->size(), count));
    }
    return {};
  }

  Status check_tokens() {
    uint64_t decoded = 0;
    filed_.reserve(tokens_->size());
    for (size_t i = 0; i < tokens_->size(); ++i) {
      const std::string& token = (*tokens_)[i];
      if (token.size() > kMaxTokenBytes) return bad(fmt::format("token {} has {} bytes", i, token.size()));
      if (!is_utf8(token)) return bad(fmt::format("token {} ('{}') is not UTF-8", i, printable(token)));
      if (!filed_.insert(filed_text(token, i)).second) {
        return bad(fmt::format("token {} ('{}') is there twice", i, printable(token)));
      }
      const bool normal = types_ == nullptr || (*types_)[i] == kNormal;
      decoded += kind_ == Kind::kBytePair && normal ? decoded_bytes(token) : token.size();
    }
    if (decoded > kMaxDecodedBytes) return bad(fmt::format("its tokens decode to {} bytes", decoded));
    return {};
  }

  Status check_byte_tokens() const {
    for (int byte = 0; byte < 256; ++byte) {
      const std::string as_character(1, static_cast<char>(byte));
      if (!filed_.contains(fmt::format("<0x{:02X}>", byte)) && (byte == 0 || !filed_.contains(as_character))) {
        return bad(fmt::format("it has no token for the byte 0x{:02X}", byte));
      }
    }
    return {};
  }

  Status check_merges() const {
    const std::vector<std::string>* merges = index_.get_strings("tokenizer.ggml.merges");
    if (merges == nullptr) {
      // The one byte-pair tokenizer that works without.
      if (pre_ == "kimi-k2" && !index_.has("tokenizer.ggml.merges")) return {};
      return bad("'tokenizer.ggml.merges' is missing or not an array of strings");
    }
    for (size_t i = 0; i < merges->size(); ++i) {
      const std::string& merge = (*merges)[i];
      // A leading space belongs to the left half.
      const size_t gap = merge.find(' ', 1);
      if (gap == std::string::npos || gap + 1 == merge.size() || merge.find('\0') != std::string::npos ||
          merge.size() > 2 * kMaxTokenBytes || !is_utf8(merge)) {
        return bad(
            fmt::format("merge {} ('{}') is not two pieces of text with a space between them", i, printable(merge)));
      }
    }
    return {};
  }

  Status check_special_ids() const {
    for (const SpecialToken& special : kSpecialTokens) {
      if (!index_.has(special.key)) continue;
      const std::optional<uint64_t> id = index_.get_u64(special.key);
      if (!id) return bad(fmt::format("'{}' is not a token id", special.key));
      if (*id >= tokens_->size()) {
        return bad(
            fmt::format("the id of its {} token is {}, beyond its {} tokens", special.name, *id, tokens_->size()));
      }
    }
    return {};
  }

  // libllama's default where the file has no id; the default is dropped where it lies outside the vocabulary.
  bool has_token(std::string_view key, std::optional<uint64_t> default_id) const {
    return index_.has(key) || (default_id && *default_id < tokens_->size());
  }

  Status check_added_tokens() const {
    std::optional<uint64_t> default_bos;
    std::optional<uint64_t> default_eos;
    if (kind_ == Kind::kSentencePiece) {
      default_bos = 1;
      default_eos = 2;
    } else if (kind_ == Kind::kBytePair) {
      default_bos = default_eos = kDefaultGpt2Id;
      if (pre_ == "chatglm-bpe" || pre_ == "glm4" || pre_ == "glm5") default_bos.reset();
    }
    for (const char* key : {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"}) {
      if (index_.has(key) && !index_.get_bool(key)) return bad(fmt::format("'{}' is neither true nor false", key));
    }
    // Which pre-tokenizers add BOS unasked is libllama's business and changes; those without a default do not.
    const bool always = kind_ == Kind::kGemma || pre_ == "gemma4" || pre_ == "granite-embed-multi-311m";
    const bool unasked = kind_ == Kind::kSentencePiece || default_bos.has_value();
    if ((always || index_.get_bool("tokenizer.ggml.add_bos_token").value_or(unasked)) &&
        !has_token("tokenizer.ggml.bos_token_id", default_bos)) {
      return bad("its prompts begin with a BOS token, which it does not have");
    }
    if (index_.get_bool("tokenizer.ggml.add_eos_token").value_or(false) &&
        !has_token("tokenizer.ggml.eos_token_id", default_eos)) {
      return bad("its prompts end with an EOS token, which it does not have");
    }
    return {};
  }

  const GgufIndex& index_;
  Kind kind_ = Kind::kBytePair;
  std::string pre_;
  const std::vector<std::string>* tokens_ = nullptr;
  const std::vector<int64_t>* types_ = nullptr;  // nullptr: all normal
  std::unordered_set<std::string> filed_;
};

}  // namespace

Status check_vocabulary(const GgufIndex& index) { return VocabularyCheck(index).run(); }

}  // namespace drafthorse
