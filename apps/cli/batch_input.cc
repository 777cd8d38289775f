#include "batch_input.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "line_reader.h"

namespace drafthorse::cli {
namespace {

constexpr size_t kMostShownIdBytes = 80;

// What cannot be read twice goes into a file without a name.
Result<int> keep(int descriptor, const std::string& name) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), std::fclose);
  if (!file) return file_error(fmt::format("{}: no room to keep it while it is worked on; give a file", name));
  char piece[1 << 12];
  ssize_t count = 0;
  while ((count = read_some(descriptor, piece, sizeof(piece), -1)) > 0) {
    if (std::fwrite(piece, 1, static_cast<size_t>(count), file.get()) != static_cast<size_t>(count)) {
      return file_error(fmt::format("{}: no room to keep it while it is worked on; give a file", name));
    }
  }
  if (count < 0) return file_error(fmt::format("{}: cannot be read ({})", name, std::strerror(errno)));
  if (std::fflush(file.get()) != 0) {
    return file_error(fmt::format("{}: no room to keep it while it is worked on; give a file", name));
  }
  return fcntl(fileno(file.get()), F_DUPFD_CLOEXEC, 0);
}

Result<int> open_file(const std::string& path, const std::string& name) {
  const bool standard = path == "-";
  const int descriptor =
      standard ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0) : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return file_error(fmt::format("{}: cannot be opened ({})", name, std::strerror(errno)));
  struct stat info {};
  const bool known = fstat(descriptor, &info) == 0;
  if (known && S_ISREG(info.st_mode) && lseek(descriptor, 0, SEEK_CUR) == 0) return descriptor;
  Result<int> kept = S_ISDIR(info.st_mode)
                         ? file_error(fmt::format("{}: a folder; give a file with a request a line", name))
                         : keep(descriptor, name);
  close(descriptor);
  return kept;
}

}  // namespace

Result<std::unique_ptr<BatchInput>> BatchInput::open(const std::string& path, const RequestDefaults& defaults) {
  std::string name = path == "-" ? "standard input" : path;
  ASSIGN_OR_RETURN(const int descriptor, open_file(path, name));
  std::unique_ptr<BatchInput> input(new BatchInput(std::move(name), descriptor, defaults));
  RETURN_IF_ERROR(input->read_index());
  return input;
}

BatchInput::~BatchInput() { close(descriptor_); }

Status BatchInput::read_index() {
  // One byte beyond the longest, so that it is refused as too long.
  RETURN_IF_ERROR(
      for_each_line(descriptor_, name_, kLongestRequestLine + 1, [&](const FileLine& line) { return add(line); }));
  if (lines_.empty()) return file_error(fmt::format("{}: holds no requests", name_));
  return {};
}

Status BatchInput::add(const FileLine& read) {
  if (read.text.find_first_not_of(" \t\r") == std::string_view::npos) return {};
  RequestLine parsed = parse_request_line(read.text, defaults_);
  Line line{.number = read.number,
            .offset = read.offset,
            .bytes = read.bytes,
            .custom_id = std::move(parsed.custom_id),
            .token_limit = parsed.request ? parsed.request->token_limit : -1,
            .valid = parsed.request.has_value()};
  if (!line.custom_id.empty()) {
    const auto [earlier, fresh] = by_id_.emplace(line.custom_id, lines_.size());
    if (!fresh) {
      return usage_error(
          fmt::format("{}: lines {} and {} both have the custom_id '{}'; results could not be told apart", name_,
                      lines_[earlier->second].number, read.number, line.custom_id.substr(0, kMostShownIdBytes)));
    }
  }
  any_chat_ = any_chat_ || (parsed.request && parsed.request->chat);
  lines_.push_back(std::move(line));
  return {};
}

std::optional<size_t> BatchInput::find(const std::string& custom_id) const {
  const auto found = by_id_.find(custom_id);
  return found != by_id_.end() ? std::optional(found->second) : std::nullopt;
}

std::optional<size_t> BatchInput::find_number(int64_t number) const {
  const auto found = std::lower_bound(lines_.begin(), lines_.end(), number,
                                      [](const Line& line, int64_t value) { return line.number < value; });
  if (found == lines_.end() || found->number != number) return std::nullopt;
  return static_cast<size_t>(found - lines_.begin());
}

Result<RequestLine> BatchInput::read(size_t index) const {
  const Line& line = lines_[index];
  const Status changed =
      file_error(fmt::format("{}: changed while it was worked on; --resume goes on with what it is now", name_));
  std::string text(static_cast<size_t>(std::min<int64_t>(line.bytes, kLongestRequestLine + 1)), '\0');
  for (size_t done = 0; done < text.size();) {
    const ssize_t count =
        read_some(descriptor_, text.data() + done, text.size() - done, line.offset + static_cast<int64_t>(done));
    if (count < 0) return file_error(fmt::format("{}: cannot be read ({})", name_, std::strerror(errno)));
    if (count == 0) return changed;
    done += static_cast<size_t>(count);
  }
  RequestLine parsed = parse_request_line(text, defaults_);
  if (parsed.custom_id != line.custom_id || parsed.request.has_value() != line.valid) return changed;
  return parsed;
}

bool BatchInput::is_file(int descriptor) const {
  struct stat ours {};
  struct stat other {};
  return fstat(descriptor_, &ours) == 0 && fstat(descriptor, &other) == 0 && ours.st_dev == other.st_dev &&
         ours.st_ino == other.st_ino;
}

}  // namespace drafthorse::cli
