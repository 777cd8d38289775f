#include "bench_json.h"

#include <fmt/format.h>

#include <cmath>

namespace drafthorse::cli {

using Json = nlohmann::ordered_json;

const Json* BenchFields::find(const char* key) const {
  if (!good_) return nullptr;
  const auto found = object_.find(key);
  return found == object_.end() ? nullptr : &*found;
}

template <typename T>
T BenchFields::get(const char* key, bool (Json::*is_right)() const noexcept, T otherwise) {
  const Json* found = find(key);
  good_ = found != nullptr && (found->*is_right)();
  return good_ ? found->get<T>() : otherwise;
}

std::string BenchFields::text(const char* key) { return get(key, &Json::is_string, std::string()); }

double BenchFields::number(const char* key) {
  const double value = get(key, &Json::is_number, 0.0);
  good_ = good_ && std::isfinite(value);
  return value;
}

int64_t BenchFields::count(const char* key) {
  const auto value = get(key, &Json::is_number_integer, int64_t{-1});
  good_ = good_ && value >= 0;
  return value;
}

std::vector<double> BenchFields::numbers(const char* key) {
  std::vector<double> out;
  for (const Json& value : list(key)) {
    good_ = good_ && value.is_number();
    out.push_back(value.is_number() ? value.get<double>() : 0);
  }
  return out;
}

std::vector<std::string> BenchFields::texts(const char* key) {
  std::vector<std::string> out;
  for (const Json& value : list(key)) {
    good_ = good_ && value.is_string();
    out.push_back(value.is_string() ? value.get<std::string>() : "");
  }
  return out;
}

TimeSpans BenchFields::spans(const char* key) {
  TimeSpans out;
  for (const Json& value : list(key)) {
    const bool is_span = value.is_array() && value.size() == 2 && value[0].is_number() && value[1].is_number();
    good_ = good_ && is_span;
    if (is_span) out.emplace_back(value[0].get<double>(), value[1].get<double>());
  }
  return out;
}

std::optional<double> BenchFields::optional_number(const char* key) {
  const Json* found = find(key);
  if (found == nullptr || found->is_null()) return std::nullopt;
  return number(key);
}

const Json& BenchFields::list(const char* key) {
  static const Json none = Json::array();
  const Json* found = find(key);
  good_ = found != nullptr && found->is_array();
  return good_ ? *found : none;
}

const Json* BenchFields::optional_object(const char* key) {
  const Json* found = find(key);
  if (found == nullptr || found->is_null()) return nullptr;
  good_ = found->is_object();
  return good_ ? found : nullptr;
}

std::string json_line(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Status read_bench_lines(const std::string& text, const std::string& name, const TakeLine& take, bool& last_line_cut) {
  size_t number = 0;
  for (size_t at = 0; at < text.size();) {
    ++number;
    const size_t end = text.find('\n', at);
    const std::string line = text.substr(at, end == std::string::npos ? end : end - at);
    at = end == std::string::npos ? text.size() : end + 1;
    if (line.empty()) continue;
    const Json json = Json::parse(line, nullptr, false);
    if (json.is_discarded() && end == std::string::npos) {
      last_line_cut = true;
      continue;
    }
    BenchFields fields(json);
    const std::string kind = fields.text("kind");
    if (!fields.good() || !take(kind, json)) {
      return file_error(
          fmt::format("{}, line {}: not what `drafthorse bench` writes; give a folder that it wrote to", name, number));
    }
  }
  return {};
}

}  // namespace drafthorse::cli
