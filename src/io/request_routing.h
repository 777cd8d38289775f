// What all queues over real files share: the rule which descriptor a request goes to.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "io/file_set.h"
#include "io/read_queue.h"

namespace drafthorse {

inline bool is_aligned_for_direct(const ReadRequest& request) {
  const auto address = reinterpret_cast<uintptr_t>(request.destination);
  return (request.offset | request.bytes | address) % kDirectAlignment == 0;
}

inline void check_request(const FileSet& files, const ReadRequest& request) {
  CHECK(request.file >= 0 && static_cast<size_t>(request.file) < files.size());
  CHECK(request.destination != nullptr || request.bytes == 0);
}

inline int fd_for(const FileSet& files, const ReadRequest& request) {
  return is_aligned_for_direct(request) ? files.fd(request.file) : files.buffered_fd(request.file);
}

}  // namespace drafthorse
