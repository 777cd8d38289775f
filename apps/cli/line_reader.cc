#include "line_reader.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace drafthorse::cli {

ssize_t read_some(int descriptor, char* data, size_t size, int64_t offset) {
  ssize_t count = 0;
  do {
    count = offset >= 0 ? pread(descriptor, data, size, offset) : read(descriptor, data, size);
  } while (count < 0 && errno == EINTR);
  return count;
}

Status for_each_line(int descriptor, const std::string& name, size_t most_bytes,
                     const std::function<Status(const FileLine&)>& take) {
  std::string piece(1 << 16, '\0');
  std::string kept;
  FileLine line{.number = 1};
  const auto add = [&](std::string_view part) {
    line.bytes += static_cast<int64_t>(part.size());
    kept.append(part.substr(0, most_bytes - kept.size()));
  };
  const auto end = [&](bool ended) {
    line.text = kept;
    line.ended = ended;
    const Status status = take(line);
    kept.clear();
    line = {.number = line.number + 1, .offset = line.offset + line.bytes + 1};
    return status;
  };
  for (int64_t offset = 0;;) {
    const ssize_t count = read_some(descriptor, piece.data(), piece.size(), offset);
    if (count < 0) return file_error(fmt::format("{}: cannot be read ({})", name, std::strerror(errno)));
    if (count == 0) break;
    offset += count;
    std::string_view rest(piece.data(), static_cast<size_t>(count));
    for (size_t at = 0; (at = rest.find('\n')) != std::string_view::npos; rest.remove_prefix(at + 1)) {
      add(rest.substr(0, at));
      RETURN_IF_ERROR(end(true));
    }
    add(rest);
  }
  return line.bytes > 0 ? end(false) : Status();
}

}  // namespace drafthorse::cli
