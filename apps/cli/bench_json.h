// The lines of a bench's file, whatever kind of bench it is. Pure.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace drafthorse::cli {

// [start, length] in milliseconds.
using TimeSpans = std::vector<std::pair<double, double>>;

// Reads an object's members and remembers whether all were there and of the right kind; after the first that was not,
// everything is empty. Numbers are finite, counts not negative.
class BenchFields {
 public:
  explicit BenchFields(const nlohmann::ordered_json& object) : object_(object) { good_ = object.is_object(); }

  std::string text(const char* key);
  double number(const char* key);
  int64_t count(const char* key);
  std::vector<double> numbers(const char* key);
  std::vector<std::string> texts(const char* key);
  TimeSpans spans(const char* key);
  std::optional<double> optional_number(const char* key);  // not there, or null
  const nlohmann::ordered_json& list(const char* key);
  const nlohmann::ordered_json* optional_object(const char* key);  // nullptr: not there, or null
  bool good() const { return good_; }

 private:
  template <typename T>
  T get(const char* key, bool (nlohmann::ordered_json::*is_right)() const noexcept, T otherwise);
  // nullptr: not there, or something was wrong before.
  const nlohmann::ordered_json* find(const char* key) const;

  const nlohmann::ordered_json& object_;
  bool good_ = false;
};

// Valid whatever bytes the strings hold; without the end of the line.
std::string json_line(const nlohmann::ordered_json& json);

// Calls `take` with each line's "kind" and object, in their order; kFile, naming the line, where it returns false. A
// last line that is no whole object, as it was being written when the bench ended, is left out and `last_line_cut` set.
using TakeLine = std::function<bool(const std::string& kind, const nlohmann::ordered_json& json)>;
Status read_bench_lines(const std::string& text, const std::string& name, const TakeLine& take, bool& last_line_cut);

}  // namespace drafthorse::cli
