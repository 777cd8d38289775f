// A file in memory, for code that reads files by name.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "base/check.h"

namespace drafthorse::fuzz {

class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("fuzz", MFD_CLOEXEC)), path_("/proc/self/fd/" + std::to_string(fd_)) {
    CHECK(fd_ >= 0);
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  const std::string& path() const { return path_; }

  // The whole content: `size` bytes at `data`, then zeros, which take no memory, up to `file_bytes`.
  void write(const uint8_t* data, size_t size, size_t file_bytes = 0) const {
    CHECK(ftruncate(fd_, 0) == 0);
    CHECK(pwrite(fd_, data, size, 0) == static_cast<ssize_t>(size));
    if (file_bytes > size) CHECK(ftruncate(fd_, static_cast<off_t>(file_bytes)) == 0);
  }

 private:
  int fd_;
  std::string path_;
};

}  // namespace drafthorse::fuzz
