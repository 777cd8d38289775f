// One GGUF file, read and checked by itself; gguf_index.h puts a model's shards together.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/gguf_index.h"

namespace drafthorse {

struct GgufFile {
  std::string path;
  uint64_t bytes = 0;
  std::map<std::string, GgufIndex::Value, std::less<>> metadata;
  std::vector<TensorInfo> tensors;  // as in the file; TensorInfo::file is left 0
};

// kFile where anything in it is not as GgufIndex promises. Of keys whose type ggml or libllama rely on, the
// type is checked too.
Result<GgufFile> read_gguf_file(const std::string& path);

// Where a file stands in a split model; nullopt for a model in one file.
struct SplitPosition {
  uint64_t number = 0;  // from 0
  uint64_t count = 0;   // more than 1
};
Result<std::optional<SplitPosition>> split_position(const GgufFile& file);

}  // namespace drafthorse
