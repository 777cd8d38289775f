#include "widen/gguf_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace drafthorse {

Result<std::unique_ptr<GgufSource>> GgufSource::open(const std::string& path) {
  ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);  // our sentences replace ggml's
  std::unique_ptr<GgufSource> source(new GgufSource());
  source->path_ = path;
  RETURN_IF_ERROR(source->map(path));
  source->metadata_ = gguf_init_from_file(path.c_str(), {/*no_alloc=*/true, /*ctx=*/nullptr});
  if (source->metadata_ == nullptr) return file_error(fmt::format("{} is not a GGUF file, or is damaged", path));
  RETURN_IF_ERROR(source->list_tensors());
  return source;
}

GgufSource::~GgufSource() {
  if (metadata_ != nullptr) gguf_free(metadata_);
  if (mapping_ != nullptr) ::munmap(mapping_, bytes_);
}

Status GgufSource::map(const std::string& path) {
  const auto failed = [&](const char* what) {
    return file_error(fmt::format("cannot {} {}: {}", what, path, std::strerror(errno)));
  };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return failed("open");
  struct stat info = {};
  if (::fstat(fd, &info) != 0 || info.st_size == 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return file_error(fmt::format("{} is empty or not a regular file", path));
  }
  bytes_ = static_cast<size_t>(info.st_size);
  void* mapping = ::mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, fd, 0);
  const Status status = mapping == MAP_FAILED ? failed("map") : Status();
  ::close(fd);
  if (status.ok()) mapping_ = mapping;
  return status;
}

Status GgufSource::list_tensors() {
  if (integer("split.count").value_or(1) > 1) {
    return file_error(fmt::format("{} is one of several shards; join them first (llama-gguf-split --merge)", path_));
  }
  const size_t data_offset = gguf_get_data_offset(metadata_);
  for (int64_t i = 0; i < gguf_get_n_tensors(metadata_); ++i) {
    const int64_t* ne = gguf_get_tensor_ne(metadata_, i);
    SourceTensor tensor{.name = gguf_get_tensor_name(metadata_, i),
                        .type = gguf_get_tensor_type(metadata_, i),
                        .n_columns = ne[0],
                        .n_rows = ne[1],
                        .n_slices = ne[2] * ne[3]};
    for (int32_t d = 1; d < GGML_MAX_DIMS; ++d) {
      if (ne[d] > 1) tensor.n_dims = d + 1;
    }
    if (tensor.type != GGML_TYPE_F32 && ggml_get_type_traits(tensor.type)->to_float == nullptr) {
      return file_error(fmt::format("{}: {} is {}, which cannot be turned into floats", path_, tensor.name,
                                    ggml_type_name(tensor.type)));
    }
    const size_t offset = data_offset + gguf_get_tensor_offset(metadata_, i);
    const size_t size = gguf_get_tensor_size(metadata_, i);
    if (offset > bytes_ || size > bytes_ - offset) {
      return file_error(fmt::format("{} is truncated: {} lies beyond its end", path_, tensor.name));
    }
    tensor.data = static_cast<const std::byte*>(mapping_) + offset;
    tensors_.push_back(std::move(tensor));
  }
  return {};
}

const SourceTensor* GgufSource::find(const std::string& name) const {
  for (const SourceTensor& tensor : tensors_) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

std::optional<int64_t> GgufSource::integer(const std::string& key) const {
  const int64_t id = gguf_find_key(metadata_, key.c_str());
  if (id < 0) return std::nullopt;
  switch (gguf_get_kv_type(metadata_, id)) {
    case GGUF_TYPE_UINT16:
      return gguf_get_val_u16(metadata_, id);
    case GGUF_TYPE_INT32:
      return gguf_get_val_i32(metadata_, id);
    case GGUF_TYPE_UINT32:
      return gguf_get_val_u32(metadata_, id);
    case GGUF_TYPE_INT64:
      return gguf_get_val_i64(metadata_, id);
    case GGUF_TYPE_UINT64:
      return static_cast<int64_t>(gguf_get_val_u64(metadata_, id));
    default:
      return std::nullopt;
  }
}

std::optional<std::string> GgufSource::text(const std::string& key) const {
  const int64_t id = gguf_find_key(metadata_, key.c_str());
  if (id < 0 || gguf_get_kv_type(metadata_, id) != GGUF_TYPE_STRING) return std::nullopt;
  return gguf_get_val_str(metadata_, id);
}

void read_row(const SourceTensor& tensor, int64_t slice, int64_t row, float* out) {
  CHECK(slice < tensor.n_slices && row < tensor.n_rows);
  const size_t row_bytes = ggml_row_size(tensor.type, tensor.n_columns);
  const std::byte* data = tensor.data + static_cast<size_t>(slice * tensor.n_rows + row) * row_bytes;
  if (tensor.type == GGML_TYPE_F32) {
    std::memcpy(out, data, row_bytes);
  } else {
    ggml_get_type_traits(tensor.type)->to_float(data, out, tensor.n_columns);
  }
}

}  // namespace drafthorse
