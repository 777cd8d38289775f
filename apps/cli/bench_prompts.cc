#include "bench_prompts.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>

namespace drafthorse::cli {

std::vector<BenchPrompt> own_prompts() {
  return {
      {"queue",
       "class Queue:\n    \"\"\"First in, first out, with a fixed number of places.\"\"\"\n\n"
       "    def __init__(self, places):\n"},
      {"harbour", "The fishing boats came back late that evening. On the quay the buyers were already waiting, and"},
      {"median",
       "def median(values):\n    \"\"\"Return the middle of a list of numbers.\"\"\"\n"
       "    ordered = sorted(values)\n"},
      {"bread", "To bake a loaf of bread you need flour, water, salt and yeast. First"},
      {"csv", "import csv\n\ndef read_rows(path):\n    \"\"\"Read a table with a header line as dictionaries.\"\"\"\n"},
      {"letter", "Dear Anna,\n\nthank you for your letter. The garden has changed a good deal since you were here:"}};
}

Result<std::vector<BenchPrompt>> parse_prompts(const std::string& text, const std::string& name) {
  std::vector<BenchPrompt> out;
  std::set<std::string> ids;
  size_t number = 0;
  for (size_t at = 0; at < text.size();) {
    ++number;
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto json = nlohmann::json::parse(line, nullptr, false);
    const bool has_text = json.is_object() && json.contains("text") && json["text"].is_string();
    if (!has_text || json["text"].get_ref<const std::string&>().empty()) {
      return file_error(
          fmt::format(R"({}, line {}: no prompt; each line is an object such as {{"text": "Once"}})", name, number));
    }
    std::string id = json.contains("id") && json["id"].is_string() ? json["id"].get<std::string>() : "";
    if (id.empty()) id = std::to_string(number);
    if (!ids.insert(id).second)
      return file_error(fmt::format("{}, line {}: the id '{}' is there twice", name, number, id));
    out.push_back({id, json["text"].get<std::string>()});
  }
  if (out.empty()) return file_error(fmt::format("{}: holds no prompts", name));
  return out;
}

std::vector<BenchPrompt> spread_out(const std::vector<BenchPrompt>& prompts, size_t count) {
  if (count >= prompts.size()) return prompts;
  std::vector<BenchPrompt> out;
  for (size_t i = 0; i < count; ++i) out.push_back(prompts[i * prompts.size() / count]);
  return out;
}

}  // namespace drafthorse::cli
