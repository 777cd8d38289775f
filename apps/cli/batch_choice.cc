#include "batch_choice.h"

#include <fmt/format.h>

#include <memory>

#include "batch_plan_input.h"
#include "profile_file.h"

namespace drafthorse::cli {
namespace {

// Acceptance is a guess before anything is drafted: the draft stays unless it is clearly the worse choice.
constexpr double kClearly = 1.05;

std::optional<BatchCandidate> best_of(const EngineOptions& options, const MachineProfile& profile,
                                      const drafthorse::BatchJob& job) {
  const Result<std::unique_ptr<Engine>> engine = Engine::prepare(options);
  if (!engine.ok()) return std::nullopt;
  Result<BatchPlanInput> input = plan_input(**engine, profile, job);
  if (!input.ok()) return std::nullopt;
  if (input->draft) input->acceptance = {assumed_acceptance(**engine)};
  if (options.batch->sequences > 0) input->sequences = options.batch->sequences;
  const Result<BatchPlan> plan = plan_batch(*input);
  if (!plan.ok()) return std::nullopt;
  return plan->best;
}

}  // namespace

std::optional<BatchChoice> choose_batch(const EngineOptions& options, const drafthorse::BatchJob& job) {
  const bool may_leave_out =
      !options.draft_path.empty() && options.drafter == kDefaultDrafter && !options.draft_depth.has_value();
  // Nothing is left to choose: what it takes to plan is saved.
  if (!may_leave_out && options.batch->sequences > 0) return std::nullopt;
  const Result<std::string> path = profile_path();
  if (!path.ok()) return std::nullopt;
  const Result<MachineProfile> profile = load_profile(*path);
  if (!profile.ok()) return std::nullopt;
  std::optional<BatchCandidate> as_asked = best_of(options, *profile, job);
  if (!as_asked) return std::nullopt;
  BatchChoice choice;
  choice.with_draft = !options.draft_path.empty();
  choice.sequences = as_asked->sequences;
  if (!may_leave_out) return choice;
  EngineOptions without = options;
  without.draft_path.clear();
  const std::optional<BatchCandidate> plain = best_of(without, *profile, job);
  if (!plain || plain->tokens_per_s <= kClearly * as_asked->tokens_per_s) return choice;
  return BatchChoice{.with_draft = false,
                     .sequences = plain->sequences,
                     .why = fmt::format("the draft is left out: {:.3g} tokens/s are expected without it, {:.3g} with "
                                        "it, because its memory holds {} more experts; --drafter model drafts all "
                                        "the same",
                                        plain->tokens_per_s, as_asked->tokens_per_s, plain->slots - as_asked->slots)};
}

}  // namespace drafthorse::cli
