// A file of lines, read without holding more of it than a line.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace drafthorse::cli {

struct FileLine {
  int64_t number = 0;  // from 1
  int64_t offset = 0;
  int64_t bytes = 0;           // without the end of line
  std::string_view text = {};  // at most as many bytes as were asked for; valid during the call
  bool ended = false;          // by an end of line; the last one may not be
};

// As pread(), or read() where `offset` is negative, but not interrupted.
ssize_t read_some(int descriptor, char* data, size_t size, int64_t offset);

// Calls `take` for each line from the file's beginning on, empty ones included, until one returns an error. kFile,
// naming `name`, where it cannot be read.
Status for_each_line(int descriptor, const std::string& name, size_t most_bytes,
                     const std::function<Status(const FileLine&)>& take);

}  // namespace drafthorse::cli
