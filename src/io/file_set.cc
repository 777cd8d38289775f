#include "io/file_set.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

namespace drafthorse {

namespace {

// A file system may accept the flag and refuse the reads, so only a read tells.
bool direct_read_works(int fd) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  const std::unique_ptr<void, Free> buffer(std::aligned_alloc(kDirectAlignment, kDirectAlignment));
  if (!buffer) return false;
  ssize_t count = 0;
  do {
    count = ::pread(fd, buffer.get(), kDirectAlignment, 0);
  } while (count < 0 && errno == EINTR);
  return count >= 0;
}

}  // namespace

Result<std::unique_ptr<FileSet>> FileSet::open(const std::vector<std::string>& paths) {
  std::unique_ptr<FileSet> set(new FileSet);
  for (const std::string& path : paths) {
    struct stat info {};
    // Looked at before opening: opening a pipe would block.
    if (::stat(path.c_str(), &info) != 0) {
      return file_error(fmt::format("{}: cannot be opened ({}); check the path.", path, std::strerror(errno)));
    }
    if (!S_ISREG(info.st_mode)) {
      return file_error(fmt::format("{}: not a regular file; give the path of a GGUF file.", path));
    }
    Open& file = set->files_.emplace_back();
    file.path = path;
    file.bytes = static_cast<uint64_t>(info.st_size);
    file.buffered_fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file.buffered_fd < 0) {
      return file_error(fmt::format("{}: cannot be opened ({}); check its permissions.", path, std::strerror(errno)));
    }
    if (!set->direct_) continue;
    file.direct_fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    set->direct_ = file.direct_fd >= 0 && direct_read_works(file.direct_fd);
  }
  return set;
}

FileSet::~FileSet() {
  for (const Open& file : files_) {
    if (file.direct_fd >= 0) ::close(file.direct_fd);
    if (file.buffered_fd >= 0) ::close(file.buffered_fd);
  }
}

int FileSet::fd(int file) const {
  const Open& open = files_[static_cast<size_t>(file)];
  return direct_ ? open.direct_fd : open.buffered_fd;
}

int FileSet::buffered_fd(int file) const { return files_[static_cast<size_t>(file)].buffered_fd; }

}  // namespace drafthorse
