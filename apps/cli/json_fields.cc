#include "json_fields.h"

#include <fmt/format.h>

#include <algorithm>

namespace drafthorse::cli {
namespace {

using Json = nlohmann::json;

constexpr size_t kMostShownBytes = 60;

}  // namespace

void Verdict::refuse(const std::string& param, std::string message, std::string code) {
  if (ok()) error_ = RequestError{400, std::move(message), param, std::move(code)};
}

std::string shown(const Json& value) {
  if (value.is_structured()) return value.is_array() ? "a list" : "an object";
  // In ASCII, so that it can be cut anywhere.
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kMostShownBytes) text = text.substr(0, kMostShownBytes) + "...";
  return text;
}

const Json* JsonFields::take(const char* key) {
  taken_.emplace_back(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

const Json* JsonFields::need(const char* key, const std::string& what) {
  const Json* value = take(key);
  if (value == nullptr) refuse(key, fmt::format("{} has no {}", what, key), "missing_field");
  return value;
}

const std::string* JsonFields::text(const char* key) {
  const Json* value = take(key);
  if (value == nullptr || value->is_string()) return value ? value->get_ptr<const std::string*>() : nullptr;
  refuse(key, fmt::format("{} must be a string, not {}", name(key), shown(*value)));
  return nullptr;
}

std::optional<bool> JsonFields::flag(const char* key) {
  const Json* value = take(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  refuse(key, fmt::format("{} must be true or false, not {}", name(key), shown(*value)));
  return std::nullopt;
}

std::optional<double> JsonFields::number(const char* key, double least, double most) {
  const Json* value = take(key);
  if (value == nullptr) return std::nullopt;
  // Written so that NaN would be refused too.
  if (value->is_number() && value->get<double>() >= least && value->get<double>() <= most) return value->get<double>();
  refuse(key, fmt::format("{} must be a number from {} to {}, not {}", name(key), least, most, shown(*value)));
  return std::nullopt;
}

std::optional<int64_t> JsonFields::count(const char* key, int64_t least, int64_t most) {
  const Json* value = take(key);
  if (value == nullptr) return std::nullopt;
  const bool beyond = value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(most);
  if (value->is_number_integer() && !beyond && value->get<int64_t>() >= least && value->get<int64_t>() <= most) {
    return value->get<int64_t>();
  }
  refuse(key, fmt::format("{} must be a whole number from {} to {}, not {}", name(key), least, most, shown(*value)));
  return std::nullopt;
}

void JsonFields::refuse_unsupported(const char* key, const Json& value, const char* why) {
  refuse(key, fmt::format("{} {} is not supported: {}", name(key), shown(value), why), "unsupported_value");
}

void JsonFields::finish() {
  for (const auto& [key, value] : object_.items()) {
    if (value.is_null() || std::find(taken_.begin(), taken_.end(), key) != taken_.end()) continue;
    verdict_.refuse(prefix_ + key, fmt::format("{} is no field that is known here", shown(prefix_ + key)),
                    "unknown_parameter");
  }
}

}  // namespace drafthorse::cli
