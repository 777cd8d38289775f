#include "suggest.h"

#include <fmt/format.h>

#include <algorithm>

namespace drafthorse::cli {
namespace {

constexpr size_t kLongestWord = 64;

size_t typing_errors(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> errors(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) errors[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) errors[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t wrong = a[i - 1] == b[j - 1] ? 0 : 1;
      errors[i][j] = std::min({errors[i - 1][j] + 1, errors[i][j - 1] + 1, errors[i - 1][j - 1] + wrong});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) errors[i][j] = std::min(errors[i][j], errors[i - 2][j - 2] + 1);
    }
  }
  return errors[a.size()][b.size()];
}

std::vector<std::string> flag_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

}  // namespace

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t fewest = std::max<size_t>(1, word.size() / 3) + 1;
  if (word.size() > kLongestWord) return best;
  for (const std::string& candidate : candidates) {
    const size_t errors = typing_errors(word, candidate);
    if (errors < fewest) {
      fewest = errors;
      best = candidate;
    }
  }
  return best;
}

std::string unknown_word(const CLI::App& app, const std::vector<std::string>& arguments) {
  std::vector<std::string> commands;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    commands.push_back(command->get_name());
  }
  const CLI::App* chosen = &app;
  for (const std::string& argument : arguments) {
    const bool is_flag = argument.starts_with("--");
    if (!is_flag && chosen == &app) {
      if (argument.starts_with('-')) continue;
      if (std::find(commands.begin(), commands.end(), argument) != commands.end()) {
        chosen = app.get_subcommand(argument);
        continue;
      }
      const std::string meant = nearest(argument, commands);
      return fmt::format("there is no command '{}'; {}", argument.substr(0, kLongestWord),
                         meant.empty() ? fmt::format("the commands are {}", fmt::join(commands, ", "))
                                       : fmt::format("did you mean '{}'?", meant));
    }
    if (!is_flag || argument == "--") continue;
    const std::string name = argument.substr(0, argument.find('='));
    const std::vector<std::string> known = flag_names(*chosen);
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string meant = nearest(name, known);
    return fmt::format("there is no flag {}{}", name.substr(0, kLongestWord),
                       meant.empty() ? std::string() : fmt::format("; did you mean {}?", meant));
  }
  return {};
}

std::vector<std::string> with_list(std::vector<std::string> names) {
  names.emplace_back("list");
  return names;
}

CLI::Validator one_of(const std::vector<std::string>& names) {
  CLI::Validator validator;
  validator.operation([names](const std::string& value) {
    if (std::find(names.begin(), names.end(), value) != names.end()) return std::string();
    const std::string meant = nearest(value, names);
    return fmt::format("'{}' is none of {}{}", value, fmt::join(names, ", "),
                       meant.empty() ? std::string() : fmt::format("; did you mean {}?", meant));
  });
  return validator;
}

}  // namespace drafthorse::cli
