#include "bench_batch_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "bench_json.h"
#include "engine/engine.h"
#include "suggest.h"

namespace drafthorse::cli {
namespace {

using Words = std::vector<std::string>;

bool is_one_of(const std::string& word, const Words& words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// -1 for what is no number, or none that a program can hold.
int64_t number_of(const std::string& text) {
  int64_t value = -1;
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stopped == end && value >= 0 ? value : -1;
}

Status check(const BatchBenchRequest& request, const Words& depths, const Words& regimes) {
  for (const std::string& depth : depths) {
    const int64_t number = number_of(depth);
    if (depth != "auto" && depth != "off" && (number < 0 || number > kMaxDraftDepth)) {
      return usage_error(
          fmt::format("--depths: '{}' is neither auto, off, nor a number of tokens up to {}", depth, kMaxDraftDepth));
    }
    if (depth != "off" && !request.has_draft) {
      return usage_error("--depths: there is nothing to draft with; give a draft with -d FILE, or --drafter ngram");
    }
  }
  for (const std::string& regime : regimes) {
    if (find_batch_regime(regime) != nullptr) continue;
    const std::string meant = nearest(regime, batch_regime_names());
    return usage_error(fmt::format("--regimes: '{}' is no regime{}; there are {}", regime,
                                   meant.empty() ? "" : fmt::format(" (did you mean {}?)", meant),
                                   fmt::join(batch_regime_names(), ", ")));
  }
  return {};
}

}  // namespace

std::vector<std::string> BatchContender::flags() const {
  Words out = {"--regime", regime};
  if (drafts() && depth != "auto") out.insert(out.end(), {"--draft-depth", depth});
  return out;
}

Result<BatchGrid> plan_batch_bench(const BatchBenchRequest& request) {
  const auto either = [](const Words& asked, const Words& otherwise) { return asked.empty() ? otherwise : asked; };
  const Words depths = either(request.depths, request.has_draft ? Words{"off", "auto"} : Words{"off"});
  const Words regimes = either(request.regimes, {"auto"});
  RETURN_IF_ERROR(check(request, depths, regimes));
  BatchGrid grid;
  grid.budgets = either(request.budgets, {"50%"});
  for (const std::string& text : either(request.sequences, {"4", "16", "64"})) {
    const int64_t number = number_of(text);
    if (number < 1 || number > kMostSequences) {
      return usage_error(fmt::format("--sequences: '{}' is no number from 1 to {}", text, kMostSequences));
    }
    if (request.requests > 0 && number > request.requests) {
      return usage_error(fmt::format("--requests {} are fewer than --sequences {}: so many would never run at once",
                                     request.requests, number));
    }
    grid.sequences.push_back(number);
  }
  const auto add = [&](const std::string& depth, const std::string& regime) {
    std::string name = depth == "off" ? "no draft" : "depth " + depth;
    if (regime != "auto") name += ", " + regime;
    const bool known = std::any_of(grid.contenders.begin(), grid.contenders.end(),
                                   [&](const BatchContender& one) { return one.name == name; });
    if (!known) grid.contenders.push_back({name, depth, regime});
  };
  for (const std::string& depth : depths) add(depth, regimes.front());
  for (const std::string& regime : regimes) {
    if (regime != regimes.front()) add("off", regime);
  }
  Words names;
  for (const BatchContender& one : grid.contenders) names.push_back(one.name);
  grid.baseline = request.baseline.empty() ? names.front() : request.baseline;
  if (!is_one_of(grid.baseline, names)) {
    return usage_error(
        fmt::format("--baseline: '{}' is none of what is compared: {}", grid.baseline, fmt::join(names, "; ")));
  }
  return grid;
}

std::string requests_text(const std::vector<BenchPrompt>& prompts, int64_t count, int64_t tokens) {
  std::string out;
  for (int64_t i = 0; i < count; ++i) {
    const BenchPrompt& prompt = prompts[static_cast<size_t>(i) % prompts.size()];
    out += json_line({{"custom_id", fmt::format("{:07}", i + 1)},
                      {"method", "POST"},
                      {"url", "/v1/completions"},
                      {"body",
                       {{"prompt", prompt.text}, {"max_tokens", tokens}, {"temperature", 0}, {"ignore_eos", true}}}}) +
           '\n';
  }
  return out;
}

}  // namespace drafthorse::cli
