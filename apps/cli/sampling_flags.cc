#include "sampling_flags.h"

#include <fmt/format.h>

#include <charconv>
#include <random>

#include "text_file.h"

namespace drafthorse::cli {
namespace {

constexpr const char* kGroup = "Sampling";

Result<std::string> read_grammar(const std::string& path) {
  std::optional<std::string> text = read_text_file(path);
  if (text && !text->empty()) return *std::move(text);
  return file_error(fmt::format("{}: no grammar can be read there; check the path given with --grammar", path));
}

std::string check_not_empty(const std::string& value) {
  return value.empty() ? "an empty value makes no sense; leave the flag out for its default" : "";
}

std::string check_seed(const std::string& value) {
  uint64_t seed = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seed);
  return error == std::errc() && end == value.data() + value.size()
             ? ""
             : fmt::format("{} is no seed; give a whole number from 0 to 2^64 - 1", value);
}

}  // namespace

void add_sampling_flags(CLI::App& command, SamplingFlags& flags) {
  SamplingOptions& o = flags.options;
  const auto number = [&](const char* name, auto& value, const char* text, const char* type) {
    return command.add_option(name, value, text)
        ->type_name(type)
        ->check(check_not_empty)
        ->capture_default_str()
        ->group(kGroup);
  };
  number("--temp", o.temperature, "temperature; 0: always the most likely token", "T");
  number("--top-k", o.top_k, "of the most likely tokens, choose among so many; 0: all", "K");
  number("--top-p", o.top_p, "choose among the most likely tokens that together have this probability; 1: all", "P");
  number("--min-p", o.min_p, "choose among tokens at least this likely, against the most likely one; 0: all", "P");
  number("--repeat-penalty", o.repeat_penalty, "divides the logits of tokens that occurred lately; 1: none", "X");
  number("--repeat-last-n", o.repeat_last_n, "how many tokens are lately", "N");
  command.add_option("--seed", flags.seed, "the same seed gives the same text; default: a new one")
      ->type_name("N")
      ->check(check_not_empty)
      ->check(check_seed)
      ->group(kGroup);
  CLI::Option* grammar = command.add_option("--grammar", flags.grammar_file, "the text follows this grammar (GBNF)")
                             ->type_name("FILE")
                             ->check(check_not_empty)
                             ->group(kGroup);
  command.add_flag("--json", flags.json, "the text is one JSON object or array")->excludes(grammar)->group(kGroup);
  command.add_option("--stop", flags.stops, "end where this text would be written; may be given again")
      ->type_name("TEXT")
      ->check(check_not_empty)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->group(kGroup);
  command.add_flag("--ignore-eos", o.ignore_end, "never end the text by itself")->group(kGroup);
  command
      .add_option("--accept", flags.accept,
                  "what makes a drafted token stand: noise (the text does not depend on the draft) or rejection (more "
                  "is accepted, the text depends on the draft)")
      ->type_name("NAME")
      ->check(CLI::IsMember({"noise", "rejection"}))
      ->capture_default_str()
      ->group(kGroup);
}

Result<SamplingOptions> sampling_options(const SamplingFlags& flags) {
  SamplingOptions options = flags.options;
  options.rejection = flags.accept == "rejection";
  if (flags.json) options.grammar = json_grammar();
  if (!flags.grammar_file.empty()) {
    ASSIGN_OR_RETURN(options.grammar, read_grammar(flags.grammar_file));
  }
  if (options.random()) {
    // One of our own is short enough to be typed again.
    options.seed = flags.seed ? *flags.seed : std::random_device()();
  }
  RETURN_IF_ERROR(check_sampling(options));
  return options;
}

std::string describe(const SamplingOptions& o) {
  std::string text;
  if (o.random()) text = fmt::format("sampled at temperature {}, seed {}", o.temperature, o.seed);
  if (o.random() && o.top_k > 0) text += fmt::format(", top-k {}", o.top_k);
  if (o.random() && o.top_p < 1) text += fmt::format(", top-p {}", o.top_p);
  if (o.random() && o.min_p > 0) text += fmt::format(", min-p {}", o.min_p);
  if (o.random() && o.rejection) text += ", by rejection (another draft or depth gives another text)";
  return text;
}

}  // namespace drafthorse::cli
