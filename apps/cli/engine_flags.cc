#include "engine_flags.h"

#include <fmt/format.h>

#include <charconv>

#include "base/units.h"
#include "output.h"
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

void add_kv_flag(CLI::App& command, std::string& kv) {
  command
      .add_option("--kv", kv,
                  "how keys and values are kept: f16, or q8_0 in about half the memory, less exactly (another text)")
      ->type_name("f16|q8_0")
      ->check(one_of({"f16", "q8_0"}))
      ->capture_default_str();
}

void add_model_flags(CLI::App& command, ModelFlags& flags) {
  command.add_option("-m,--model", flags.target, "the model, a GGUF file (any shard of a split one)")
      ->type_name("FILE");
  command.add_option("-d,--draft", flags.draft, "a smaller model with the same vocabulary, to draft with")
      ->type_name("FILE")
      ->check(check_not_empty);
  command
      .add_option("--ram", flags.ram, "memory for everything, such as 8G or 1200M; default: what the machine has free")
      ->type_name("SIZE")
      ->check(check_not_empty);
  command
      .add_option("--ctx", flags.context, "longest text in tokens, prompt included; default: 4096, or the model's own")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 24));
  command.add_option("--draft-depth", flags.draft_depth, "tokens drafted per step: auto, or a number")
      ->type_name("auto|N")
      ->capture_default_str();
  add_drafter_flag(command, flags.drafter);
  add_kv_flag(command, flags.kv);
  command.add_option("--io", flags.io, "how to read: uring, pread, or list")
      ->type_name("NAME")
      ->check(one_of(with_list({"uring", "pread"})))
      ->capture_default_str();
  command.add_option("--threads", flags.threads, "threads to compute with; default: one per core")
      ->type_name("N")
      ->check(CLI::Range(1, 512));
  command.add_option("--isa", flags.isa, "instruction set to compute with: a name, or list; default: the best")
      ->type_name("NAME")
      ->check(check_not_empty);
}

std::optional<std::vector<std::string>> model_list(const ModelFlags& flags) {
  if (flags.drafter == "list") return drafter_names();
  if (flags.io == "list") return std::vector<std::string>{"uring", "pread"};
  if (flags.isa == "list") return instruction_set_names();
  return std::nullopt;
}

Result<EngineOptions> engine_options(const ModelFlags& flags) {
  ASSIGN_OR_RETURN(EngineOptions options,
                   engine_options(EngineFlags{flags.target, flags.draft, flags.ram, flags.context, flags.threads,
                                              flags.draft_depth, flags.drafter, flags.kv}));
  options.isa = flags.isa;
  options.io = flags.io;
  return options;
}

Result<EngineOptions> engine_options(const EngineFlags& flags) {
  EngineOptions options;
  options.target_path = flags.target;
  options.draft_path = flags.draft;
  options.drafter = flags.drafter;
  options.threads = flags.threads;
  options.kv_type = flags.kv;
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
