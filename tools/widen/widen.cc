#include "widen/widen.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string_view>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/units.h"

namespace drafthorse {

namespace {

constexpr uint64_t kChunkBytes = 64 * kMiB;  // rows held at a time

struct GgufDeleter {
  void operator()(gguf_context* context) const { gguf_free(context); }
};
using GgufPtr = std::unique_ptr<gguf_context, GgufDeleter>;

// A file that appears under its name only when it is whole.
class OutputFile {
 public:
  static Result<std::unique_ptr<OutputFile>> create(const std::string& path) {
    std::unique_ptr<OutputFile> file(new OutputFile(path));
    file->fd_ = ::open(file->part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file->fd_ < 0) return file->error("create");
    return file;
  }
  ~OutputFile() {
    if (fd_ >= 0) ::close(fd_);
    if (!finished_) ::unlink(part_.c_str());
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  Status write(const void* data, size_t bytes) {
    const auto* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = ::write(fd_, from, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return error("write");
      from += n;
      bytes -= static_cast<size_t>(n);
      written_ += static_cast<uint64_t>(n);
    }
    return {};
  }

  uint64_t written() const { return written_; }

  Status finish() {
    if (::fdatasync(fd_) != 0) return error("write");
    const int closed = ::close(fd_);
    fd_ = -1;
    if (closed != 0 || ::rename(part_.c_str(), path_.c_str()) != 0) return error("finish");
    finished_ = true;
    return {};
  }

 private:
  explicit OutputFile(const std::string& path) : path_(path), part_(path + ".part") {}
  Status error(const char* what) const {
    return file_error(fmt::format("cannot {} {}: {}", what, part_, std::strerror(errno)));
  }

  std::string path_;
  std::string part_;
  int fd_ = -1;
  uint64_t written_ = 0;
  bool finished_ = false;
};

// Random numbers for one row, the same whichever thread asks: uniform between -1 and 1.
class RowNoise {
 public:
  RowNoise(uint32_t seed, std::string_view tensor, int64_t slice, int64_t row) : state_(seed) {
    for (const char c : tensor) mix(static_cast<uint8_t>(c));
    mix(static_cast<uint64_t>(slice));
    mix(static_cast<uint64_t>(row));
  }
  float next() {
    if (left_ == 0) {
      bits_ = draw();
      left_ = 4;
    }
    const auto number = static_cast<float>(bits_ & 0xFFFF);
    bits_ >>= 16;
    --left_;
    return number * (2.0F / 65535.0F) - 1.0F;
  }

 private:
  void mix(uint64_t value) {
    state_ ^= value;
    state_ = draw();
  }
  uint64_t draw() {  // splitmix64
    uint64_t z = state_ += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  uint64_t state_;
  uint64_t bits_ = 0;
  int left_ = 0;
};

// Adds to the copies of each weight random numbers whose sum over the copies is zero.
void add_noise(const PlannedTensor& planned, RowNoise noise, std::vector<float>& row) {
  const auto n = static_cast<size_t>(planned.source->n_columns);
  const auto n_copies = static_cast<size_t>(planned.column_copies);
  double squares = 0;
  for (size_t i = 0; i < n; ++i) squares += double{row[i]} * row[i];
  const float amplitude = planned.noise * static_cast<float>(std::sqrt(squares / static_cast<double>(n)));
  std::vector<float> sums(n);
  for (size_t copy = 0; copy < n_copies; ++copy) {
    for (size_t i = 0; i < n; ++i) {
      const float value = amplitude * noise.next();
      row[copy * n + i] += value;
      sums[i] += value;
    }
  }
  for (size_t copy = 0; copy < n_copies; ++copy) {
    for (size_t i = 0; i < n; ++i) row[copy * n + i] -= sums[i] / static_cast<float>(n_copies);
  }
}

// Which rows of a tensor to convert.
struct Rows {
  int64_t slice = 0;
  int64_t copy = 0;   // of the source's rows
  int64_t first = 0;  // in the source
  int64_t count = 0;
};

// Writes them in the planned type to `out`. Rows are independent, so threads share them.
void convert_rows(const PlannedTensor& planned, const Rows& rows, uint32_t seed, int32_t n_threads, std::byte* out) {
  const SourceTensor& source = *planned.source;
  const size_t row_bytes = ggml_row_size(planned.type, planned.n_columns());
  const auto convert = [&](int64_t from, int64_t to) {
    std::vector<float> original(static_cast<size_t>(source.n_columns));
    std::vector<float> widened;
    widened.reserve(static_cast<size_t>(planned.n_columns()));
    for (int64_t row = from; row < to; ++row) {
      read_row(source, rows.slice, rows.first + row, original.data());
      for (float& weight : original) weight *= planned.scale;
      widened.clear();
      for (int64_t copy = 0; copy < planned.column_copies; ++copy) {
        widened.insert(widened.end(), original.begin(), original.end());
      }
      if (planned.noise > 0) {
        const int64_t out_row = rows.copy * source.n_rows + rows.first + row;
        add_noise(planned, RowNoise(seed, planned.name, rows.slice, out_row), widened);
      }
      ggml_quantize_chunk(planned.type, widened.data(), out + static_cast<size_t>(row) * row_bytes, 0, 1,
                          planned.n_columns(), nullptr);
    }
  };
  const int64_t n_workers = std::clamp<int64_t>(rows.count * planned.n_columns() / 65536, 1, n_threads);
  std::vector<std::jthread> workers;
  for (int64_t i = 1; i < n_workers; ++i) {
    workers.emplace_back(convert, rows.count * i / n_workers, rows.count * (i + 1) / n_workers);
  }
  convert(0, rows.count / n_workers);
}

class Writer {
 public:
  Writer(OutputFile& file, uint32_t seed, int32_t n_threads, uint64_t total_bytes, const WidenProgress& progress)
      : file_(file),
        seed_(seed),
        n_threads_(n_threads),
        total_bytes_(total_bytes),
        progress_(progress),
        start_(file.written()) {}

  Status write(const PlannedTensor& planned) {
    for (int64_t copy = 0; copy < planned.slice_copies; ++copy) {
      for (int64_t slice = 0; slice < planned.source->n_slices; ++slice) RETURN_IF_ERROR(write_slice(planned, slice));
    }
    return {};
  }

  Status pad(uint64_t alignment) {
    const std::vector<char> zeros(align_up(file_.written(), alignment) - file_.written());
    return file_.write(zeros.data(), zeros.size());
  }

 private:
  Status write_slice(const PlannedTensor& planned, int64_t slice) {
    const int64_t n_rows = planned.source->n_rows;
    const size_t row_bytes = ggml_row_size(planned.type, planned.n_columns());
    const int64_t chunk_rows = std::clamp<int64_t>(static_cast<int64_t>(kChunkBytes / row_bytes), 1, n_rows);
    chunk_.resize(static_cast<size_t>(chunk_rows) * row_bytes);
    for (int64_t copy = 0; copy < planned.row_copies; ++copy) {
      for (int64_t row = 0; row < n_rows; row += chunk_rows) {
        const int64_t n = std::min(chunk_rows, n_rows - row);
        // Equal copies of rows that fit into one chunk are converted once.
        if (copy == 0 || chunk_rows < n_rows || !planned.copies_are_equal()) {
          convert_rows(planned, {slice, copy, row, n}, seed_, n_threads_, chunk_.data());
        }
        RETURN_IF_ERROR(file_.write(chunk_.data(), static_cast<size_t>(n) * row_bytes));
        if (progress_) progress_(file_.written() - start_, total_bytes_);
      }
    }
    return {};
  }

  OutputFile& file_;
  uint32_t seed_;
  int32_t n_threads_;
  uint64_t total_bytes_;
  const WidenProgress& progress_;
  uint64_t start_;
  std::vector<std::byte> chunk_;
};

void add_to_header(const PlannedTensor& planned, gguf_context* header) {
  ggml_context* shapes = ggml_init({ggml_tensor_overhead(), nullptr, /*no_alloc=*/true});
  const int64_t ne[3] = {planned.n_columns(), planned.n_rows(), planned.n_slices()};
  const int32_t least_dims = ne[2] > 1 ? 3 : ne[1] > 1 ? 2 : 1;  // of what was one row or slice
  const int32_t n_dims = std::clamp(planned.source->n_dims, least_dims, 3);
  ggml_tensor* tensor = ggml_new_tensor(shapes, planned.type, n_dims, ne);
  ggml_set_name(tensor, planned.name.c_str());
  gguf_add_tensor(header, tensor);  // copies it
  ggml_free(shapes);
}

Status check_paths(const std::string& in_path, const std::string& out_path) {
  std::error_code ignored;
  if (std::filesystem::equivalent(in_path, out_path, ignored)) {
    return usage_error(fmt::format("{} would be written over itself; choose another output", in_path));
  }
  return {};
}

Status check_space(const std::string& out_path, uint64_t bytes) {
  std::error_code error;
  std::filesystem::path folder = std::filesystem::path(out_path).parent_path();
  if (folder.empty()) folder = ".";
  const std::filesystem::space_info space = std::filesystem::space(folder, error);
  if (error) return file_error(fmt::format("cannot write to {}: {}", folder.string(), error.message()));
  if (space.available < bytes) {
    return file_error(fmt::format("{} needs {}, but only {} are free in {}", out_path, format_size(bytes),
                                  format_size(space.available), folder.string()));
  }
  return {};
}

}  // namespace

Result<WidenReport> widen(const std::string& in_path, const std::string& out_path, const WidenOptions& options,
                          int32_t n_threads, const WidenProgress& progress) {
  RETURN_IF_ERROR(check_paths(in_path, out_path));
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufSource> source, GgufSource::open(in_path));
  ASSIGN_OR_RETURN(const WidenPlan plan, plan_widening(*source, options));

  const GgufPtr header(gguf_init_empty());
  write_metadata(*source, plan, options, header.get());
  WidenReport report{
      .n_layer = plan.n_layer, .n_embd = plan.n_embd, .n_ff = plan.n_ff, .expert_bytes = plan.expert_bytes};
  uint64_t data_bytes = 0;
  for (const PlannedTensor& planned : plan.tensors) {
    add_to_header(planned, header.get());
    data_bytes += planned.slice_bytes() * static_cast<uint64_t>(planned.n_slices());
  }
  std::vector<char> header_bytes(gguf_get_meta_size(header.get()));
  gguf_get_meta_data(header.get(), header_bytes.data());
  RETURN_IF_ERROR(check_space(out_path, data_bytes + header_bytes.size()));

  ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::create(out_path));
  RETURN_IF_ERROR(file->write(header_bytes.data(), header_bytes.size()));
  if (n_threads <= 0) n_threads = static_cast<int32_t>(std::max(1U, std::thread::hardware_concurrency()));
  for (const PlannedTensor& planned : plan.tensors) ggml_quantize_init(planned.type);
  Writer writer(*file, options.seed, n_threads, data_bytes, progress);
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    CHECK(file->written() == header_bytes.size() + gguf_get_tensor_offset(header.get(), static_cast<int64_t>(i)));
    RETURN_IF_ERROR(writer.write(plan.tensors[i]));
    RETURN_IF_ERROR(writer.pad(gguf_get_alignment(header.get())));
  }
  report.file_bytes = file->written();
  RETURN_IF_ERROR(file->finish());
  return report;
}

}  // namespace drafthorse
