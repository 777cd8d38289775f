// Numbers of a model's metadata, each checked to be one. Keys are the architecture's own: "block_count" means
// "llama.block_count" in a file of architecture llama. Whatever is wrong is one kFile sentence naming file and key.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "io/gguf_index.h"

namespace drafthorse {

class MetadataReader {
 public:
  // Far above any model there is; keeps every product of sizes within 64 bits.
  static constexpr uint64_t kMaxDimension = 1 << 24;

  // Both must outlive the reader.
  MetadataReader(const GgufIndex& index, const std::string& architecture)
      : index_(index), architecture_(architecture) {}

  const GgufIndex& index() const { return index_; }
  Status error(const std::string& what) const;
  std::string key(std::string_view name) const { return architecture_ + "." + std::string(name); }
  bool has(std::string_view name) const { return index_.has(key(name)); }

  // A number of elements, layers, tokens and the like: at least `least`, at most kMaxDimension.
  Result<int32_t> dimension(std::string_view name, uint64_t least = 1) const;
  Result<int32_t> dimension_or(std::string_view name, int32_t otherwise) const;  // 0 is allowed
  Result<float> number_or(std::string_view name, double otherwise) const;        // finite
  Result<bool> flag_or(std::string_view name, bool otherwise) const;
  Result<std::string> text_or(std::string_view name, const std::string& otherwise) const;

 private:
  const GgufIndex& index_;
  const std::string& architecture_;
};

}  // namespace drafthorse
