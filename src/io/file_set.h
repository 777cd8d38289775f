// The open files of a model: one descriptor with O_DIRECT where the file system allows it, and one without.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace drafthorse {

// O_DIRECT reads start, end and land on multiples of this.
inline constexpr uint64_t kDirectAlignment = 4096;

class FileSet {
 public:
  // Opens all paths for reading. kFile with path and reason where one cannot be opened.
  static Result<std::unique_ptr<FileSet>> open(const std::vector<std::string>& paths);
  ~FileSet();
  FileSet(const FileSet&) = delete;
  FileSet& operator=(const FileSet&) = delete;

  size_t size() const { return files_.size(); }
  const std::string& path(int file) const { return files_[static_cast<size_t>(file)].path; }
  uint64_t bytes(int file) const { return files_[static_cast<size_t>(file)].bytes; }  // when it was opened
  int fd(int file) const;                  // the O_DIRECT one where there is one
  int buffered_fd(int file) const;         // always through the page cache
  bool direct() const { return direct_; }  // O_DIRECT works for all files (probed by a read)

 private:
  struct Open {
    std::string path;
    uint64_t bytes = 0;
    int direct_fd = -1;
    int buffered_fd = -1;
  };
  FileSet() = default;
  std::vector<Open> files_;
  bool direct_ = true;
};

}  // namespace drafthorse
