#include "earlier_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kMost = 1e9;  // slots and tokens of a run

// -1 where there is none.
double number(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : -1.0;
}

// Of a list in "depth".
double sum(const Json& object, const char* key) {
  double total = 0;
  const auto depth = object.find("depth");
  if (depth == object.end() || !depth->is_object() || !depth->contains(key) || !(*depth)[key].is_array()) return total;
  for (const Json& one : (*depth)[key]) total += one.is_number() ? one.get<double>() : 0;
  return total;
}

}  // namespace

Result<EarlierRun> parse_earlier_run(const std::string& text, const std::string& name) {
  const Json json = Json::parse(text, nullptr, false);
  const double hit_rate = number(json, "hit_rate");
  const double slots = number(json, "expert_slots");
  const double steps = number(json, "steps");
  const double drafted = number(json, "drafted_tokens");
  const auto is_count = [](double value) { return value >= 0 && value <= kMost; };
  if (!(hit_rate >= 0 && hit_rate <= 1) || !is_count(slots) || !is_count(steps) || !is_count(drafted) || steps < 1) {
    return file_error(
        fmt::format("{}: no statistics of a run; give a file that `drafthorse run --stats-file` wrote", name));
  }
  EarlierRun run{hit_rate, static_cast<int>(slots), 1 + drafted / steps, std::nullopt};
  // A draft that was given up on the way: the hit rate is of both numbers of slots, and so are they.
  const auto release = json.find("draft_release");
  if (release != json.end() && release->is_object()) {
    const double before = number(*release, "slots_before");
    const double generated = number(json, "generated_tokens");
    const double after = number(*release, "after_tokens");
    if (is_count(before) && is_count(generated) && is_count(after) && generated > 0) {
      const double share = std::min(1.0, after / generated);
      run.expert_slots = static_cast<int>(share * before + (1 - share) * slots);
    }
  }
  const double reached = sum(json, "reached_by_position");
  if (reached > 0) run.acceptance = std::clamp(sum(json, "accepted_by_position") / reached, 0.0, 1.0);
  return run;
}

}  // namespace drafthorse::cli
