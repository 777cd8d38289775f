// Reads a GGUF file's header front to back, never past its end and never trusting a length it has not compared with
// the bytes that are left. One thread.
#pragma once

#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace drafthorse {

// No header known is a tenth of this; what claims to be longer is damage, and would only cost memory.
inline constexpr uint64_t kMaxGgufHeaderBytes = 128ULL << 20;

class GgufReader {
 public:
  // Regular files only. kFile where it cannot be opened.
  static Result<GgufReader> open(const std::string& path);
  ~GgufReader();
  GgufReader(GgufReader&& other) noexcept;
  GgufReader& operator=(GgufReader&&) = delete;

  const std::string& path() const { return path_; }
  uint64_t file_bytes() const { return file_bytes_; }
  uint64_t position() const { return position_; }
  uint64_t remaining() const { return limit_ - position_; }  // that the header may still use

  // The readers below fail with kFile where the file ends first; `what` names the thing in the message.
  Status read_bytes(std::span<std::byte> out, std::string_view what);

  template <typename T>
  requires std::integral<T> || std::floating_point<T> Status read(T& out, std::string_view what) {
    return read_bytes(std::as_writable_bytes(std::span(&out, 1)), what);
  }

  // A 64-bit length and that many bytes; more than `max_bytes` is an error.
  Status read_string(std::string& out, uint64_t max_bytes, std::string_view what);

  // "PATH: WHAT at byte N; ..." as a kFile error.
  Status damaged(std::string_view what) const;

 private:
  GgufReader() = default;
  Status fill();

  std::string path_;
  int fd_ = -1;
  uint64_t file_bytes_ = 0;
  uint64_t limit_ = 0;  // the header may not reach beyond: end of file, or kMaxGgufHeaderBytes
  uint64_t position_ = 0;
  std::vector<std::byte> buffer_;
  size_t buffer_begin_ = 0;  // next unread byte in buffer_
  size_t buffer_end_ = 0;
};

// Text from a file, made fit for a message: control characters replaced, long ones cut.
std::string printable(std::string_view text);

}  // namespace drafthorse
