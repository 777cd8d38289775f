#include "routing_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>

#include "io/expert_layout.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::json;

constexpr int kMostLayers = 1024;
constexpr int kMostExperts = 4096;
constexpr int kMostWindow = 1024;
constexpr int64_t kMostTokens = int64_t{1} << 32;
constexpr uint64_t kMostBytes = uint64_t{1} << 50;
constexpr uint64_t kMostExpertBytes = uint64_t{1} << 36;
constexpr double kMostSeconds = 1e9;
constexpr double kMostRate = 1e15;

// Reads one line's object; remembers that something was wrong instead of failing at once.
class Reader {
 public:
  explicit Reader(const Json& json) : json_(json) {}

  bool ok() const { return ok_; }
  bool check(bool fine) { return ok_ = ok_ && fine; }

  const Json& at(const char* key) {
    static const Json none;
    const auto found = json_.find(key);
    return found != json_.end() ? *found : none;
  }
  int64_t integer(const Json& json, int64_t least, int64_t most) {
    // A number beyond 64 bits is no integer to the parser.
    if (!check(json.is_number_integer())) return least;
    if (json.is_number_unsigned() && !check(json.get<uint64_t>() <= static_cast<uint64_t>(most))) return least;
    const auto value = json.get<int64_t>();
    return check(value >= least && value <= most) ? value : least;
  }
  int64_t integer(const char* key, int64_t least, int64_t most) { return integer(at(key), least, most); }
  int count(const char* key, int least, int most) { return static_cast<int>(integer(key, least, most)); }
  uint64_t bytes(const char* key) { return static_cast<uint64_t>(integer(key, 0, static_cast<int64_t>(kMostBytes))); }
  double number(const Json& json, double most) {
    if (!check(json.is_number())) return 0;
    const double value = json.get<double>();
    return check(std::isfinite(value) && value >= 0 && value <= most) ? value : 0;
  }
  double number(const char* key, double most) { return number(at(key), most); }
  std::string text(const char* key) {
    const Json& json = at(key);
    return check(json.is_string()) ? json.get<std::string>() : "";
  }
  const Json& list(const Json& json, size_t least, size_t most) {
    static const Json none = Json::array();
    return check(json.is_array() && json.size() >= least && json.size() <= most) ? json : none;
  }
  const Json& list(const char* key, size_t least, size_t most) { return list(at(key), least, most); }

 private:
  const Json& json_;
  bool ok_ = true;
};

bool parse_model(const Json& json, TracedModel& model) {
  Reader in(json);
  in.count("drafthorse_routing", 1, 1);
  model.target = in.text("model");
  model.draft = in.text("draft");
  for (const Json& one : in.list("layers", 1, kMostLayers)) {
    Reader layer_in(one);
    if (!in.check(one.is_object())) break;
    TracedLayer& layer = model.layers.emplace_back();
    layer.experts = layer_in.count("experts", 0, kMostExperts);
    for (const Json& bytes : layer_in.list("extent_bytes", layer.experts > 0 ? 1 : 0, kMaxExpertExtents)) {
      layer.extent_bytes.push_back(static_cast<uint64_t>(layer_in.integer(bytes, 1, kMostExpertBytes)));
    }
    in.check(layer_in.ok());
  }
  model.n_expert_used = in.count("experts_used", 1, kMostExperts);
  model.draft_layers = in.count("draft_layers", 0, kMostLayers);
  model.max_window = in.count("max_window", 1, kMostWindow);
  model.slots = in.count("slots", 1, kMostLayers * kMostExperts);
  model.other_bytes = in.bytes("other_bytes");
  model.dense_bytes = in.bytes("dense_bytes");
  model.draft_token_bytes = in.bytes("draft_token_bytes");
  model.policy = in.text("policy");
  model.predictor = in.text("predictor");
  model.prefetch = in.text("prefetch");
  model.eviction = in.text("eviction");
  in.check(in.at("batched_reads").is_boolean());
  model.batched_reads = in.ok() && in.at("batched_reads").get<bool>();
  if (in.at("depth") != "auto") model.depth = in.count("depth", 0, kMostWindow);
  model.load_bytes_per_s = in.number("load_bytes_per_s", kMostRate);
  bool any = false;
  for (const TracedLayer& layer : model.layers) {
    any = any || layer.experts > 0;
    in.check(layer.experts == 0 || layer.experts >= model.n_expert_used);
  }
  in.check(any && (model.draft.empty() || model.draft_layers > 0));
  return in.ok();
}

bool parse_prompt(const Json& json, const TracedModel& model, TracedPrompt& prompt) {
  Reader in(json);
  prompt.tokens = static_cast<int>(in.integer("prompt", 1, 1 << 24));
  for (const Json& one : in.list("uses", model.layers.size(), model.layers.size())) {
    auto& uses = prompt.uses.emplace_back();
    const auto experts = static_cast<size_t>(model.layers[prompt.uses.size() - 1].experts);
    for (const Json& use : in.list(one, experts, experts)) {
      uses.push_back(static_cast<int32_t>(in.integer(use, 0, prompt.tokens)));
    }
    // A layer that nobody uses is no layer with experts.
    in.check(experts == 0 || std::any_of(uses.begin(), uses.end(), [](int32_t n) { return n > 0; }));
  }
  return in.ok();
}

bool parse_agreement(const Json& json, TracedAgreement& agreement) {
  Reader in(json);
  agreement.positions = in.count("positions", 0, kMostWindow);
  agreement.agreed = in.count("agreed", 0, agreement.positions);
  for (const Json& one : in.list("distinct", 0, kMostWindow)) {
    agreement.distinct_by_window.push_back(in.number(one, double{kMostLayers} * kMostExperts));
  }
  return in.ok();
}

bool parse_experts(Reader& in, const Json& list, int experts, std::vector<ExpertId>& out) {
  for (const Json& one : list) out.push_back(ExpertId{static_cast<int32_t>(in.integer(one, 0, experts - 1))});
  return in.ok();
}

// Whether the expert ids are distinct.
bool distinct(std::span<const ExpertId> experts) {
  std::vector<ExpertId> sorted(experts.begin(), experts.end());
  std::sort(sorted.begin(), sorted.end());
  return std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
}

bool parse_score(Reader& in, const Json& json, const TracedModel& model, int tokens, TracedScore& score) {
  // [source, token, layer, at, [experts]]
  const Json& parts = in.list(json, 5, 5);
  if (!in.ok()) return false;
  const auto layers = static_cast<int64_t>(model.layers.size());
  score.source = static_cast<ScoreSource>(in.integer(parts[0], 0, kScoreSources - 1));
  score.token = static_cast<int32_t>(in.integer(parts[1], 0, tokens - 1));
  score.layer = LayerId{static_cast<int32_t>(in.integer(parts[2], 0, layers - 1))};
  const bool gate = score.source == ScoreSource::kNextGate;
  // A gate that speaks of its own layer or an earlier one would speak too late.
  const int64_t last = gate ? index(score.layer) - 1 : model.draft_layers - 1;
  in.check(last >= 0);
  score.at = LayerId{static_cast<int32_t>(in.ok() ? in.integer(parts[3], 0, last) : 0)};
  if (!in.ok()) return false;
  const int experts = model.layers[static_cast<size_t>(index(score.layer))].experts;
  const Json& ranked = in.list(parts[4], 0, static_cast<size_t>(experts));
  return parse_experts(in, ranked, experts, score.ranked) && in.check(distinct(score.ranked));
}

bool parse_cycle(const Json& json, const TracedModel& model, TracedCycle& cycle) {
  Reader in(json);
  cycle.depth = in.count("depth", 0, kMostWindow);
  cycle.tokens = in.count("tokens", 1, kMostWindow);
  cycle.committed = in.count("committed", 1, cycle.tokens);
  in.check(cycle.depth == 0 || cycle.tokens <= cycle.depth + 1);
  cycle.draft_s = in.number("draft_s", kMostSeconds);
  cycle.head_s = in.number("head_s", kMostSeconds);
  cycle.link_bytes_per_s = in.number("link_bytes_per_s", kMostRate);
  cycle.hits = in.integer("hits", 0, kMostTokens);
  cycle.in_flight_hits = in.integer("in_flight_hits", 0, kMostTokens);
  cycle.misses = in.integer("misses", 0, kMostTokens);
  cycle.bytes_read = in.bytes("bytes_read");
  const size_t layers = model.layers.size();
  const auto k = static_cast<size_t>(model.n_expert_used);
  for (const Json& one : in.list("used", layers, layers)) {
    const TracedLayer& layer = model.layers[cycle.used.size()];
    auto& used = cycle.used.emplace_back();
    const size_t size = layer.experts > 0 ? static_cast<size_t>(cycle.tokens) * k : 0;
    if (!parse_experts(in, in.list(one, size, size), layer.experts, used)) return false;
    for (size_t t = 0; t < size; t += k) in.check(distinct({used.data() + t, k}));
  }
  for (const Json& one : in.list("times", layers, layers)) {
    const Json& parts = in.list(one, 3, 3);
    if (!in.ok()) return false;
    cycle.times.push_back(
        {in.number(parts[0], kMostSeconds), in.number(parts[1], kMostSeconds), in.number(parts[2], kMostSeconds)});
  }
  const size_t most = static_cast<size_t>(cycle.tokens) * layers * kScoreSources;
  for (const Json& one : in.list("scores", 0, most)) {
    if (!parse_score(in, one, model, cycle.tokens, cycle.scores.emplace_back())) return false;
  }
  return in.ok();
}

// One line after the first.
bool parse_line(const Json& json, RoutingTrace& trace) {
  if (!json.is_object()) return false;
  if (trace.texts.empty() || json.contains("text")) trace.texts.emplace_back();
  if (json.contains("text")) return true;
  if (json.contains("prompt")) {
    // What follows cycles is another prompt's beginning.
    if (!trace.texts.back().cycles.empty()) trace.texts.emplace_back();
    return parse_prompt(json, trace.model, trace.texts.back().prompt.emplace_back());
  }
  if (json.contains("agreed")) return parse_agreement(json, trace.texts.back().agreement.emplace());
  return parse_cycle(json, trace.model, trace.texts.back().cycles.emplace_back());
}

std::string line_text(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace) + '\n'; }

Json ids(std::span<const ExpertId> experts) {
  Json out = Json::array();
  for (const ExpertId expert : experts) out.push_back(index(expert));
  return out;
}

}  // namespace

std::string routing_line(const TracedModel& model) {
  Json layers = Json::array();
  for (const TracedLayer& layer : model.layers) {
    layers.push_back({{"experts", layer.experts}, {"extent_bytes", layer.extent_bytes}});
  }
  return line_text({{"drafthorse_routing", 1},
                    {"model", model.target},
                    {"draft", model.draft},
                    {"layers", layers},
                    {"experts_used", model.n_expert_used},
                    {"draft_layers", model.draft_layers},
                    {"max_window", model.max_window},
                    {"slots", model.slots},
                    {"other_bytes", model.other_bytes},
                    {"dense_bytes", model.dense_bytes},
                    {"draft_token_bytes", model.draft_token_bytes},
                    {"policy", model.policy},
                    {"predictor", model.predictor},
                    {"prefetch", model.prefetch},
                    {"eviction", model.eviction},
                    {"batched_reads", model.batched_reads},
                    {"depth", model.depth ? Json(*model.depth) : Json("auto")},
                    {"load_bytes_per_s", model.load_bytes_per_s}});
}

std::string routing_line(const TracedCycle& cycle) {
  Json used = Json::array();
  for (const auto& layer : cycle.used) used.push_back(ids(layer));
  Json times = Json::array();
  for (const TracedLayerTimes& layer : cycle.times) times.push_back({layer.stage_s, layer.experts_s, layer.stall_s});
  Json scores = Json::array();
  for (const TracedScore& score : cycle.scores) {
    scores.push_back(
        {static_cast<int>(score.source), score.token, index(score.layer), index(score.at), ids(score.ranked)});
  }
  return line_text({{"depth", cycle.depth},
                    {"tokens", cycle.tokens},
                    {"committed", cycle.committed},
                    {"draft_s", cycle.draft_s},
                    {"head_s", cycle.head_s},
                    {"link_bytes_per_s", cycle.link_bytes_per_s},
                    {"hits", cycle.hits},
                    {"in_flight_hits", cycle.in_flight_hits},
                    {"misses", cycle.misses},
                    {"bytes_read", cycle.bytes_read},
                    {"used", used},
                    {"times", times},
                    {"scores", scores}});
}

std::string routing_line(const TracedPrompt& prompt) {
  return line_text({{"prompt", prompt.tokens}, {"uses", prompt.uses}});
}

std::string routing_line(const TracedAgreement& agreement) {
  return line_text(
      {{"agreed", agreement.agreed}, {"positions", agreement.positions}, {"distinct", agreement.distinct_by_window}});
}

std::string routing_text_line() { return line_text({{"text", true}}); }

Result<RoutingTrace> parse_routing(const std::string& text, const std::string& name) {
  RoutingTrace trace;
  int64_t line = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos && line > 0) break;
    const Json json = Json::parse(
        text.begin() + static_cast<std::ptrdiff_t>(begin),
        end == std::string::npos ? text.end() : text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (line == 0 && (!json.is_object() || !parse_model(json, trace.model))) break;
    if (line > 0 && !parse_line(json, trace)) {
      return file_error(
          fmt::format("{}: line {} is not what `drafthorse run --trace-routing` writes; the file may be "
                      "damaged",
                      name, line + 1));
    }
    ++line;
    begin = end == std::string::npos ? text.size() : end + 1;
  }
  if (line == 0) {
    return file_error(
        fmt::format("{}: no recorded routing; give a file that `drafthorse run --trace-routing` wrote", name));
  }
  std::erase_if(trace.texts, [](const TracedText& one) { return one.prompt.empty() && one.cycles.empty(); });
  const bool any = std::any_of(trace.texts.begin(), trace.texts.end(), [](const auto& t) { return !t.cycles.empty(); });
  if (!any) return file_error(fmt::format("{}: the recorded run generated nothing", name));
  return trace;
}

}  // namespace drafthorse::cli
