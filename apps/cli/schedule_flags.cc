#include "schedule_flags.h"

#include <fmt/format.h>

#include <charconv>

#include "schedule/policy.h"
#include "suggest.h"

namespace drafthorse::cli {

void add_schedule_flags(CLI::App& command, ScheduleFlags& flags) {
  const auto named = [&](const char* flag, std::string& value, const std::string& help,
                         const std::vector<std::string>& names) {
    command.add_option(flag, value, help)->type_name("NAME")->check(one_of(with_list(names)));
  };
  named("--policy", flags.policy,
        fmt::format("how experts are scheduled: a name, or list; sets the three that follow [{}]", kDefaultPolicy),
        schedule_policy_names());
  named("--predictor", flags.predictor, "what tells which experts will be needed: a name, or list", predictor_names());
  named("--prefetch", flags.prefetch, "when they are read ahead: a name, or list", prefetch_policy_names());
  named("--eviction", flags.eviction, "which expert goes when memory is full: a name, or list",
        eviction_policy_names());
  command
      .add_option("--cutoff", flags.cutoff,
                  "layers that --prefetch cutoff reads ahead while drafting: auto, or a number")
      ->type_name("auto|N")
      ->check(CLI::Validator(
          [](const std::string& text) -> std::string {
            int value = 0;
            const auto end = text.data() + text.size();
            const bool number = std::from_chars(text.data(), end, value).ptr == end && !text.empty() && value >= 0;
            return text == "auto" || number ? "" : fmt::format("'{}' is neither auto nor a number of layers", text);
          },
          "", ""))
      ->capture_default_str();
  command.add_option("--batched-reads", flags.batched_reads, "on: experts are read together; off: one after the other")
      ->type_name("on|off")
      ->check(one_of({"on", "off"}))
      ->capture_default_str();
}

ScheduleOptions schedule_options(const ScheduleFlags& flags) {
  ScheduleOptions options;
  options.policy = flags.policy;
  options.predictor = flags.predictor;
  options.prefetch = flags.prefetch;
  options.eviction = flags.eviction;
  if (flags.cutoff != "auto") options.cutoff_layers = std::stoi(flags.cutoff);
  options.batched_reads = flags.batched_reads == "on";
  return options;
}

std::optional<std::string> schedule_list(const ScheduleFlags& flags) {
  std::string lines;
  const auto add = [&](const std::vector<std::string>& names) {
    for (const std::string& name : names) lines += name + '\n';
  };
  if (flags.policy == "list") {
    for (const SchedulePolicy& policy : schedule_policies()) {
      lines += fmt::format("{:<14}{}\n", policy.name, policy.summary);
    }
  } else if (flags.predictor == "list") {
    add(predictor_names());
  } else if (flags.prefetch == "list") {
    add(prefetch_policy_names());
  } else if (flags.eviction == "list") {
    add(eviction_policy_names());
  }
  return lines.empty() ? std::nullopt : std::optional(lines);
}

}  // namespace drafthorse::cli
