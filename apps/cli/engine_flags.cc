#include "engine_flags.h"

#include <fmt/format.h>

#include <charconv>

#include "base/units.h"

namespace drafthorse::cli {

Result<EngineOptions> engine_options(const EngineFlags& flags) {
  EngineOptions options;
  options.target_path = flags.target;
  options.draft_path = flags.draft;
  options.threads = flags.threads;
  if (flags.context > 0) options.context = flags.context;
  if (!flags.ram.empty()) {
    ASSIGN_OR_RETURN(options.ram_bytes, parse_size(flags.ram));
    if (options.ram_bytes < kMiB && flags.ram.find_first_not_of("0123456789.") == std::string::npos) {
      return usage_error(fmt::format("--ram {0} is {0} bytes; write {0}G or {0}M if that is meant", flags.ram));
    }
  }
  if (flags.draft_depth != "auto") {
    int32_t depth = 0;
    const std::string& text = flags.draft_depth;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), depth);
    if (error != std::errc() || end != text.data() + text.size() || depth < 0 || depth > kMaxDraftDepth) {
      return usage_error(fmt::format("--draft-depth {}: give auto or a number from 0 to {}", text, kMaxDraftDepth));
    }
    options.draft_depth = depth;
  }
  return options;
}

}  // namespace drafthorse::cli
