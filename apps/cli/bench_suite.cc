#include "bench_suite.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "schedule/policy.h"
#include "suggest.h"

namespace drafthorse::cli {
namespace {

constexpr const char* kFixedDepth = "4";  // where depth is not what is compared
constexpr int kMostCutoffs = 9;

bool is_one_of(const std::string& word, const std::vector<std::string>& words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// "auto", "off" where that is allowed, or a number.
bool is_choice(const std::string& text, bool off_too) {
  int value = 0;
  const char* end = text.data() + text.size();
  const bool number = !text.empty() && std::from_chars(text.data(), end, value).ptr == end && value >= 0;
  return number || text == "auto" || (off_too && text == "off");
}

Status check_policies(const std::vector<std::string>& names) {
  const std::vector<std::string> known = schedule_policy_names();
  for (const std::string& name : names) {
    if (is_one_of(name, known)) continue;
    const std::string meant = nearest(name, known);
    return usage_error(fmt::format("--policies: '{}' is no policy{}; there are {}, and all", name,
                                   meant.empty() ? "" : fmt::format(" (did you mean {}?)", meant),
                                   fmt::join(known, ", ")));
  }
  return {};
}

std::vector<std::string> all_policies() {
  // Those held against come first, ours last.
  std::vector<std::string> names = {"on-demand"};
  for (const SchedulePolicy& policy : schedule_policies()) {
    if (policy.name != "on-demand" && policy.name != "auto") names.emplace_back(policy.name);
  }
  names.emplace_back("auto");
  return names;
}

Contender of_policy(const std::string& policy, const std::string& depth) {
  Contender contender;
  contender.name = policy;
  contender.policy = policy;
  contender.depth = depth;
  return contender;
}

// From reading on demand to the default policy, one part after the other. Parts are named in full at each step, so that
// a step is what its name says whatever the policies' bundles become.
std::vector<Contender> ablation_steps(const std::string& depth) {
  struct Step {
    const char* name;
    const char* predictor;
    const char* prefetch;
    const char* eviction;
    bool batched;
    bool adaptive;
  };
  constexpr Step kSteps[] = {
      {"on demand", "none", "none", "lru-layer", false, false},
      {"+ prefetching, drafting waits", "cross", "cutoff-sync", "lru", false, false},
      {"+ a pipeline", "cross", "cutoff", "lru", false, false},
      {"+ batched reads", "cross", "cutoff", "lru", true, false},
      {"+ deadlines", "cross", "deadline", "lru", true, false},
      {"+ all predictors", "combined", "deadline", "lru", true, false},
      {"+ draft-guided eviction", "combined", "deadline", "draft-guided", true, false},
      {"+ adaptive depth", "combined", "deadline", "draft-guided", true, true},
  };
  std::vector<Contender> out;
  for (const Step& step : kSteps) {
    out.push_back({step.name,
                   std::string(kDefaultPolicy),
                   step.predictor,
                   step.prefetch,
                   step.eviction,
                   step.batched,
                   step.adaptive ? "auto" : depth,
                   "auto",
                   {}});
  }
  return out;
}

// 0 to all layers, thinned out where there are many.
std::vector<std::string> all_cutoffs(int layers) {
  std::vector<std::string> out;
  const int steps = std::min(layers, kMostCutoffs - 1);
  for (int i = 0; i <= steps; ++i) out.push_back(std::to_string(steps == 0 ? 0 : i * layers / steps));
  out.emplace_back("auto");
  return out;
}

std::string depth_name(const std::string& depth) { return depth == "off" ? "no draft" : "depth " + depth; }

std::vector<Contender> grid(const std::vector<std::string>& policies, const std::vector<std::string>& depths,
                            const std::vector<std::string>& cutoffs) {
  std::vector<Contender> out;
  for (const std::string& policy : policies) {
    for (const std::string& depth : depths) {
      for (const std::string& cutoff : cutoffs) {
        Contender contender = of_policy(policy, depth);
        contender.cutoff = cutoff;
        std::vector<std::string> parts;
        if (policies.size() > 1) parts.push_back(policy);
        if (depths.size() > 1) parts.push_back(depth_name(depth));
        if (cutoffs.size() > 1) parts.push_back("L = " + cutoff);
        contender.name = parts.empty() ? policy : fmt::format("{}", fmt::join(parts, ", "));
        out.push_back(std::move(contender));
      }
    }
  }
  return out;
}

Suite named_suite(const std::string& name, const BenchRequest& request) {
  using Words = std::vector<std::string>;
  const auto either = [](const Words& asked, const Words& otherwise) { return asked.empty() ? otherwise : asked; };
  const Words depths = either(request.depths, {request.has_draft ? kFixedDepth : "off"});
  const Words cutoffs = either(request.cutoffs, {"auto"});
  Suite suite;
  suite.name = name;
  if (name == "policies") {
    suite.title = "policies";
    suite.contenders = grid(either(request.policies, all_policies()), depths, cutoffs);
    suite.budgets = {"35%", "75%"};
  } else if (name == "ablation") {
    suite.title = "ablation: one part after the other";
    suite.figure = Figure::kAblation;
    suite.contenders = ablation_steps(depths.front());
    suite.budgets = {"50%"};
  } else if (name == "cutoff") {
    suite.title = "cutoff layer";
    suite.figure = Figure::kCutoff;
    suite.contenders =
        grid(either(request.policies, {"sp-moe"}), depths, either(request.cutoffs, all_cutoffs(request.moe_layers)));
    suite.budgets = {"50%"};
  } else if (name == "memory") {
    suite.title = "memory";
    suite.figure = Figure::kMemory;
    suite.contenders = grid(either(request.policies, {"on-demand", "sp-moe", "auto"}), depths, cutoffs);
    suite.budgets = {"20%", "35%", "50%", "75%", "100%"};
  } else if (name == "depth") {
    suite.title = "tokens drafted per step";
    suite.figure = Figure::kDepth;
    suite.contenders = grid(either(request.policies, {std::string(kDefaultPolicy)}),
                            either(request.depths, {"off", "0", "1", "2", "4", "8", "16", "32", "auto"}), cutoffs);
    suite.budgets = {"50%"};
  } else {
    suite.title = "a quick look";
    suite.contenders = grid(either(request.policies, {"on-demand", "sp-moe", "auto"}),
                            either(request.depths, {request.has_draft ? "auto" : "off"}), cutoffs);
    suite.budgets = {"50%"};
  }
  return suite;
}

// What the user put together; drawn by what varies.
Suite custom_suite(const BenchRequest& request) {
  Suite suite = named_suite("quick", request);
  const auto many = [](const std::vector<std::string>& words) { return words.size() > 1; };
  const std::vector<std::string> depths =
      request.depths.empty() ? std::vector<std::string>{request.has_draft ? "auto" : "off"} : request.depths;
  const std::vector<std::string> cutoffs = request.cutoffs.empty() ? std::vector<std::string>{"auto"} : request.cutoffs;
  const std::vector<std::string> policies =
      request.policies.empty() ? std::vector<std::string>{std::string(kDefaultPolicy)} : request.policies;
  suite.name = "custom";
  suite.title = "as asked for";
  suite.contenders = grid(policies, depths, cutoffs);
  if (many(cutoffs) && !many(policies) && !many(depths)) suite.figure = Figure::kCutoff;
  if (many(depths) && !many(policies) && !many(cutoffs)) suite.figure = Figure::kDepth;
  if (request.budgets.size() > 2 && suite.figure == Figure::kPolicies) suite.figure = Figure::kMemory;
  return suite;
}

Status check_request(const BenchRequest& request) {
  for (const std::string& depth : request.depths) {
    if (!is_choice(depth, true)) {
      return usage_error(fmt::format("--depths: '{}' is neither auto, off, nor a number of tokens", depth));
    }
    if (depth != "off" && !request.has_draft) {
      return usage_error(
          "--depths: there is nothing to draft with; give a draft with -d FILE, or --drafter ngram or resident");
    }
  }
  for (const std::string& cutoff : request.cutoffs) {
    if (!is_choice(cutoff, false)) {
      return usage_error(fmt::format("--cutoffs: '{}' is neither auto nor a number of layers", cutoff));
    }
  }
  return check_policies(request.policies);
}

}  // namespace

std::string_view name_of(Figure figure) {
  switch (figure) {
    case Figure::kAblation:
      return "ablation";
    case Figure::kCutoff:
      return "cutoff";
    case Figure::kMemory:
      return "memory";
    case Figure::kDepth:
      return "depth";
    default:
      return "policies";
  }
}

std::vector<std::string> Contender::flags() const {
  std::vector<std::string> out = {"--policy", policy};
  const auto add = [&](const char* flag, const std::string& value) {
    if (value.empty()) return;
    out.emplace_back(flag);
    out.push_back(value);
  };
  add("--predictor", predictor);
  add("--prefetch", prefetch);
  add("--eviction", eviction);
  if (cutoff != "auto") add("--cutoff", cutoff);
  if (!batched_reads) add("--batched-reads", "off");
  if (drafts() && depth != "auto") add("--draft-depth", depth);
  return out;
}

const std::vector<std::string>& suite_names() {
  static const std::vector<std::string> names = {"quick", "policies", "ablation", "cutoff", "memory", "depth", "all"};
  return names;
}

double parse_percent(std::string_view text) {
  if (text.size() < 2 || text.back() != '%') return -1;
  double value = 0;
  const char* end = text.data() + text.size() - 1;
  const bool number = std::from_chars(text.data(), end, value).ptr == end;
  return number && value > 0 && value <= 100 ? value : -1;
}

Result<std::vector<Suite>> plan_suites(const BenchRequest& asked) {
  BenchRequest request = asked;
  if (is_one_of("all", request.policies)) request.policies = all_policies();
  RETURN_IF_ERROR(check_request(request));
  std::vector<std::string> names = request.suites;
  if (is_one_of("all", names)) names = {"policies", "ablation", "cutoff", "memory", "depth"};
  std::vector<Suite> suites;
  for (const std::string& name : names) {
    if (!is_one_of(name, suite_names())) {
      return usage_error(fmt::format("--suite: '{}' is no suite; there are {}", name, fmt::join(suite_names(), ", ")));
    }
    if (!request.has_draft && (name == "ablation" || name == "cutoff" || name == "depth")) {
      return usage_error(
          fmt::format("--suite {} is about drafting; give a draft with -d FILE, or --drafter ngram or resident", name));
    }
    suites.push_back(named_suite(name, request));
  }
  const bool grid_asked = !(request.policies.empty() && request.depths.empty() && request.cutoffs.empty());
  if (suites.empty()) suites.push_back(grid_asked ? custom_suite(request) : named_suite("quick", request));
  for (Suite& suite : suites) {
    if (!request.budgets.empty()) suite.budgets = request.budgets;
    std::vector<std::string> contenders;
    for (const Contender& contender : suite.contenders) contenders.push_back(contender.name);
    suite.baseline = request.baseline.empty() ? contenders.front() : request.baseline;
    if (!is_one_of(suite.baseline, contenders)) {
      return usage_error(
          fmt::format("--baseline: '{}' is none of what is compared: {}", suite.baseline, fmt::join(contenders, "; ")));
    }
  }
  return suites;
}

}  // namespace drafthorse::cli
