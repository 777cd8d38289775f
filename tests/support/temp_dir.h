// A directory of its own for one test, removed with everything in it when the test is over.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/check.h"

namespace drafthorse {

class TempDir {
 public:
  // Lies in std::filesystem::temp_directory_path(), so TMPDIR decides which disk the files are on.
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "drafthorse-test-XXXXXX").string();
    CHECK(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // The path of a file in it, as libraries of C want it.
  std::string file(std::string_view name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace drafthorse
