#include "engine_flags.h"

#include <fmt/format.h>

#include <charconv>

#include "base/units.h"
#include "suggest.h"

namespace drafthorse::cli {

void add_drafter_flag(CLI::App& command, std::string& drafter) {
  std::vector<std::string> names = drafter_names();
  names.emplace_back("list");
  command
      .add_option("--drafter", drafter,
                  "what drafts: auto, model (-d), shared-kv (-d, the same model at fewer bits, reading the model's own "
                  "KV cache), ngram (the text so far), resident (the model with the experts in memory), none, or list")
      ->type_name("NAME")
      ->check(one_of(names))
      ->capture_default_str();
}

Result<EngineOptions> engine_options(const EngineFlags& flags) {
  EngineOptions options;
  options.target_path = flags.target;
  options.draft_path = flags.draft;
  options.drafter = flags.drafter;
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
