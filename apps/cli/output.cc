#include "output.h"

#include <fmt/format.h>

#include <cstdio>

namespace drafthorse::cli {

int fail(Console& console, const Status& status) {
  console.error("drafthorse: " + printable(status.message()));
  return static_cast<int>(status.kind());
}

Status write_output(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return {};
  return runtime_error("standard output cannot be written to");
}

std::string json_text(const nlohmann::ordered_json& json) {
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + '\n';
}

std::string printable(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const bool c1 = byte == 0xC2 && i + 1 < text.size() && static_cast<uint8_t>(text[i + 1]) < 0xA0;
    if (c1) ++i;
    out += c1 || byte < 0x20 || byte == 0x7F ? '?' : static_cast<char>(byte);
  }
  return out;
}

std::string check_not_empty(const std::string& value) {
  return value.empty() ? "an empty value makes no sense; leave the flag out for its default" : "";
}

Status cannot_write(const std::string& path) { return file_error(fmt::format("{}: cannot be written", path)); }

}  // namespace drafthorse::cli
