#include "batch_results.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "line_reader.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kBegin = R"({"id":"batch_req_)";
constexpr size_t kLongestResultLine = 256 << 20;
constexpr size_t kMostShownIdBytes = 80;

std::string line_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string_view finish_reason(StopReason stop) {
  return stop == StopReason::kEndOfText || stop == StopReason::kStopText ? "stop" : "length";
}

// What is left of a line that was not written to its end.
bool is_torn(std::string_view text) {
  const bool begins = text.starts_with(kBegin) || kBegin.starts_with(text);
  return begins || text.find_first_not_of('\0') == std::string_view::npos;  // what some file systems leave
}

Status write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = write(descriptor, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return runtime_error(std::strerror(errno));
    text.remove_prefix(static_cast<size_t>(count));
  }
  return {};
}

}  // namespace

ResultWriter::ResultWriter(std::string model)
    : model_(std::move(model)), job_(fmt::format("{:08x}", std::random_device()())) {}

std::string ResultWriter::answer(const std::string& custom_id, bool chat, const BatchResult& result,
                                 const std::optional<uint64_t>& seed) {
  const std::string name = fmt::format("{}-{}", job_, ++count_);
  Json choice = {{"index", 0}};
  if (chat) {
    choice["message"] = {{"role", "assistant"}, {"content", result.text}};
  } else {
    choice["text"] = result.text;
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = finish_reason(result.stop);
  Json body = {{"id", (chat ? "chatcmpl-" : "cmpl-") + name},
               {"object", chat ? "chat.completion" : "text_completion"},
               {"created", static_cast<int64_t>(std::time(nullptr))},
               {"model", model_},
               {"choices", Json::array({choice})},
               {"usage",
                {{"prompt_tokens", result.prompt_tokens},
                 {"completion_tokens", result.generated_tokens},
                 {"total_tokens", result.prompt_tokens + result.generated_tokens}}}};
  if (seed) body["seed"] = *seed;
  return line_of({{"id", "batch_req_" + name},
                  {"custom_id", custom_id},
                  {"response", {{"status_code", 200}, {"request_id", "req_" + name}, {"body", body}}},
                  {"error", nullptr}});
}

std::string ResultWriter::failure(const BatchInput::Line& line, const RequestError& error) {
  const std::string name = fmt::format("{}-{}", job_, ++count_);
  const auto or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
  const Json body = {{"error",
                      {{"message", error.message},
                       {"type", error.status_code < 500 ? "invalid_request_error" : "server_error"},
                       {"param", or_null(error.param)},
                       {"code", or_null(error.code)}}}};
  Json json = {{"id", "batch_req_" + name}, {"custom_id", or_null(line.custom_id)}};
  if (line.custom_id.empty()) json["line"] = line.number;
  json["response"] = {{"status_code", error.status_code}, {"request_id", "req_" + name}, {"body", body}};
  json["error"] = nullptr;
  return line_of(json);
}

std::optional<ResultLine> parse_result_line(std::string_view text) {
  if (!text.starts_with(kBegin)) return std::nullopt;
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return std::nullopt;
  static const Json none;
  const auto at = [](const Json& object, const char* key) -> const Json& {
    const auto found = object.is_object() ? object.find(key) : object.end();
    return object.is_object() && found != object.end() ? *found : none;
  };
  ResultLine line;
  const Json& id = at(json, "custom_id");
  const Json& number = at(json, "line");
  if (id.is_string()) line.custom_id = id.get<std::string>();
  if (id.is_null() && number.is_number_unsigned() && number.get<uint64_t>() <= INT64_MAX) {
    line.number = number.get<int64_t>();
  }
  const Json& response = at(json, "response");
  const Json& status = at(response, "status_code");
  const Json& model = at(at(response, "body"), "model");
  if ((line.custom_id.empty() && line.number == 0) || !status.is_number_integer()) return std::nullopt;
  line.failed = status != 200;
  if (!line.failed && !model.is_string()) return std::nullopt;
  if (!line.failed) line.model = model.get<std::string>();
  return line;
}

Result<std::unique_ptr<ResultsFile>> ResultsFile::open(const std::string& path, ResultsMode mode,
                                                       const BatchInput& input, const std::string& model) {
  const bool standard = path == "-";
  const std::string name = standard ? "standard output" : path;
  int descriptor = standard ? fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0)
                            : ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  // A pipe or a terminal need not be readable.
  if (descriptor < 0 && !standard) descriptor = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (descriptor < 0) return file_error(fmt::format("{}: cannot be written ({})", name, std::strerror(errno)));
  std::unique_ptr<ResultsFile> file(new ResultsFile(name, descriptor, input.lines().size()));
  struct stat info {};
  file->regular_ = !standard && fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode);
  if (!file->regular_) {
    if (mode == ResultsMode::kNew) return file;
    return usage_error(fmt::format("{} is not a file, so there is nothing to resume", name));
  }
  if (input.is_file(descriptor)) return usage_error(fmt::format("{}: --in and --out are the same file", name));
  RETURN_IF_ERROR(file->lock(path));
  if (mode == ResultsMode::kNew) {
    if (info.st_size == 0) return file;
    return usage_error(fmt::format("{} is not empty; --resume goes on with it, another --out begins anew", name));
  }
  std::vector<Found> lines;
  RETURN_IF_ERROR(file->read_found(input, model, lines));
  if (mode == ResultsMode::kRetryErrors) RETURN_IF_ERROR(file->forget_failed(path, lines));
  for (const Found& line : lines) {
    file->done_[line.index] = true;
    ++file->found_;
    file->found_failed_ += line.failed ? 1 : 0;
  }
  return file;
}

ResultsFile::~ResultsFile() { close(descriptor_); }

Status ResultsFile::lock(const std::string& path) {
  const Status taken = file_error(fmt::format("{}: another process is writing to it", name_));
  if (flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    return errno == EWOULDBLOCK ? taken : Status();  // a file system without locks
  }
  // Whoever had it may have put another file in its place.
  struct stat ours {};
  struct stat there {};
  const bool same = fstat(descriptor_, &ours) == 0 && stat(path.c_str(), &there) == 0 && ours.st_ino == there.st_ino &&
                    ours.st_dev == there.st_dev;
  return same ? Status() : taken;
}

Status ResultsFile::read_found(const BatchInput& input, const std::string& model, std::vector<Found>& lines) {
  std::vector<int64_t> number_by_index(done_.size());
  int64_t torn_at = -1;
  RETURN_IF_ERROR(for_each_line(descriptor_, name_, kLongestResultLine, [&](const FileLine& line) -> Status {
    const auto refuse = [&](const std::string& what) {
      return usage_error(fmt::format("{}, line {}: {}; give another --out", name_, line.number, what));
    };
    if (torn_at >= 0) return refuse("no result of a batch");  // that one was not the last
    const std::optional<ResultLine> found = line.ended ? parse_result_line(line.text) : std::nullopt;
    if (!found) {
      if (!is_torn(line.text)) return refuse("no result of a batch");
      torn_at = line.offset;
      return {};
    }
    const bool named = !found->custom_id.empty();
    const std::optional<size_t> index = named ? input.find(found->custom_id) : input.find_number(found->number);
    if (!index) {
      return refuse(
          named ? fmt::format("'{}' is no request of {}", found->custom_id.substr(0, kMostShownIdBytes), input.name())
                : fmt::format("{} has no request in line {}", input.name(), found->number));
    }
    if (number_by_index[*index] != 0) {
      return refuse(fmt::format("the same result as in line {}", number_by_index[*index]));
    }
    number_by_index[*index] = line.number;
    if (!found->failed && found->model != model) {
      return usage_error(fmt::format("{}, line {}: written by {}, not by {}; give that with -m, or another --out",
                                     name_, line.number, found->model, model));
    }
    lines.push_back({line.offset, line.bytes, *index, found->failed});
    return {};
  }));
  if (torn_at < 0 || ftruncate(descriptor_, torn_at) == 0) return {};
  return file_error(fmt::format("{}: the end, a torn line, cannot be cut off ({})", name_, std::strerror(errno)));
}

// All other lines go into a new file, which takes the place of the old one only when it is whole and on the disk.
Status ResultsFile::forget_failed(const std::string& path, std::vector<Found>& lines) {
  const auto is_failed = [](const Found& line) { return line.failed; };
  if (std::none_of(lines.begin(), lines.end(), is_failed)) return {};
  std::error_code error;
  const std::string real = std::filesystem::canonical(path, error).string();
  const std::string fresh = (error ? path : real) + ".new";
  const auto cannot = [&] {
    return file_error(fmt::format("{}: cannot be written ({})", fresh, std::strerror(errno)));
  };
  struct stat info {};
  fstat(descriptor_, &info);
  const int descriptor = ::open(fresh.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, info.st_mode & 07777);
  if (descriptor < 0) return cannot();
  const auto give_up = [&] {
    const Status status = cannot();
    close(descriptor);
    unlink(fresh.c_str());
    return status;
  };
  std::erase_if(lines, is_failed);
  for (const Found& line : lines) {
    std::string text(static_cast<size_t>(line.bytes) + 1, '\0');  // with its end
    for (size_t done = 0; done < text.size();) {
      const ssize_t count =
          read_some(descriptor_, text.data() + done, text.size() - done, line.offset + static_cast<int64_t>(done));
      if (count <= 0) return give_up();
      done += static_cast<size_t>(count);
    }
    if (!write_all(descriptor, text).ok()) return give_up();
  }
  if (fsync(descriptor) != 0 || (flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)) return give_up();
  if (rename(fresh.c_str(), (error ? path : real).c_str()) != 0) return give_up();
  close(descriptor_);
  descriptor_ = descriptor;
  return {};
}

Status ResultsFile::cannot_write() const {
  return runtime_error(fmt::format("{}: cannot be written ({})", name_, std::strerror(errno)));
}

Status ResultsFile::append(std::string line) {
  line += '\n';
  const off_t end = regular_ ? lseek(descriptor_, 0, SEEK_END) : 0;
  if (!write_all(descriptor_, line).ok()) {
    const Status status = cannot_write();
    // Nothing more can be done where this fails: the torn line will be cut off when the job is resumed.
    if (regular_ && end >= 0) static_cast<void>(ftruncate(descriptor_, end));
    return status;
  }
  const int64_t now = clock_.now_ns();
  if (regular_ && now - synced_ns_ >= kSyncNs) {
    synced_ns_ = now;
    if (fdatasync(descriptor_) != 0) return cannot_write();
  }
  return {};
}

Status ResultsFile::finish() { return regular_ && fdatasync(descriptor_) != 0 ? cannot_write() : Status(); }

}  // namespace drafthorse::cli
