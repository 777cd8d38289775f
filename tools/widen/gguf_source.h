// A GGUF file to take weights from, mapped into memory: metadata, tensors, and any row of any tensor as floats.
//
// For files one trusts: ggml parses the metadata, and only what could lead reads out of the file is checked here.
// Immutable once open; any thread may read rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "ggml.h"
#include "gguf.h"

namespace drafthorse {

struct SourceTensor {
  std::string name;
  ggml_type type = GGML_TYPE_F32;
  int64_t n_columns = 1;  // numbers in a row: the innermost dimension
  int64_t n_rows = 1;
  int64_t n_slices = 1;  // experts, where they are stacked
  int32_t n_dims = 1;
  const std::byte* data = nullptr;
};

class GgufSource {
 public:
  // File error for what is no GGUF file, is truncated, is one of several shards or holds a type that has no floats.
  static Result<std::unique_ptr<GgufSource>> open(const std::string& path);
  ~GgufSource();
  GgufSource(const GgufSource&) = delete;
  GgufSource& operator=(const GgufSource&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<SourceTensor>& tensors() const { return tensors_; }
  const SourceTensor* find(const std::string& name) const;  // nullptr where there is none

  const gguf_context* metadata() const { return metadata_; }
  // nullopt where the key is missing or holds another kind of value.
  std::optional<int64_t> integer(const std::string& key) const;
  std::optional<std::string> text(const std::string& key) const;

 private:
  GgufSource() = default;
  Status map(const std::string& path);
  Status list_tensors();

  std::string path_;
  gguf_context* metadata_ = nullptr;
  std::vector<SourceTensor> tensors_;
  void* mapping_ = nullptr;
  size_t bytes_ = 0;
};

// Writes the n_columns floats of one row to `out`.
void read_row(const SourceTensor& tensor, int64_t slice, int64_t row, float* out);

}  // namespace drafthorse
