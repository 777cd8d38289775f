#include "io/gguf_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include <fmt/format.h>
#include <gguf.h>

#include "base/units.h"
#include "io/gguf_reader.h"

namespace drafthorse {

namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read as it lies in the file");

constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 18;
constexpr uint64_t kMaxKeyBytes = 65535;  // the format's own limit
constexpr uint64_t kMaxStringBytes = 32 << 20;
constexpr uint64_t kMaxArrayElements = 1 << 24;
constexpr uint64_t kMinKeyValueBytes = 8 + 1 + 4 + 1;            // length, one character, type, the smallest value
constexpr uint64_t kMinTensorInfoBytes = 8 + 1 + 4 + 8 + 4 + 8;  // length, name, dimensions, one of them, type, offset
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMinAlignment = 8;

// ggml and libllama compare names as C strings, we as whole ones: without control characters both see the same.
bool is_plain_name(std::string_view name) {
  return std::all_of(name.begin(), name.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

template <typename T>
using Widened =
    std::conditional_t<std::is_floating_point_v<T>, double, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;

template <typename T>
Result<GgufIndex::Value> read_scalar(GgufReader& reader, std::string_view what) {
  T value{};
  RETURN_IF_ERROR(reader.read(value, what));
  return GgufIndex::Value(static_cast<Widened<T>>(value));
}

Result<GgufIndex::Value> read_bool(GgufReader& reader, std::string_view what) {
  uint8_t value = 0;
  RETURN_IF_ERROR(reader.read(value, what));
  return GgufIndex::Value(value != 0);
}

Result<GgufIndex::Value> read_text(GgufReader& reader, std::string_view what) {
  std::string value;
  RETURN_IF_ERROR(reader.read_string(value, kMaxStringBytes, what));
  return GgufIndex::Value(std::move(value));
}

Status check_array_fits(const GgufReader& reader, uint64_t count, uint64_t min_element_bytes, std::string_view what) {
  if (count > kMaxArrayElements || count > reader.remaining() / min_element_bytes) {
    return reader.damaged(fmt::format("{} claims {} elements, more than there can be", what, count));
  }
  return {};
}

template <typename Element, typename T>
Result<GgufIndex::Value> read_array(GgufReader& reader, uint64_t count, std::string_view what) {
  RETURN_IF_ERROR(check_array_fits(reader, count, sizeof(T), what));
  std::vector<Element> values;
  values.reserve(static_cast<size_t>(count));
  std::array<T, 512> piece{};
  while (values.size() < count) {
    const size_t n = std::min<size_t>(piece.size(), static_cast<size_t>(count) - values.size());
    RETURN_IF_ERROR(reader.read_bytes(std::as_writable_bytes(std::span(piece.data(), n)), what));
    for (size_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<Element, bool>) {
        values.push_back(piece[i] != 0);
      } else {
        values.push_back(static_cast<Element>(piece[i]));
      }
    }
  }
  return GgufIndex::Value(std::move(values));
}

Result<GgufIndex::Value> read_text_array(GgufReader& reader, uint64_t count, std::string_view what) {
  RETURN_IF_ERROR(check_array_fits(reader, count, sizeof(uint64_t), what));
  std::vector<std::string> values;
  values.reserve(static_cast<size_t>(count));
  for (uint64_t i = 0; i < count; ++i) {
    std::string value;
    RETURN_IF_ERROR(reader.read_string(value, kMaxStringBytes, what));
    values.push_back(std::move(value));
  }
  return GgufIndex::Value(std::move(values));
}

Result<GgufIndex::Value> read_value(GgufReader& reader, uint32_t type, std::string_view what) {
  switch (type) {
    case GGUF_TYPE_UINT8:
      return read_scalar<uint8_t>(reader, what);
    case GGUF_TYPE_INT8:
      return read_scalar<int8_t>(reader, what);
    case GGUF_TYPE_UINT16:
      return read_scalar<uint16_t>(reader, what);
    case GGUF_TYPE_INT16:
      return read_scalar<int16_t>(reader, what);
    case GGUF_TYPE_UINT32:
      return read_scalar<uint32_t>(reader, what);
    case GGUF_TYPE_INT32:
      return read_scalar<int32_t>(reader, what);
    case GGUF_TYPE_UINT64:
      return read_scalar<uint64_t>(reader, what);
    case GGUF_TYPE_INT64:
      return read_scalar<int64_t>(reader, what);
    case GGUF_TYPE_FLOAT32:
      return read_scalar<float>(reader, what);
    case GGUF_TYPE_FLOAT64:
      return read_scalar<double>(reader, what);
    case GGUF_TYPE_BOOL:
      return read_bool(reader, what);
    case GGUF_TYPE_STRING:
      return read_text(reader, what);
    default:
      return reader.damaged(fmt::format("{} has the unknown type {}", what, type));
  }
}

Result<GgufIndex::Value> read_array_value(GgufReader& reader, std::string_view what) {
  uint32_t type = 0;
  uint64_t count = 0;
  RETURN_IF_ERROR(reader.read(type, what));
  RETURN_IF_ERROR(reader.read(count, what));
  switch (type) {
    case GGUF_TYPE_UINT8:
      return read_array<int64_t, uint8_t>(reader, count, what);
    case GGUF_TYPE_INT8:
      return read_array<int64_t, int8_t>(reader, count, what);
    case GGUF_TYPE_UINT16:
      return read_array<int64_t, uint16_t>(reader, count, what);
    case GGUF_TYPE_INT16:
      return read_array<int64_t, int16_t>(reader, count, what);
    case GGUF_TYPE_UINT32:
      return read_array<int64_t, uint32_t>(reader, count, what);
    case GGUF_TYPE_INT32:
      return read_array<int64_t, int32_t>(reader, count, what);
    case GGUF_TYPE_UINT64:
      return read_array<int64_t, uint64_t>(reader, count, what);
    case GGUF_TYPE_INT64:
      return read_array<int64_t, int64_t>(reader, count, what);
    case GGUF_TYPE_FLOAT32:
      return read_array<double, float>(reader, count, what);
    case GGUF_TYPE_FLOAT64:
      return read_array<double, double>(reader, count, what);
    case GGUF_TYPE_BOOL:
      return read_array<bool, uint8_t>(reader, count, what);
    case GGUF_TYPE_STRING:
      return read_text_array(reader, count, what);
    default:
      return reader.damaged(fmt::format("{} is an array of the unknown type {}", what, type));
  }
}

// Keys that ggml or libllama read as this type and no other; some of those reads assert.
Status check_fixed_type(const GgufReader& reader, std::string_view key, uint32_t type) {
  struct Fixed {
    std::string_view key;
    gguf_type type;
  };
  static constexpr Fixed kFixed[] = {{"general.alignment", GGUF_TYPE_UINT32},
                                     {"general.architecture", GGUF_TYPE_STRING},
                                     {"split.no", GGUF_TYPE_UINT16},
                                     {"split.count", GGUF_TYPE_UINT16},
                                     {"split.tensors.count", GGUF_TYPE_INT32}};
  for (const Fixed& fixed : kFixed) {
    if (key == fixed.key && type != static_cast<uint32_t>(fixed.type)) {
      return reader.damaged(fmt::format("'{}' has type {} instead of {}", key, type, static_cast<int>(fixed.type)));
    }
  }
  return {};
}

Status read_metadata(GgufReader& reader, uint64_t n_keys, GgufFile& file) {
  for (uint64_t i = 0; i < n_keys; ++i) {
    std::string key;
    RETURN_IF_ERROR(reader.read_string(key, kMaxKeyBytes, fmt::format("metadata key {}", i)));
    if (key.empty() || !is_plain_name(key)) {
      return reader.damaged(fmt::format("metadata key {} ('{}') is empty or holds something else than printable ASCII",
                                        i, printable(key)));
    }
    uint32_t type = 0;
    const std::string what = fmt::format("metadata '{}'", printable(key));
    RETURN_IF_ERROR(reader.read(type, what));
    RETURN_IF_ERROR(check_fixed_type(reader, key, type));
    ASSIGN_OR_RETURN(GgufIndex::Value value,
                     type == GGUF_TYPE_ARRAY ? read_array_value(reader, what) : read_value(reader, type, what));
    if (!file.metadata.emplace(std::move(key), std::move(value)).second) {
      return reader.damaged(fmt::format("{} is there twice", what));
    }
  }
  return {};
}

Result<uint64_t> read_alignment(const GgufReader& reader, const GgufFile& file) {
  const auto entry = file.metadata.find("general.alignment");
  if (entry == file.metadata.end()) return kDefaultAlignment;
  const uint64_t alignment = std::get<uint64_t>(entry->second);
  if (alignment < kMinAlignment || !std::has_single_bit(alignment)) {
    return reader.damaged(
        fmt::format("general.alignment is {}, not a power of two of at least {}", alignment, kMinAlignment));
  }
  return alignment;
}

Status read_tensor_name(GgufReader& reader, uint64_t number, TensorInfo& tensor) {
  RETURN_IF_ERROR(reader.read_string(tensor.name, GGML_MAX_NAME - 1, fmt::format("the name of tensor {}", number)));
  if (tensor.name.empty() || !is_plain_name(tensor.name)) {
    return reader.damaged(
        fmt::format("the name of tensor {} ('{}') is empty or holds something else than printable ASCII", number,
                    printable(tensor.name)));
  }
  return {};
}

Result<uint64_t> read_shape(GgufReader& reader, TensorInfo& tensor) {
  uint32_t n_dims = 0;
  RETURN_IF_ERROR(reader.read(n_dims, tensor.name));
  if (n_dims < 1 || n_dims > GGML_MAX_DIMS) {
    return reader.damaged(
        fmt::format("tensor '{}' has {} dimensions instead of 1 to {}", tensor.name, n_dims, GGML_MAX_DIMS));
  }
  tensor.n_dims = static_cast<int>(n_dims);
  int64_t elements = 1;
  for (uint32_t i = 0; i < n_dims; ++i) {
    RETURN_IF_ERROR(reader.read(tensor.ne[i], tensor.name));
    if (tensor.ne[i] < 1) {
      return reader.damaged(fmt::format("tensor '{}' has {} elements in dimension {}", tensor.name, tensor.ne[i], i));
    }
    if (tensor.ne[i] > std::numeric_limits<int64_t>::max() / elements) {
      return reader.damaged(fmt::format("tensor '{}' has more elements than can be counted", tensor.name));
    }
    elements *= tensor.ne[i];
  }
  return static_cast<uint64_t>(elements);
}

Status read_type(GgufReader& reader, uint64_t elements, TensorInfo& tensor) {
  uint32_t type = 0;
  RETURN_IF_ERROR(reader.read(type, tensor.name));
  // ggml's tables may be asked only about ids they have; formats that were removed are holes in them.
  if (type >= GGML_TYPE_COUNT || ggml_type_size(static_cast<ggml_type>(type)) == 0 ||
      ggml_blck_size(static_cast<ggml_type>(type)) <= 0) {
    return reader.damaged(fmt::format("tensor '{}' has the type {}, which this ggml does not know", tensor.name, type));
  }
  tensor.type = static_cast<ggml_type>(type);
  const int64_t block = ggml_blck_size(tensor.type);
  const uint64_t block_bytes = ggml_type_size(tensor.type);
  if (tensor.ne[0] % block != 0) {
    return reader.damaged(fmt::format("tensor '{}' has rows of {} elements, not a multiple of {}'s block of {}",
                                      tensor.name, tensor.ne[0], ggml_type_name(tensor.type), block));
  }
  const uint64_t blocks = elements / static_cast<uint64_t>(block);
  if (blocks > reader.file_bytes() / block_bytes) {
    return reader.damaged(fmt::format("tensor '{}' with {} elements of {} is larger than the file", tensor.name,
                                      elements, ggml_type_name(tensor.type)));
  }
  tensor.bytes = blocks * block_bytes;
  return {};
}

Status read_tensors(GgufReader& reader, uint64_t n_tensors, uint64_t alignment, GgufFile& file) {
  file.tensors.reserve(static_cast<size_t>(n_tensors));
  for (uint64_t i = 0; i < n_tensors; ++i) {
    TensorInfo tensor;
    RETURN_IF_ERROR(read_tensor_name(reader, i, tensor));
    ASSIGN_OR_RETURN(const uint64_t elements, read_shape(reader, tensor));
    RETURN_IF_ERROR(read_type(reader, elements, tensor));
    RETURN_IF_ERROR(reader.read(tensor.offset, tensor.name));
    if (tensor.offset % alignment != 0) {
      return reader.damaged(fmt::format("tensor '{}' has the offset {}, not a multiple of the alignment {}",
                                        tensor.name, tensor.offset, alignment));
    }
    file.tensors.push_back(std::move(tensor));
  }
  return {};
}

// From offsets within the data section to offsets within the file.
Status place_tensors(const GgufReader& reader, uint64_t alignment, GgufFile& file) {
  const uint64_t data_begin = align_up(reader.position(), alignment);
  for (TensorInfo& tensor : file.tensors) {
    if (data_begin > file.bytes || tensor.offset > file.bytes - data_begin ||
        tensor.bytes > file.bytes - data_begin - tensor.offset) {
      return file_error(fmt::format(
          "{}: truncated, tensor '{}' needs {} bytes from {} bytes after the header and the file ends at {}; "
          "download it again.",
          file.path, tensor.name, tensor.bytes, tensor.offset, file.bytes));
    }
    tensor.offset += data_begin;
  }
  std::vector<const TensorInfo*> by_offset;
  by_offset.reserve(file.tensors.size());
  for (const TensorInfo& tensor : file.tensors) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(),
            [](const TensorInfo* a, const TensorInfo* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const TensorInfo& before = *by_offset[i - 1];
    if (before.offset + before.bytes > by_offset[i]->offset) {
      return reader.damaged(fmt::format("tensors '{}' and '{}' overlap", before.name, by_offset[i]->name));
    }
  }
  return {};
}

Status read_version(GgufReader& reader) {
  char magic[4] = {};
  RETURN_IF_ERROR(reader.read_bytes(std::as_writable_bytes(std::span(magic)), "the magic number"));
  if (std::memcmp(magic, "GGUF", 4) != 0) {
    return file_error(fmt::format("{}: not a GGUF file (it does not begin with 'GGUF'); give a model in GGUF format.",
                                  reader.path()));
  }
  uint32_t version = 0;
  RETURN_IF_ERROR(reader.read(version, "the version"));
  if ((version & 0xffff) == 0) {
    return file_error(fmt::format("{}: a big-endian GGUF file; convert it for this machine.", reader.path()));
  }
  if (version != 2 && version != 3) {
    return file_error(
        fmt::format("{}: GGUF version {}, only 2 and 3 are supported; convert it again.", reader.path(), version));
  }
  return {};
}

}  // namespace

Result<GgufFile> read_gguf_file(const std::string& path) {
  ASSIGN_OR_RETURN(GgufReader reader, GgufReader::open(path));
  GgufFile file;
  file.path = path;
  file.bytes = reader.file_bytes();

  uint64_t n_tensors = 0;
  uint64_t n_keys = 0;
  RETURN_IF_ERROR(read_version(reader));
  RETURN_IF_ERROR(reader.read(n_tensors, "the number of tensors"));
  RETURN_IF_ERROR(reader.read(n_keys, "the number of metadata keys"));
  if (n_tensors > kMaxTensors || n_tensors > reader.remaining() / kMinTensorInfoBytes) {
    return reader.damaged(fmt::format("the header claims {} tensors, more than there can be,", n_tensors));
  }
  if (n_keys > kMaxKeys || n_keys > reader.remaining() / kMinKeyValueBytes) {
    return reader.damaged(fmt::format("the header claims {} metadata keys, more than there can be,", n_keys));
  }
  RETURN_IF_ERROR(read_metadata(reader, n_keys, file));
  ASSIGN_OR_RETURN(const uint64_t alignment, read_alignment(reader, file));
  RETURN_IF_ERROR(read_tensors(reader, n_tensors, alignment, file));
  RETURN_IF_ERROR(place_tensors(reader, alignment, file));
  return file;
}

Result<std::optional<SplitPosition>> split_position(const GgufFile& file) {
  const auto count = file.metadata.find("split.count");
  const auto number = file.metadata.find("split.no");
  if (count == file.metadata.end() || std::get<uint64_t>(count->second) <= 1) {
    return std::optional<SplitPosition>();
  }
  SplitPosition position;
  position.count = std::get<uint64_t>(count->second);
  if (number == file.metadata.end() || std::get<uint64_t>(number->second) >= position.count) {
    return file_error(fmt::format("{}: one of {} shards, but 'split.no' does not say which; split the model again.",
                                  file.path, position.count));
  }
  position.number = std::get<uint64_t>(number->second);
  return std::optional<SplitPosition>(position);
}

}  // namespace drafthorse
