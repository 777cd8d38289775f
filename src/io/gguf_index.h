// Where everything is in a GGUF model: metadata, and for each tensor its type, shape and byte range, over all shards.
//
// Reading is validation. open() accepts a file only if nothing later (our kernels, ggml, libllama's vocabulary
// loader) can be led out of bounds or into an assertion by what it says: magic and version, counts, key and tensor
// names (unique, sane lengths), types ggml knows, dimensions without overflow that divide the type's block size,
// offsets aligned and inside the file, extents that do not overlap, shards complete and consistent. The tensors'
// payload is not looked at. Whatever is wrong is one kFile sentence naming the file and the place.
//
// Immutable after open(); any thread may read.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <ggml.h>

#include "base/status.h"

namespace drafthorse {

struct TensorInfo {
  std::string name;
  ggml_type type = GGML_TYPE_F32;
  int n_dims = 0;
  int64_t ne[4] = {1, 1, 1, 1};  // elements per dimension, fastest first, as in ggml
  int file = 0;                  // index into GgufIndex::files()
  uint64_t offset = 0;           // of the payload, from the start of that file, in bytes
  uint64_t bytes = 0;            // of the payload
};

class GgufIndex {
 public:
  struct ShardFile {
    std::string path;
    uint64_t bytes = 0;
  };

  // GGUF's integers are widened to (u)int64, its floats to double; arrays are homogeneous.
  using Value = std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<bool>, std::vector<int64_t>,
                             std::vector<double>, std::vector<std::string>>;

  // `path` may be any shard of a split model (NAME-00001-of-00003.gguf); its siblings are found beside it.
  static Result<GgufIndex> open(const std::string& path);

  const std::vector<ShardFile>& files() const { return files_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find(std::string_view name) const;  // nullptr where there is none

  bool has(std::string_view key) const { return metadata_.find(key) != metadata_.end(); }
  // nullopt where the key is missing or holds another kind of value. Unsigned and signed integers convert where
  // they fit; get_f64 also takes integers.
  std::optional<uint64_t> get_u64(std::string_view key) const;
  std::optional<double> get_f64(std::string_view key) const;
  std::optional<bool> get_bool(std::string_view key) const;
  const std::string* get_string(std::string_view key) const;
  const std::vector<std::string>* get_strings(std::string_view key) const;
  const std::vector<int64_t>* get_integers(std::string_view key) const;
  const std::vector<double>* get_floats(std::string_view key) const;

  // Frees the large tokenizer arrays (tokens, merges, scores, types) once the vocabulary has been loaded elsewhere.
  void drop_tokenizer_arrays();

  uint64_t tensor_bytes() const;  // of all tensors' payloads together

 private:
  std::vector<ShardFile> files_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t, std::less<>> by_name_;
  std::map<std::string, Value, std::less<>> metadata_;
};

// Checks all that libllama's vocabulary loader would assert or misread: the tokenizer's model is one it knows,
// tokens present, not empty, unique, scores and types of the same length, merges well formed ("left right"),
// special ids within the vocabulary, a newline and byte tokens where the tokenizer's kind needs them.
Status check_vocabulary(const GgufIndex& index);

// kFile, naming the first difference, unless `draft` speaks the target's vocabulary: the same tokens at the same ids
// (padding at the end of either apart) and the same special ids.
Status check_same_vocabulary(const GgufIndex& target, const GgufIndex& draft);

}  // namespace drafthorse
