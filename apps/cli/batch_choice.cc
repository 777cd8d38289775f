#include "batch_choice.h"

#include <fmt/format.h>

#include <memory>

#include "batch_plan_input.h"
#include "profile_file.h"

namespace drafthorse::cli {
namespace {

// Acceptance is a guess before anything is drafted: the draft stays unless it is clearly the worse choice.
constexpr double kClearly = 1.05;

struct Best {
  BatchCandidate candidate;
  BatchCosts costs;
};

std::optional<Best> best_of(const EngineOptions& options, const MachineProfile& profile,
                            const drafthorse::BatchJob& job) {
  const Result<std::unique_ptr<Engine>> engine = Engine::prepare(options);
  if (!engine.ok()) return std::nullopt;
  Result<BatchPlanInput> input = plan_input(**engine, profile, job);
  if (!input.ok()) return std::nullopt;
  if (input->draft) input->acceptance = {assumed_acceptance(**engine)};
  if (options.batch->sequences > 0) input->sequences = options.batch->sequences;
  const Result<BatchPlan> plan = plan_batch(*input);
  if (!plan.ok()) return std::nullopt;
  std::optional<ModelCost> draft;
  if (input->draft) draft = std::move(input->draft->model);
  return Best{plan->best, {std::move(input->target), std::move(draft), input->platform.link_bytes_per_s}};
}

}  // namespace

std::optional<BatchChoice> choose_batch(const EngineOptions& options, const drafthorse::BatchJob& job) {
  const bool may_leave_out =
      !options.draft_path.empty() && options.drafter == kDefaultDrafter && !options.draft_depth.has_value();
  const bool chooses_depth = options.drafter != "none" && !options.draft_depth.has_value();
  // Nothing is left to choose: what it takes to plan is saved.
  if (!chooses_depth && options.batch->sequences > 0) return std::nullopt;
  const Result<std::string> path = profile_path();
  if (!path.ok()) return std::nullopt;
  const Result<MachineProfile> profile = load_profile(*path);
  if (!profile.ok()) return std::nullopt;
  std::optional<Best> as_asked = best_of(options, *profile, job);
  if (!as_asked) return std::nullopt;
  const BatchCandidate& with = as_asked->candidate;
  BatchChoice choice{.with_draft = !options.draft_path.empty(),
                     .sequences = with.sequences,
                     .why = {},
                     .costs = std::move(as_asked->costs)};
  if (!may_leave_out) return choice;
  EngineOptions without = options;
  without.draft_path.clear();
  std::optional<Best> plain = best_of(without, *profile, job);
  if (!plain || plain->candidate.tokens_per_s <= kClearly * with.tokens_per_s) return choice;
  return BatchChoice{
      .with_draft = false,
      .sequences = plain->candidate.sequences,
      .why = fmt::format("the draft is left out: {:.3g} tokens/s are expected without it, {:.3g} with "
                         "it, because its memory holds {} more experts; --drafter model drafts all "
                         "the same",
                         plain->candidate.tokens_per_s, with.tokens_per_s, plain->candidate.slots - with.slots),
      .costs = std::move(plain->costs)};
}

}  // namespace drafthorse::cli
