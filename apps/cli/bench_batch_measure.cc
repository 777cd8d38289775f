#include "bench_batch_measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "text_hash.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kNearlyAll = 0.9;  // of the most sequences at once

Status not_ours(const char* what) {
  return file_error(fmt::format("the {} of a run are not what this version of drafthorse writes", what));
}

double of(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

template <typename T, typename Get>
double median_of(const std::vector<T>& all, const Get& get) {
  std::vector<double> values;
  for (const T& one : all) values.push_back(get(one));
  return median(std::move(values));
}

std::vector<IterationLine> only_decoding(const std::vector<IterationLine>& iterations) {
  std::vector<IterationLine> out;
  for (const size_t i : decoding_iterations(iterations)) out.push_back(iterations[i]);
  return out;
}

// The texts by custom_id, which the requests' are made to sort by.
Result<std::map<std::string, std::string>> texts_of(const std::string& results) {
  std::map<std::string, std::string> out;
  for (size_t at = 0; at < results.size();) {
    const size_t end = std::min(results.find('\n', at), results.size());
    const Json line = Json::parse(results.substr(at, end - at), nullptr, false);
    at = end + 1;
    BenchFields fields(line);
    const std::string id = fields.text("custom_id");
    const Json* response = fields.optional_object("response");
    if (!fields.good() || response == nullptr) return not_ours("results");
    BenchFields answer(*response);
    const int64_t code = answer.count("status_code");
    const Json* body = answer.optional_object("body");
    if (body == nullptr) return not_ours("results");
    if (code != 200) {
      const Json* error = BenchFields(*body).optional_object("error");
      return runtime_error(fmt::format("request {} was not answered: {}", id,
                                       error != nullptr ? BenchFields(*error).text("message") : "no reason given"));
    }
    BenchFields choices(*body);
    const Json& list = choices.list("choices");
    if (list.empty()) return not_ours("results");
    BenchFields choice(list.front());
    out[id] = choice.text("text");
    if (!choice.good()) return not_ours("results");
  }
  return out;
}

}  // namespace

Result<std::vector<IterationLine>> parse_iterations(const std::string& text) {
  std::vector<IterationLine> out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const Json line = Json::parse(text.substr(at, end - at), nullptr, false);
    at = end + 1;
    BenchFields r(line);
    IterationLine one;
    one.generating = r.count("generating");
    one.prompt_tokens = r.count("prompt_tokens");
    one.cached_positions = r.count("cached_positions");
    one.drafted_tokens = r.count("drafted_tokens");
    one.accepted_tokens = r.count("accepted_tokens");
    one.parts.seconds = r.number("s");
    one.parts.draft_s = r.number("draft_s");
    one.parts.attention_s = r.number("attention_s");
    one.parts.experts_s = r.number("experts_s");
    one.parts.stall_s = r.number("stall_s");
    one.parts.head_s = r.number("head_s");
    one.parts.bytes_read = r.number("bytes_read");
    one.parts.tokens = r.number("generated_tokens");
    if (!r.good()) return not_ours("iterations");
    out.push_back(one);
  }
  return out;
}

std::vector<size_t> decoding_iterations(const std::vector<IterationLine>& iterations) {
  int64_t most = 0;
  for (const IterationLine& one : iterations) most = std::max(most, one.generating);
  std::vector<size_t> out;
  for (size_t i = 0; i < iterations.size(); ++i) {
    const IterationLine& one = iterations[i];
    if (one.prompt_tokens > 0 || one.generating == 0 || !(one.parts.seconds > 0)) continue;
    if (static_cast<double>(one.generating) >= kNearlyAll * static_cast<double>(most)) out.push_back(i);
  }
  return out;
}

Result<BatchBenchRun> with_batch_statistics(BatchBenchRun run, const std::string& stats_text,
                                            const std::vector<IterationLine>& iterations,
                                            const std::string& results_text) {
  ASSIGN_OR_RETURN(const auto texts, texts_of(results_text));
  const Json json = Json::parse(stats_text, nullptr, false);
  BenchFields r(json);
  run.generated_tokens = r.count("generated_tokens");
  run.prompt_tokens = r.count("prompt_tokens");
  run.busy_s = r.number("busy_s");
  run.iterations = r.count("iterations");
  run.most_sequences = r.count("most_sequences");
  run.acceptance = r.number("acceptance");
  run.slots = r.count("expert_slots");
  run.experts = r.count("experts");
  run.ram_bytes = static_cast<uint64_t>(r.count("ram_budget_bytes"));
  run.peak_rss_bytes = static_cast<uint64_t>(r.count("peak_rss_bytes"));
  if (!r.good()) return not_ours("statistics");
  if (run.generated_tokens == 0 || !(run.busy_s > 0)) return file_error("a run generated nothing; try other prompts");
  if (static_cast<int64_t>(texts.size()) != run.requests) {
    return runtime_error(fmt::format("{} of {} requests were answered", texts.size(), run.requests));
  }
  run.tokens_per_s = static_cast<double>(run.generated_tokens) / run.busy_s;
  TextHash all;
  for (const auto& [id, text] : texts) {
    TextHash one;
    one.add(text);
    run.text_hashes.push_back(one.hex());
    all.add(run.text_hashes.back());  // and so where a text ends
  }
  run.text_hash = all.hex();
  const std::vector<IterationLine> decoding = only_decoding(iterations);
  if (decoding.empty()) return run;
  BatchBenchRun::Decoding out;
  out.iterations = static_cast<int64_t>(decoding.size());
  out.tokens_per_s = median_of(decoding, [](const IterationLine& one) { return one.parts.tokens / one.parts.seconds; });
  out.computing_share =
      median_of(decoding, [](const IterationLine& one) { return 1 - one.parts.stall_s / one.parts.seconds; });
  IterationLine sum;
  std::vector<IterationParts> parts;
  for (const IterationLine& one : decoding) {
    sum.generating += one.generating;
    sum.cached_positions += one.cached_positions;
    sum.drafted_tokens += one.drafted_tokens;
    sum.accepted_tokens += one.accepted_tokens;
    parts.push_back(one.parts);
  }
  out.depth = of(sum.drafted_tokens, sum.generating);
  out.acceptance = of(sum.accepted_tokens, sum.drafted_tokens);
  out.kv_length = of(sum.cached_positions, sum.generating);
  out.parts = median_parts(parts);
  run.decoding = out;
  return run;
}

double acceptance_of_each(double accepted, int depth) {
  if (depth <= 0) return 0;
  double low = 0;
  double high = 1;
  for (int i = 0; i < 50; ++i) {
    const double middle = (low + high) / 2;
    (expected_tokens(std::vector<double>{middle}, depth) - 1 < accepted ? low : high) = middle;
  }
  return high;
}

std::optional<IterationParts> predict_parts(const BatchPlanInput& given, const BatchBenchRun& run,
                                            const std::vector<IterationLine>& iterations) {
  const std::vector<IterationLine> decoding = only_decoding(iterations);
  if (decoding.empty() || run.regime == "cache") return std::nullopt;
  const bool costs_known = given.draft || run.drafter == "ngram";
  BatchPlanInput input = given;
  // The slots that there were, whatever else took memory.
  BatchMemory& memory = input.memory;
  memory = {.budget_bytes = static_cast<uint64_t>(run.slots) * memory.slot_bytes,
            .slot_bytes = memory.slot_bytes,
            .total_experts = memory.total_experts,
            .least_slots = memory.least_slots,
            .stream_slots = memory.stream_slots};
  // Iterations of the same kind are predicted once, at their mean KV length: it hardly moves within a run.
  std::map<std::pair<int64_t, int>, std::vector<IterationLine>> kinds;
  for (const IterationLine& one : decoding) {
    const auto depth = static_cast<int>(std::lround(of(one.drafted_tokens, one.generating)));
    if (depth > 0 && !costs_known) return std::nullopt;
    kinds[{one.generating, depth}].push_back(one);
  }
  std::vector<IterationParts> parts;
  for (const auto& [kind, members] : kinds) {
    const auto [sequences, depth] = kind;
    int64_t positions = 0;
    int64_t accepted = 0;
    for (const IterationLine& one : members) {
      positions += one.cached_positions;
      accepted += one.accepted_tokens;
    }
    const auto count = static_cast<int64_t>(members.size()) * sequences;
    input.job = {.prompt_tokens = static_cast<int>(std::lround(of(positions, count)))};
    input.acceptance = {acceptance_of_each(of(accepted, count), depth)};
    const Pipeline pipeline = run.regime == "layered" ? Pipeline::kOnDemand : Pipeline::kStreamed;
    const BatchCandidate one = evaluate(input, pipeline, sequences, depth);
    const auto busy = [&](Component component) { return one.decode.busy[static_cast<size_t>(component)]; };
    IterationParts predicted;
    predicted.seconds = one.decode.seconds;
    predicted.draft_s = busy(Component::kDraft);
    predicted.attention_s = busy(Component::kAttention) + busy(Component::kDense);
    predicted.experts_s = busy(Component::kExperts);
    predicted.head_s = busy(Component::kOther);
    predicted.stall_s = std::max(
        0.0, predicted.seconds - predicted.draft_s - predicted.attention_s - predicted.experts_s - predicted.head_s);
    predicted.bytes_read = one.decode.loaded_bytes;
    predicted.tokens = static_cast<double>(sequences) * one.tokens_per_sequence;
    parts.insert(parts.end(), members.size(), predicted);
  }
  return median_parts(parts);
}

}  // namespace drafthorse::cli
