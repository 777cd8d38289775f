#include "config_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "suggest.h"

namespace drafthorse::cli {
namespace {

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

// What makes sense on a command line alone.
bool is_for_once(const std::string& key) {
  static const std::set<std::string> names = {"help",    "version",   "prompt", "file",        "in",
                                              "explain", "no-config", "json",   "retry-errors"};
  return names.contains(key);
}

}  // namespace

Status apply_config(CLI::App& app, const std::string& path) {
  std::error_code error;
  if (path.empty() || !std::filesystem::exists(path, error)) return {};
  std::ifstream file(path);
  if (!file) return usage_error(fmt::format("{}: cannot be read; check its permissions or use --no-config", path));
  const std::vector<CLI::App*> commands = app.get_subcommands([](CLI::App*) { return true; });
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const std::string text = trimmed(line.substr(0, line.find('#')));
    if (text.empty()) continue;
    const auto refuse = [&](const std::string& what) {
      return usage_error(fmt::format("{}, line {}: {}", path, number, what));
    };
    const size_t equals = text.find('=');
    if (equals == std::string::npos) return refuse("no 'key = value'");
    const std::string key = trimmed(text.substr(0, equals));
    const std::string value = trimmed(text.substr(equals + 1));
    std::vector<std::string> known;
    for (const CLI::App* command : commands) {
      for (const CLI::Option* option : command->get_options()) {
        for (const std::string& name : option->get_lnames()) {
          if (!is_for_once(name)) known.push_back(name);
        }
      }
    }
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      const std::string meant = nearest(key, known);
      return refuse(fmt::format("'{}' is no flag that can have a default{}", key,
                                meant.empty() ? std::string() : fmt::format("; did you mean {}?", meant)));
    }
    for (CLI::App* command : app.get_subcommands()) {  // those parsed
      CLI::Option* option = command->get_option_no_throw("--" + key);
      if (option == nullptr || option->count() > 0) continue;
      try {
        option->add_result(value);
        option->run_callback();
      } catch (const CLI::Error& wrong) {
        return refuse(wrong.what());
      }
    }
  }
  return {};
}

}  // namespace drafthorse::cli
