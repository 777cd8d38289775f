// Reading an object that a stranger wrote: each field is asked for by name and kind, the first thing that is wrong is
// remembered, and what nobody asked for is unknown.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace drafthorse::cli {

// Why a request was not answered, for its record.
struct RequestError {
  int status_code = 400;  // 400: the request's own fault, 500: ours
  std::string message;    // a sentence
  std::string param;      // the field that is wrong; empty: none in particular
  std::string code;       // for programs; empty: none
};

class Verdict {
 public:
  bool ok() const { return !error_; }
  const std::optional<RequestError>& error() const { return error_; }
  // Nothing where something was wrong before.
  void refuse(const std::string& param, std::string message, std::string code = "invalid_value");

 private:
  std::optional<RequestError> error_;
};

// A value in a message: its beginning, or what kind of thing it is.
std::string shown(const nlohmann::json& value);

// null counts as absent. What is of the wrong kind is refused and counts as absent too.
class JsonFields {
 public:
  // Both must outlive it. `prefix` stands before names in messages.
  JsonFields(const nlohmann::json& object, std::string prefix, Verdict& verdict)
      : object_(object), prefix_(std::move(prefix)), verdict_(verdict) {}

  std::string name(const char* key) const { return prefix_ + key; }
  void refuse(const char* key, std::string message, std::string code = "invalid_value") {
    verdict_.refuse(name(key), std::move(message), std::move(code));
  }
  Verdict& verdict() { return verdict_; }

  const nlohmann::json* take(const char* key);
  // As take(), and refused where it is absent; `what` it is that has no such field.
  const nlohmann::json* need(const char* key, const std::string& what);
  void ignore(const char* key) { taken_.emplace_back(key); }
  const std::string* text(const char* key);
  std::optional<bool> flag(const char* key);
  std::optional<double> number(const char* key, double least, double most);
  std::optional<int64_t> count(const char* key, int64_t least, int64_t most);
  // Something that is not done here: refused, saying why, unless `harmless(value)`.
  template <typename Predicate>
  void only(const char* key, const char* why, const Predicate& harmless) {
    const nlohmann::json* value = take(key);
    if (value != nullptr && !harmless(*value)) refuse_unsupported(key, *value, why);
  }
  // Refuses what was not taken or ignored.
  void finish();

 private:
  void refuse_unsupported(const char* key, const nlohmann::json& value, const char* why);

  const nlohmann::json& object_;
  std::string prefix_;
  Verdict& verdict_;
  std::vector<std::string> taken_;
};

}  // namespace drafthorse::cli
