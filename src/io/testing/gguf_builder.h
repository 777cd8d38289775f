// Writes GGUF files for tests, sound ones and, where asked, ones that lie.
#pragma once

#include <ggml.h>
#include <gguf.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace drafthorse {

using Bytes = std::vector<std::byte>;

class GgufBuilder {
 public:
  // What the header says; nullopt: the truth.
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<uint64_t> claimed_tensors;
  std::optional<uint64_t> claimed_keys;
  uint64_t alignment = 32;  // of the data; general.alignment is up to the caller
  uint64_t cut_from_end = 0;

  template <typename T>
  void set(std::string_view key, T value) {
    begin_key(key, type_of<T>());
    put(keys_, value);
  }
  void set(std::string_view key, const char* value) { set_string(key, value); }
  void set(std::string_view key, const std::string& value) { set_string(key, value); }
  void set_string(std::string_view key, std::string_view value) {
    begin_key(key, GGUF_TYPE_STRING);
    put_string(keys_, value);
  }
  template <typename T>
  void set_array(std::string_view key, const std::vector<T>& values) {
    begin_array(key, type_of<T>(), values.size());
    for (const T& value : values) put(keys_, value);
  }
  void set_strings(std::string_view key, const std::vector<std::string>& values) {
    begin_array(key, GGUF_TYPE_STRING, values.size());
    for (const std::string& value : values) put_string(keys_, value);
  }
  // The value's bytes are the caller's.
  void set_raw(std::string_view key, uint32_t type, const Bytes& value) {
    begin_key(key, type);
    keys_.insert(keys_.end(), value.begin(), value.end());
  }

  // A sound tensor of zeros, placed behind those before it.
  void add_tensor(std::string_view name, ggml_type type, const std::vector<int64_t>& ne) {
    uint64_t elements = 1;
    for (const int64_t n : ne) elements *= static_cast<uint64_t>(n);
    const uint64_t bytes = elements / static_cast<uint64_t>(ggml_blck_size(type)) * ggml_type_size(type);
    add_raw_tensor(name, ne, type, data_bytes_);
    data_bytes_ = (data_bytes_ + bytes + alignment - 1) / alignment * alignment;
  }
  // One that may say anything; takes no space.
  void add_raw_tensor(std::string_view name, const std::vector<int64_t>& ne, uint32_t type, uint64_t offset) {
    ++n_tensors_;
    put_string(tensors_, name);
    put(tensors_, static_cast<uint32_t>(ne.size()));
    for (const int64_t n : ne) put(tensors_, n);
    put(tensors_, type);
    put(tensors_, offset);
  }

  uint64_t data_bytes() const { return data_bytes_; }  // of the tensors, behind the header

  Bytes build() const {
    Bytes out;
    for (const char c : magic) put(out, c);
    put(out, version);
    put(out, claimed_tensors.value_or(n_tensors_));
    put(out, claimed_keys.value_or(n_keys_));
    out.insert(out.end(), keys_.begin(), keys_.end());
    out.insert(out.end(), tensors_.begin(), tensors_.end());
    if (n_tensors_ > 0) out.resize((out.size() + alignment - 1) / alignment * alignment + data_bytes_);
    out.resize(out.size() - cut_from_end);
    return out;
  }

  template <typename T>
  static void put(Bytes& out, T value) {
    static_assert(std::is_arithmetic_v<T>);
    const size_t at = out.size();
    out.resize(at + sizeof(T));
    std::memcpy(out.data() + at, &value, sizeof(T));
  }
  static void put_string(Bytes& out, std::string_view text) {
    put(out, static_cast<uint64_t>(text.size()));
    for (const char c : text) out.push_back(static_cast<std::byte>(c));
  }

 private:
  template <typename T>
  static constexpr uint32_t type_of() {
    if constexpr (std::is_same_v<T, bool>) return GGUF_TYPE_BOOL;
    if constexpr (std::is_same_v<T, uint8_t>) return GGUF_TYPE_UINT8;
    if constexpr (std::is_same_v<T, int8_t>) return GGUF_TYPE_INT8;
    if constexpr (std::is_same_v<T, uint16_t>) return GGUF_TYPE_UINT16;
    if constexpr (std::is_same_v<T, int16_t>) return GGUF_TYPE_INT16;
    if constexpr (std::is_same_v<T, uint32_t>) return GGUF_TYPE_UINT32;
    if constexpr (std::is_same_v<T, int32_t>) return GGUF_TYPE_INT32;
    if constexpr (std::is_same_v<T, uint64_t>) return GGUF_TYPE_UINT64;
    if constexpr (std::is_same_v<T, int64_t>) return GGUF_TYPE_INT64;
    if constexpr (std::is_same_v<T, float>) return GGUF_TYPE_FLOAT32;
    if constexpr (std::is_same_v<T, double>) return GGUF_TYPE_FLOAT64;
  }
  void begin_key(std::string_view key, uint32_t type) {
    ++n_keys_;
    put_string(keys_, key);
    put(keys_, type);
  }
  void begin_array(std::string_view key, uint32_t element_type, uint64_t count) {
    begin_key(key, GGUF_TYPE_ARRAY);
    put(keys_, element_type);
    put(keys_, count);
  }

  uint64_t n_keys_ = 0;
  uint64_t n_tensors_ = 0;
  uint64_t data_bytes_ = 0;
  Bytes keys_;
  Bytes tensors_;
};

// A vocabulary to be written, and to be spoilt before.
struct TestVocabulary {
  std::string model;
  std::optional<std::string> pre;
  std::vector<std::string> tokens{};
  std::vector<int32_t> types{};
  std::vector<float> scores{};                       // empty: no key
  std::optional<std::vector<std::string>> merges{};  // nullopt: no key
  std::vector<std::pair<std::string, uint32_t>> special_ids{};
  std::vector<std::pair<std::string, bool>> switches{};  // keys that hold true or false

  void add(const std::string& token, int32_t type) {
    tokens.push_back(token);
    types.push_back(type);
    if (model == "llama") scores.push_back(-static_cast<float>(tokens.size()));
  }

  void write(GgufBuilder& builder) const {
    builder.set("tokenizer.ggml.model", model);
    if (pre) builder.set("tokenizer.ggml.pre", *pre);
    builder.set_strings("tokenizer.ggml.tokens", tokens);
    builder.set_array("tokenizer.ggml.token_type", types);
    if (!scores.empty()) builder.set_array("tokenizer.ggml.scores", scores);
    if (merges) builder.set_strings("tokenizer.ggml.merges", *merges);
    for (const auto& [key, id] : special_ids) builder.set(key, id);
    for (const auto& [key, on] : switches) builder.set(key, on);
  }
};

inline std::string utf8(uint32_t code) {
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

// Byte-level BPE, as GPT-2's: an end token, the alphabet, a few merges.
inline TestVocabulary byte_level_vocabulary() {
  TestVocabulary vocabulary{.model = "gpt2", .pre = "gpt-2"};
  vocabulary.add("<|endoftext|>", 3);
  uint32_t next_stand_in = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    vocabulary.add(utf8(printable ? byte : next_stand_in++), 1);
  }
  vocabulary.merges.emplace();
  for (const auto& [left, right] : {std::pair{"t", "h"}, {"th", "e"}, {"i", "n"}, {"\u0120", "the"}, {"in", "g"}}) {
    vocabulary.merges->push_back(std::string(left) + " " + right);
    vocabulary.add(std::string(left) + right, 1);
  }
  vocabulary.add("[PAD262]", 5);
  vocabulary.special_ids = {{"tokenizer.ggml.bos_token_id", 0}, {"tokenizer.ggml.eos_token_id", 0}};
  vocabulary.switches = {{"tokenizer.ggml.add_bos_token", false}};
  return vocabulary;
}

// SentencePiece with byte fallback, as Llama 2's.
inline TestVocabulary sentencepiece_vocabulary() {
  constexpr char kHex[] = "0123456789ABCDEF";
  TestVocabulary vocabulary{.model = "llama", .pre = "default"};
  vocabulary.add("<unk>", 2);
  vocabulary.add("<s>", 3);
  vocabulary.add("</s>", 3);
  for (int byte = 0; byte < 256; ++byte)
    vocabulary.add(std::string("<0x") + kHex[byte / 16] + kHex[byte % 16] + ">", 6);
  for (const char* token : {"\u2581", "e", "t", "h", "th", "the", "\u2581the", "in", "ing"}) vocabulary.add(token, 1);
  vocabulary.special_ids = {
      {"tokenizer.ggml.bos_token_id", 1}, {"tokenizer.ggml.eos_token_id", 2}, {"tokenizer.ggml.unknown_token_id", 0}};
  return vocabulary;
}

}  // namespace drafthorse
