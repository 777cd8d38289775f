#include "io/fingerprint.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "io/file_set.h"

namespace drafthorse {
namespace {

constexpr size_t kMostTensors = 1000;  // whose bytes are looked at
constexpr size_t kBytesOfTensor = 256;

// FNV-1a.
class Hash {
 public:
  void add(std::span<const std::byte> bytes) {
    for (const std::byte one : bytes) value_ = (value_ ^ static_cast<uint64_t>(one)) * 0x100000001B3ULL;
  }
  void add(std::string_view text) {
    add(static_cast<uint64_t>(text.size()));
    add(std::as_bytes(std::span(text)));
  }
  void add(uint64_t number) { add(std::as_bytes(std::span(&number, 1))); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xCBF29CE484222325ULL;
};

Status read(const FileSet& files, const TensorInfo& tensor, std::span<std::byte> out) {
  for (size_t done = 0; done < out.size();) {
    const ssize_t count = ::pread(files.buffered_fd(tensor.file), out.data() + done, out.size() - done,
                                  static_cast<off_t>(tensor.offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return file_error(fmt::format("{}: reading it failed", files.path(tensor.file)));
    done += static_cast<size_t>(count);
  }
  return {};
}

}  // namespace

Result<std::string> model_fingerprint(const GgufIndex& index) {
  std::vector<std::string> paths;
  for (const GgufIndex::ShardFile& file : index.files()) paths.push_back(file.path);
  ASSIGN_OR_RETURN(const std::unique_ptr<FileSet> files, FileSet::open(paths));
  // Shards may hold the tensors in any order.
  std::vector<const TensorInfo*> tensors;
  for (const TensorInfo& tensor : index.tensors()) tensors.push_back(&tensor);
  std::sort(tensors.begin(), tensors.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  const size_t step = std::max<size_t>(1, (tensors.size() + kMostTensors - 1) / kMostTensors);
  Hash hash;
  std::array<std::byte, kBytesOfTensor> bytes;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo& tensor = *tensors[i];
    hash.add(tensor.name);
    hash.add(static_cast<uint64_t>(tensor.type));
    for (const int64_t n : tensor.ne) hash.add(static_cast<uint64_t>(n));
    if (i % step != 0) continue;
    const std::span<std::byte> first(bytes.data(), std::min<uint64_t>(bytes.size(), tensor.bytes));
    RETURN_IF_ERROR(read(*files, tensor, first));
    hash.add(first);
  }
  return fmt::format("{:016x}", hash.value());
}

}  // namespace drafthorse
