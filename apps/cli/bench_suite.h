// What `drafthorse bench` compares: suites of contenders, each suite one figure of the SP-MoE paper. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace drafthorse::cli {

// How a suite's figure is drawn.
enum class Figure { kPolicies, kAblation, kCutoff, kMemory, kDepth };
std::string_view name_of(Figure figure);

// One way of running the model: what `drafthorse run` is told besides model, prompt and budget.
struct Contender {
  std::string name;
  std::string policy;     // never empty
  std::string predictor;  // this and the next two: empty, as the policy says
  std::string prefetch;
  std::string eviction;
  bool batched_reads = true;
  std::string depth = "auto";  // tokens drafted per step: auto, a number, or off: no draft is loaded
  std::string cutoff = "auto";
  std::string note;  // what the engine says about it

  bool drafts() const { return depth != "off"; }
  std::vector<std::string> flags() const;  // without the draft's file
};

struct Suite {
  std::string name;
  std::string title;
  Figure figure = Figure::kPolicies;
  std::vector<Contender> contenders;
  std::vector<std::string> budgets;  // "35%" or a size
  std::string baseline;              // the contender that the others are held against
};

// Empty lists: what the suite says.
struct BenchRequest {
  std::vector<std::string> suites;
  std::vector<std::string> policies;
  std::vector<std::string> budgets;
  std::vector<std::string> depths;
  std::vector<std::string> cutoffs;
  std::string baseline;
  bool has_draft = false;
  int moe_layers = 0;
};

// quick, policies, ablation, cutoff, memory, depth; "all" stands for all but the first.
const std::vector<std::string>& suite_names();

// Without suites: every policy with every depth and cutoff that is asked for. kUsage where something is unknown, or
// needs a draft and there is none.
Result<std::vector<Suite>> plan_suites(const BenchRequest& request);

// "35%" -> 35; -1 for what is no percentage above 0 and up to 100.
double parse_percent(std::string_view text);

}  // namespace drafthorse::cli
