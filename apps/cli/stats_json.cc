#include "stats_json.h"

#include "base/host_memory.h"
#include "device_report.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

Json layer_json(const LayerCacheStats& layer) {
  return {{"hits", layer.hits},
          {"in_flight_hits", layer.in_flight_hits},
          {"misses", layer.misses},
          {"evictions", layer.evictions},
          {"prefetched", layer.prefetched},
          {"prefetched_used", layer.prefetched_used},
          {"bytes_demanded", layer.bytes_demanded},
          {"bytes_read_ahead", layer.bytes_prefetched},
          {"stall_s", seconds(layer.stall_ns)}};
}

// Of each layer: what was predicted against what was then used.
Json forecast_json(const std::vector<LayerForecastStats>& layers) {
  Json out = Json::array();
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerForecastStats& layer = layers[i];
    out.push_back({{"layer", i},
                   {"windows", layer.windows},
                   {"predicted", layer.predicted},
                   {"used", layer.used},
                   {"hits", layer.hits},
                   {"precision", layer.precision()},
                   {"recall", layer.recall()}});
  }
  return out;
}

Json sampling_json(const SamplingOptions& o) {
  return {{"temperature", o.temperature},
          {"top_k", o.top_k},
          {"top_p", o.top_p},
          {"min_p", o.min_p},
          {"repeat_penalty", o.repeat_penalty},
          {"repeat_last_n", o.repeat_last_n},
          {"seed", o.seed},
          {"grammar", !o.grammar.empty()},
          {"ignore_eos", o.ignore_end},
          {"accept", o.rejection ? "rejection" : "noise"}};
}

Json drafters_json(const std::vector<DrafterStats>& drafters) {
  Json out = Json::array();
  for (const DrafterStats& by : drafters) {
    out.push_back({{"name", by.name},
                   {"steps", by.steps},
                   {"drafted_tokens", by.drafted_tokens},
                   {"accepted_tokens", by.accepted_tokens},
                   {"draft_s", by.draft_s}});
  }
  return out;
}

Json layers_json(const std::vector<LayerCacheStats>& layers) {
  Json out = Json::array();
  for (size_t i = 0; i < layers.size(); ++i) {
    Json layer = layer_json(layers[i]);
    layer["layer"] = i;
    out.push_back(std::move(layer));
  }
  return out;
}

}  // namespace

Json stats_json(Engine& engine, const Session& session, std::string_view stop, const std::string& text_hash) {
  const SessionStats& stats = session.stats();
  const EngineOptions& options = engine.options();
  Json memory = Json::array();
  for (const MemoryLedger::Entry& entry : engine.ledger().entries()) {
    memory.push_back({{"tag", entry.tag}, {"bytes", entry.bytes}});
  }
  const ExpertScheduler* scheduler = engine.schedule().scheduler();
  const std::optional<double> cutoff = scheduler != nullptr ? scheduler->mean_cutoff() : std::nullopt;
  Json depth = {{"policy", options.draft_depth ? std::to_string(*options.draft_depth) : std::string("auto")},
                {"explanation", session.explain_depth()},
                {"steps_by_depth", stats.depth_histogram},
                {"reached_by_position", stats.reached_by_position},
                {"accepted_by_position", stats.accepted_by_position}};
  Json release;
  if (const std::optional<DraftRelease>& gone = stats.draft_release; gone) {
    release = {{"after_tokens", gone->after_tokens},
               {"slots_before", gone->slots_before},
               {"slots", gone->slots},
               {"expected_gain", gone->gain}};
  }
  return {{"schema", 1},
          {"model", options.target_path},
          {"draft", options.draft_path},
          {"decode_tokens_per_s", stats.decode_tokens_per_s()},
          {"prefill_tokens_per_s", stats.prefill_tokens_per_s()},
          {"ttft_s", stats.ttft_s},
          {"prompt_tokens", stats.prompt_tokens},
          {"sampling", sampling_json(options.sampling)},
          {"generated_tokens", stats.generated_tokens},
          {"stop", stop},
          {"text_hash", text_hash},
          {"bytes_read_per_token", stats.bytes_read_per_token()},
          {"acceptance", stats.acceptance()},
          {"tokens_per_verification", stats.tokens_per_verification()},
          {"stall_s", stats.stall_s},
          {"hit_rate", stats.hit_rate()},
          {"peak_rss_bytes", peak_resident_bytes()},
          {"ram_budget_bytes", engine.ram_budget_bytes()},
          {"prefill_s", stats.prefill_s},
          {"decode_s", stats.decode_s},
          {"draft_s", stats.draft_s},
          {"verify_s", stats.verify_s},
          {"steps", stats.steps},
          {"drafted_tokens", stats.drafted_tokens},
          {"accepted_tokens", stats.accepted_tokens},
          {"drafter", options.drafter},
          {"drafters", drafters_json(stats.drafters)},
          {"depth", depth},
          {"draft_release", release},
          {"policy", options.schedule.policy},
          {"predictor", options.schedule.predictor},
          {"prefetch", options.schedule.prefetch},
          {"eviction", options.schedule.eviction},
          {"cutoff_layers", cutoff ? Json(*cutoff) : Json()},
          {"forecast_layers", forecast_json(stats.forecast_layers)},
          {"io", std::string(engine.target().queue->name())},
          {"direct_io", engine.target().files->direct()},
          {"threads", options.threads},
          {"isa", options.isa},
          {"context", engine.context()},
          {"expert_slots", engine.memory_plan().slots},
          {"experts", engine.target().model->layout().total_experts()},
          {"read_retries", engine.target().cache ? engine.target().cache->read_retries() : 0},
          {"memory", memory},
          {"device", device_json(engine, stats)},
          {"prefill_layers", layers_json(stats.prefill_layers)},
          {"decode_layers", layers_json(stats.decode_layers)}};
}

}  // namespace drafthorse::cli
