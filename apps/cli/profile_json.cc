#include "profile_json.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSchema = 1;
constexpr size_t kMostEntries = 1000;

Json rates_json(const std::vector<KernelRate>& rates) {
  Json out = Json::array();
  for (const KernelRate& rate : rates) out.push_back({rate.tokens, rate.seconds_per_weight});
  return out;
}

// A reader that remembers the first thing that was not as it must be.
class Reader {
 public:
  explicit Reader(const Json& json) : json_(json) {}

  double number(const char* key, double least = 0, double most = kMost) {
    const auto found = json_.find(key);
    if (found == json_.end() || !found->is_number()) return wrong(key);
    return checked(found->get<double>(), key, least, most);
  }
  int count(const char* key, int most) { return static_cast<int>(number(key, 1, most)); }
  std::string text(const char* key) {
    const auto found = json_.find(key);
    if (found == json_.end() || !found->is_string()) {
      wrong(key);
      return {};
    }
    return found->get<std::string>();
  }
  bool flag(const char* key) {
    const auto found = json_.find(key);
    if (found == json_.end() || !found->is_boolean()) return wrong(key) != 0;
    return found->get<bool>();
  }
  std::vector<Json> list(const char* key) {
    const auto found = json_.find(key);
    if (found == json_.end() || !found->is_array() || found->empty() || found->size() > kMostEntries) {
      wrong(key);
      return {};
    }
    return found->get<std::vector<Json>>();
  }
  std::vector<KernelRate> rates(const char* key) {
    std::vector<KernelRate> out;
    for (const Json& pair : list(key)) {
      if (!pair.is_array() || pair.size() != 2 || !pair[0].is_number_integer() || !pair[1].is_number()) {
        wrong(key);
        return out;
      }
      const double tokens = checked(pair[0].get<double>(), key, 1, kMostTokens);
      const double taken = checked(pair[1].get<double>(), key, 0, kMost);
      if (taken <= 0 || (!out.empty() && tokens <= out.back().tokens)) wrong(key);
      if (!problem_.empty()) return out;
      out.push_back({static_cast<int>(tokens), taken});
    }
    return out;
  }
  const std::string& problem() const { return problem_; }
  double wrong(const char* key) {
    if (problem_.empty()) problem_ = key;
    return 0;
  }

 private:
  // Beyond these it is no measurement, and no field's type need hold it.
  static constexpr double kMost = 1e18;
  static constexpr double kMostTokens = 1e6;

  double checked(double value, const char* key, double least, double most) {
    return std::isfinite(value) && value >= least && value <= most ? value : wrong(key);
  }
  const Json& json_;
  std::string problem_;
};

}  // namespace

Json profile_json(const MachineProfile& profile) {
  Json disk = Json::array();
  for (const DiskRate& rate : profile.disk) {
    disk.push_back({{"read_bytes", rate.read_bytes}, {"in_flight", rate.in_flight}, {"bytes_per_s", rate.bytes_per_s}});
  }
  Json kernels = Json::array();
  for (const KernelProfile& kernel : profile.kernels) {
    kernels.push_back({{"type", kernel.type},
                       {"bytes_per_weight", kernel.bytes_per_weight},
                       {"linear_seconds_per_weight", rates_json(kernel.linear)},
                       {"experts_seconds_per_weight", rates_json(kernel.experts)}});
  }
  return {{"schema", kSchema},
          {"machine", profile.machine},
          {"threads", profile.threads},
          {"taken_at", profile.taken_at},
          {"disk_file", profile.disk_file},
          {"disk_device", profile.disk_device},
          {"direct_io", profile.direct_io},
          {"disk", disk},
          {"disk_bytes_per_s_at_the_end", profile.disk_bytes_per_s_at_the_end},
          {"disk_latency_s", profile.disk_latency_s},
          {"first_touch_s_per_byte", profile.first_touch_s_per_byte},
          {"compute_slowdown_while_reading", profile.compute_slowdown_while_reading},
          {"stream_bytes_per_s", profile.stream_bytes_per_s},
          {"stream_bytes_per_s_while_computing", profile.stream_bytes_per_s_while_computing},
          {"ram_bytes_per_s", profile.ram_bytes_per_s},
          {"byte_products_per_s_per_core", profile.byte_products_per_s},
          {"float_products_per_s_per_core", profile.float_products_per_s},
          {"node_overhead_s", profile.node_overhead_s},
          {"elementwise_s_per_float", profile.elementwise_s_per_float},
          {"attention_s_per_key_float", profile.attention_s_per_key_float},
          {"kernels", kernels}};
}

Result<MachineProfile> parse_profile(const std::string& text, const std::string& name) {
  const auto refuse = [&](const std::string& what) {
    return file_error(fmt::format("{}: {}; run `drafthorse profile` again", name, what));
  };
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return refuse("no profile of a machine");
  Reader reader(json);
  MachineProfile profile;
  if (reader.number("schema") != kSchema) return refuse("a profile of another version");
  profile.machine = reader.text("machine");
  profile.threads = reader.count("threads", 100000);
  profile.taken_at = static_cast<int64_t>(reader.number("taken_at"));
  profile.disk_file = reader.text("disk_file");
  profile.disk_device = static_cast<uint64_t>(reader.number("disk_device"));
  profile.direct_io = reader.flag("direct_io");
  for (const Json& entry : reader.list("disk")) {
    Reader rate(entry);
    profile.disk.push_back({static_cast<uint64_t>(rate.number("read_bytes", 1)), rate.count("in_flight", 1000000),
                            rate.number("bytes_per_s", 1)});
    if (!rate.problem().empty()) return refuse(fmt::format("'disk' is damaged ({})", rate.problem()));
  }
  profile.disk_bytes_per_s_at_the_end = reader.number("disk_bytes_per_s_at_the_end");
  profile.disk_latency_s = reader.number("disk_latency_s");
  profile.first_touch_s_per_byte = reader.number("first_touch_s_per_byte");
  profile.compute_slowdown_while_reading = reader.number("compute_slowdown_while_reading", 1);
  profile.stream_bytes_per_s = reader.number("stream_bytes_per_s", 1);
  profile.stream_bytes_per_s_while_computing = reader.number("stream_bytes_per_s_while_computing", 1);
  profile.ram_bytes_per_s = reader.number("ram_bytes_per_s", 1);
  profile.byte_products_per_s = reader.number("byte_products_per_s_per_core", 1);
  profile.float_products_per_s = reader.number("float_products_per_s_per_core", 1);
  profile.node_overhead_s = reader.number("node_overhead_s");
  profile.elementwise_s_per_float = reader.number("elementwise_s_per_float");
  profile.attention_s_per_key_float = reader.number("attention_s_per_key_float");
  for (const Json& entry : reader.list("kernels")) {
    Reader kernel(entry);
    profile.kernels.push_back({kernel.text("type"), kernel.number("bytes_per_weight"),
                               kernel.rates("linear_seconds_per_weight"), kernel.rates("experts_seconds_per_weight")});
    if (!kernel.problem().empty()) return refuse(fmt::format("'kernels' is damaged ({})", kernel.problem()));
  }
  if (!reader.problem().empty()) {
    // A key that is not there at all was not known to the version that wrote the file.
    const std::string_view what =
        json.contains(reader.problem()) ? "is damaged" : "is missing: another version wrote it";
    return refuse(fmt::format("'{}' {}", reader.problem(), what));
  }
  return profile;
}

}  // namespace drafthorse::cli
