#include "io/gguf_index.h"

#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "io/gguf_file.h"

namespace drafthorse {

namespace {

// "-00002-of-00005.gguf"
std::string shard_suffix(const SplitPosition& position) {
  return fmt::format("-{:05}-of-{:05}.gguf", position.number + 1, position.count);
}

Result<GgufFile> read_sibling(const std::string& path, const SplitPosition& expected) {
  Result<GgufFile> file = read_gguf_file(path);
  if (!file.ok()) return file;
  ASSIGN_OR_RETURN(const std::optional<SplitPosition> position, split_position(*file));
  if (!position || position->count != expected.count || position->number != expected.number) {
    return file_error(fmt::format(
        "{}: says it is {}, but its name says shard {} of {}; put the model's own shards "
        "side by side.",
        path, position ? fmt::format("shard {} of {}", position->number + 1, position->count) : std::string("no shard"),
        expected.number + 1, expected.count));
  }
  return file;
}

// All shards in order, or the one file.
Result<std::vector<GgufFile>> read_all_shards(const std::string& path) {
  ASSIGN_OR_RETURN(GgufFile given, read_gguf_file(path));
  ASSIGN_OR_RETURN(const std::optional<SplitPosition> position, split_position(given));
  std::vector<GgufFile> files;
  if (!position) {
    files.push_back(std::move(given));
    return files;
  }
  const std::string suffix = shard_suffix(*position);
  if (!path.ends_with(suffix)) {
    return file_error(fmt::format("{}: shard {} of {}, but its name does not end in {}; rename the shards back.", path,
                                  position->number + 1, position->count, suffix));
  }
  const std::string prefix = path.substr(0, path.size() - suffix.size());
  for (uint64_t i = 0; i < position->count; ++i) {
    if (i == position->number) continue;
    const SplitPosition expected{i, position->count};
    ASSIGN_OR_RETURN(GgufFile sibling, read_sibling(prefix + shard_suffix(expected), expected));
    // The first shard's metadata speaks for all; the others' would only take memory.
    if (i > 0) sibling.metadata.clear();
    files.push_back(std::move(sibling));
  }
  files.insert(files.begin() + static_cast<std::ptrdiff_t>(position->number), std::move(given));
  return files;
}

// Shards of two models in one folder show by the number of tensors the first one announces.
Status check_tensor_count(const GgufIndex& index) {
  if (index.files().size() == 1) return {};
  const std::optional<uint64_t> announced = index.get_u64("split.tensors.count");
  if (!announced || *announced != index.tensors().size()) {
    return file_error(fmt::format("{}: announces {} tensors in all shards, they hold {}; download the shards again.",
                                  index.files()[0].path, announced.value_or(0), index.tensors().size()));
  }
  return {};
}

template <typename T>
const T* get_as(const std::map<std::string, GgufIndex::Value, std::less<>>& metadata, std::string_view key) {
  const auto entry = metadata.find(key);
  return entry == metadata.end() ? nullptr : std::get_if<T>(&entry->second);
}

}  // namespace

Result<GgufIndex> GgufIndex::open(const std::string& path) {
  ASSIGN_OR_RETURN(std::vector<GgufFile> files, read_all_shards(path));
  GgufIndex index;
  index.metadata_ = std::move(files[0].metadata);
  for (size_t file = 0; file < files.size(); ++file) {
    index.files_.push_back({files[file].path, files[file].bytes});
    for (TensorInfo& tensor : files[file].tensors) {
      tensor.file = static_cast<int>(file);
      if (!index.by_name_.emplace(tensor.name, index.tensors_.size()).second) {
        return file_error(fmt::format("{}: tensor '{}' is there twice; download or convert the model again.",
                                      files[file].path, tensor.name));
      }
      index.tensors_.push_back(std::move(tensor));
    }
  }
  RETURN_IF_ERROR(check_tensor_count(index));
  return index;
}

const TensorInfo* GgufIndex::find(std::string_view name) const {
  const auto entry = by_name_.find(name);
  return entry == by_name_.end() ? nullptr : &tensors_[entry->second];
}

std::optional<uint64_t> GgufIndex::get_u64(std::string_view key) const {
  if (const auto* value = get_as<uint64_t>(metadata_, key)) return *value;
  const auto* value = get_as<int64_t>(metadata_, key);
  if (value != nullptr && *value >= 0) return static_cast<uint64_t>(*value);
  return std::nullopt;
}

std::optional<double> GgufIndex::get_f64(std::string_view key) const {
  if (const auto* value = get_as<double>(metadata_, key)) return *value;
  if (const auto* value = get_as<uint64_t>(metadata_, key)) return static_cast<double>(*value);
  if (const auto* value = get_as<int64_t>(metadata_, key)) return static_cast<double>(*value);
  return std::nullopt;
}

std::optional<bool> GgufIndex::get_bool(std::string_view key) const {
  const auto* value = get_as<bool>(metadata_, key);
  return value != nullptr ? std::optional(*value) : std::nullopt;
}

const std::string* GgufIndex::get_string(std::string_view key) const { return get_as<std::string>(metadata_, key); }

const std::vector<std::string>* GgufIndex::get_strings(std::string_view key) const {
  return get_as<std::vector<std::string>>(metadata_, key);
}

const std::vector<int64_t>* GgufIndex::get_integers(std::string_view key) const {
  return get_as<std::vector<int64_t>>(metadata_, key);
}

const std::vector<double>* GgufIndex::get_floats(std::string_view key) const {
  return get_as<std::vector<double>>(metadata_, key);
}

void GgufIndex::drop_tokenizer_arrays() {
  for (const char* key :
       {"tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
    metadata_.erase(key);
  }
}

uint64_t GgufIndex::tensor_bytes() const {
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : tensors_) bytes += tensor.bytes;
  return bytes;
}

}  // namespace drafthorse
