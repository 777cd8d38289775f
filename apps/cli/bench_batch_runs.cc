#include "bench_batch_runs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/units.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

Json key_json(const char* kind, const BatchRunKey& key) {
  return {{"schema", 1},
          {"kind", kind},
          {"contender", key.contender},
          {"budget", key.budget},
          {"sequences", key.sequences},
          {"round", key.round}};
}

BatchRunKey read_key(BenchFields& fields) {
  return {fields.text("contender"), fields.text("budget"), fields.count("sequences"), fields.count("round")};
}

Json parts_json(const IterationParts& parts) {
  return {{"s", parts.seconds},
          {"draft_s", parts.draft_s},
          {"attention_s", parts.attention_s},
          {"experts_s", parts.experts_s},
          {"stall_s", parts.stall_s},
          {"head_s", parts.head_s},
          {"bytes_read", parts.bytes_read},
          {"tokens", parts.tokens}};
}

IterationParts read_parts(BenchFields& fields) {
  IterationParts parts;
  parts.seconds = fields.number("s");
  parts.draft_s = fields.number("draft_s");
  parts.attention_s = fields.number("attention_s");
  parts.experts_s = fields.number("experts_s");
  parts.stall_s = fields.number("stall_s");
  parts.head_s = fields.number("head_s");
  parts.bytes_read = fields.number("bytes_read");
  parts.tokens = fields.number("tokens");
  return parts;
}

Json decoding_json(const BatchBenchRun::Decoding& decoding) {
  Json json = {{"iterations", decoding.iterations}, {"tokens_per_s", decoding.tokens_per_s},
               {"depth", decoding.depth},           {"acceptance", decoding.acceptance},
               {"kv_length", decoding.kv_length},   {"computing_share", decoding.computing_share}};
  json.update(parts_json(decoding.parts));
  return json;
}

// The object's members by `read`, where there is an object; false where it is not as it should be.
template <typename T, typename Read>
bool read_optional(const Json* json, std::optional<T>& out, const Read& read) {
  if (json == nullptr) return true;
  BenchFields fields(*json);
  out = read(fields);
  return fields.good();
}

BatchBenchRun::Decoding read_decoding(BenchFields& fields) {
  BatchBenchRun::Decoding out;
  out.iterations = fields.count("iterations");
  out.tokens_per_s = fields.number("tokens_per_s");
  out.depth = fields.number("depth");
  out.acceptance = fields.number("acceptance");
  out.kv_length = fields.number("kv_length");
  out.computing_share = fields.number("computing_share");
  out.parts = read_parts(fields);
  return out;
}

std::optional<BatchBenchRun> read_run(const Json& json) {
  BenchFields r(json);
  BatchBenchRun run;
  run.key = read_key(r);
  run.baseline = r.text("baseline");
  run.depth = r.text("depth");
  run.regime = r.text("regime");
  run.model = r.text("model");
  run.draft = r.text("draft");
  run.drafter = r.text("drafter");
  run.kv = r.text("kv");
  run.machine = r.text("machine");
  run.version = r.text("version");
  run.bench = r.text("bench");
  run.command = r.text("command");
  run.tokens = r.count("tokens");
  run.requests = r.count("requests");
  run.generated_tokens = r.count("generated_tokens");
  run.prompt_tokens = r.count("prompt_tokens");
  run.busy_s = r.number("busy_s");
  run.tokens_per_s = r.number("tokens_per_s");
  run.iterations = r.count("iterations");
  run.most_sequences = r.count("most_sequences");
  run.acceptance = r.number("acceptance");
  run.slots = r.count("slots");
  run.experts = r.count("experts");
  run.ram_bytes = static_cast<uint64_t>(r.count("ram_bytes"));
  run.peak_rss_bytes = static_cast<uint64_t>(r.count("peak_rss_bytes"));
  run.text_hash = r.text("text_hash");
  run.text_hashes = r.texts("text_hashes");
  run.link_bytes_per_s = r.optional_number("link_bytes_per_s");
  const bool parts = read_optional(r.optional_object("decoding"), run.decoding, read_decoding) &&
                     read_optional(r.optional_object("predicted"), run.predicted, read_parts);
  if (!r.good() || !parts || !(run.tokens_per_s > 0)) return std::nullopt;
  if (run.decoding && !(run.decoding->parts.seconds > 0)) return std::nullopt;
  if (run.link_bytes_per_s && !(*run.link_bytes_per_s > 0)) return std::nullopt;
  return run;
}

std::optional<BatchTimeline> read_timeline(const Json& json) {
  BenchFields r(json);
  BatchTimeline timeline;
  timeline.key = read_key(r);
  timeline.length_ms = r.number("length_ms");
  timeline.begins_ms = r.numbers("begins_ms");
  timeline.reads = r.spans("reads");
  timeline.draft = r.spans("draft");
  timeline.attention = r.spans("attention");
  timeline.experts = r.spans("experts");
  timeline.head = r.spans("head");
  timeline.stall = r.spans("stall");
  if (!r.good() || !(timeline.length_ms > 0)) return std::nullopt;
  return timeline;
}

}  // namespace

std::optional<double> disk_share(const BatchBenchRun& run) {
  if (!run.decoding || !run.link_bytes_per_s) return std::nullopt;
  return run.decoding->parts.bytes_read / run.decoding->parts.seconds / *run.link_bytes_per_s;
}

Json to_json(const BatchBenchRun& run) {
  Json json = key_json("batch-run", run.key);
  const std::optional<double> disk = disk_share(run);
  json.update({{"baseline", run.baseline},
               {"depth", run.depth},
               {"regime", run.regime},
               {"model", run.model},
               {"draft", run.draft},
               {"drafter", run.drafter},
               {"kv", run.kv},
               {"machine", run.machine},
               {"version", run.version},
               {"bench", run.bench},
               {"command", run.command},
               {"tokens", run.tokens},
               {"requests", run.requests},
               {"generated_tokens", run.generated_tokens},
               {"prompt_tokens", run.prompt_tokens},
               {"busy_s", run.busy_s},
               {"tokens_per_s", run.tokens_per_s},
               {"iterations", run.iterations},
               {"most_sequences", run.most_sequences},
               {"acceptance", run.acceptance},
               {"decoding", run.decoding ? decoding_json(*run.decoding) : Json()},
               {"predicted", run.predicted ? parts_json(*run.predicted) : Json()},
               {"link_bytes_per_s", run.link_bytes_per_s ? Json(*run.link_bytes_per_s) : Json()},
               {"disk_share", disk ? Json(*disk) : Json()},
               {"slots", run.slots},
               {"experts", run.experts},
               {"ram_bytes", run.ram_bytes},
               {"peak_rss_bytes", run.peak_rss_bytes},
               {"text_hash", run.text_hash},
               {"text_hashes", run.text_hashes}});
  return json;
}

Json to_json(const BatchTimeline& timeline) {
  Json json = key_json("batch-timeline", timeline.key);
  json.update({{"length_ms", timeline.length_ms},
               {"begins_ms", timeline.begins_ms},
               {"reads", timeline.reads},
               {"draft", timeline.draft},
               {"attention", timeline.attention},
               {"experts", timeline.experts},
               {"head", timeline.head},
               {"stall", timeline.stall}});
  return json;
}

bool is_batch_bench(const std::string& text) {
  const Json first = Json::parse(text.substr(0, text.find('\n')), nullptr, false);
  BenchFields fields(first);
  return fields.text("kind").starts_with("batch-") && fields.good();
}

Result<BatchBenchFile> parse_batch_bench(const std::string& text, const std::string& name) {
  BatchBenchFile file;
  RETURN_IF_ERROR(read_bench_lines(
      text, name,
      [&](const std::string& kind, const Json& json) {
        if (std::optional<BatchBenchRun> run = kind == "batch-run" ? read_run(json) : std::nullopt) {
          file.runs.push_back(std::move(*run));
          return true;
        }
        std::optional<BatchTimeline> timeline = kind == "batch-timeline" ? read_timeline(json) : std::nullopt;
        if (timeline) file.timelines.push_back(std::move(*timeline));
        return timeline.has_value();
      },
      file.last_line_cut));
  return file;
}

std::vector<std::string> differing_texts(const std::vector<BatchBenchRun>& runs) {
  struct First {
    const BatchBenchRun* run = nullptr;
    std::string hash;
  };
  std::map<std::pair<int64_t, size_t>, First> first;  // by tokens asked for, and request
  std::vector<std::string> out;
  const auto words = [](const BatchRunKey& key) {
    return fmt::format("'{}' at {}, {} at once", key.contender, key.budget, key.sequences);
  };
  for (const BatchBenchRun& run : runs) {
    size_t count = 0;
    std::string sentence;
    for (size_t i = 0; i < run.text_hashes.size(); ++i) {
      const First& reference = first.try_emplace({run.tokens, i}, First{&run, run.text_hashes[i]}).first->second;
      if (run.text_hashes[i] == reference.hash) continue;
      if (count++ > 0) continue;
      sentence = fmt::format("request {}: {} wrote another text ({}) than {} ({})", i + 1, words(run.key),
                             run.text_hashes[i], words(reference.run->key), reference.hash);
    }
    if (count > 1) sentence += fmt::format(", and so with {} more requests", count - 1);
    if (count > 0) out.push_back(sentence);
  }
  return out;
}

}  // namespace drafthorse::cli
