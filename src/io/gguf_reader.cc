#include "io/gguf_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

namespace drafthorse {

namespace {

constexpr size_t kBufferBytes = size_t{256} * 1024;

}  // namespace

Result<GgufReader> GgufReader::open(const std::string& path) {
  struct stat info {};
  // Looked at before opening: opening a pipe would block.
  if (::stat(path.c_str(), &info) != 0) {
    return file_error(fmt::format("{}: cannot be opened ({}); check the path.", path, std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode)) {
    return file_error(fmt::format("{}: not a regular file; give the path of a GGUF file.", path));
  }
  GgufReader reader;
  reader.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (reader.fd_ < 0) {
    return file_error(fmt::format("{}: cannot be opened ({}); check its permissions.", path, std::strerror(errno)));
  }
  reader.path_ = path;
  reader.file_bytes_ = static_cast<uint64_t>(info.st_size);
  reader.limit_ = std::min(reader.file_bytes_, kMaxGgufHeaderBytes);
  reader.buffer_.resize(kBufferBytes);
  return reader;
}

GgufReader::GgufReader(GgufReader&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      file_bytes_(other.file_bytes_),
      limit_(other.limit_),
      position_(other.position_),
      buffer_(std::move(other.buffer_)),
      buffer_begin_(other.buffer_begin_),
      buffer_end_(other.buffer_end_) {}

GgufReader::~GgufReader() {
  if (fd_ >= 0) ::close(fd_);
}

Status GgufReader::fill() {
  ssize_t count = 0;
  do {
    count = ::pread(fd_, buffer_.data(), buffer_.size(), static_cast<off_t>(position_));
  } while (count < 0 && errno == EINTR);
  if (count < 0) {
    return file_error(
        fmt::format("{}: reading failed at byte {} ({}); check the device.", path_, position_, std::strerror(errno)));
  }
  if (count == 0) return damaged("the file ended early, it shrank while being read");
  buffer_begin_ = 0;
  buffer_end_ = static_cast<size_t>(count);
  return {};
}

Status GgufReader::read_bytes(std::span<std::byte> out, std::string_view what) {
  if (out.size() > remaining()) {
    return damaged(fmt::format("{} of {} bytes reaches beyond the {}", what, out.size(),
                               limit_ == file_bytes_ ? "end of the file" : "largest header there can be"));
  }
  while (!out.empty()) {
    if (buffer_begin_ == buffer_end_) RETURN_IF_ERROR(fill());
    const size_t count = std::min(out.size(), buffer_end_ - buffer_begin_);
    std::memcpy(out.data(), buffer_.data() + buffer_begin_, count);
    buffer_begin_ += count;
    position_ += count;
    out = out.subspan(count);
  }
  return {};
}

Status GgufReader::read_string(std::string& out, uint64_t max_bytes, std::string_view what) {
  uint64_t length = 0;
  RETURN_IF_ERROR(read(length, what));
  if (length > remaining()) {
    return damaged(fmt::format("{} claims {} bytes, {} are left", what, length, remaining()));
  }
  if (length > max_bytes) {
    return damaged(fmt::format("{} claims {} bytes, the most allowed is {}", what, length, max_bytes));
  }
  out.resize(static_cast<size_t>(length));
  return read_bytes(std::as_writable_bytes(std::span(out.data(), out.size())), what);
}

Status GgufReader::damaged(std::string_view what) const {
  return file_error(fmt::format("{}: not usable as a GGUF model, {} at byte {}; download or convert it again.", path_,
                                what, position_));
}

std::string printable(std::string_view text) {
  constexpr size_t kMaxShown = 80;
  std::string shown(text.substr(0, kMaxShown));
  for (char& c : shown) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f) c = '?';
  }
  if (text.size() > kMaxShown) shown += "...";
  return shown;
}

}  // namespace drafthorse
