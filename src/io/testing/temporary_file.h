// A file in the test's temporary folder that goes away with the object.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <fstream>
#include <span>
#include <string>

namespace drafthorse {

class TemporaryFile {
 public:
  explicit TemporaryFile(std::string path) : path_(std::move(path)) {}
  TemporaryFile(std::string path, std::span<const std::byte> content) : path_(std::move(path)) { write(content); }
  ~TemporaryFile() { ::unlink(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }

  void write(std::span<const std::byte> content) const {
    // A new file each time: some file systems flush one that is truncated and written again.
    ::unlink(path_.c_str());
    std::ofstream file(path_, std::ios::binary | std::ios::trunc);
    file.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
    ASSERT_TRUE(file.good()) << path_;
  }

 private:
  std::string path_;
};

// A path no other test, process or call uses.
inline std::string temporary_path(const std::string& stem) {
  static std::atomic<int> next{0};
  return ::testing::TempDir() + "drafthorse_" + std::to_string(::getpid()) + "_" + std::to_string(next++) + "_" + stem;
}

}  // namespace drafthorse
