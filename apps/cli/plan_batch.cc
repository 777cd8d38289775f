#include "plan_batch.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/units.h"
#include "batch_plan_input.h"
#include "console.h"
#include "earlier_run.h"
#include "engine/engine.h"
#include "engine_flags.h"
#include "output.h"
#include "plan/batch_optimizer.h"
#include "plan_command.h"
#include "profile_file.h"
#include "simulate/batch_hardware.h"
#include "simulate/typical_text.h"
#include "suggest.h"
#include "text_file.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

struct BatchAdvice {
  BatchPlanInput input;
  BatchPlan plan;
  double acceptance = 0;
  std::string acceptance_from;
  std::string machine;
  std::vector<std::string> notes;
};

Status choose_acceptance(const PlanFlags& flags, const Engine& engine, BatchAdvice& advice) {
  if (flags.acceptance >= 0) {
    advice.acceptance = flags.acceptance;
    advice.acceptance_from = "given";
    return {};
  }
  if (!flags.like.empty()) {
    const std::optional<std::string> text = read_text_file(flags.like);
    if (!text) {
      return file_error(
          fmt::format("{}: cannot be read; give a file that `drafthorse run --stats-file` wrote", flags.like));
    }
    ASSIGN_OR_RETURN(const EarlierRun run, parse_earlier_run(*text, flags.like));
    if (run.acceptance) {
      advice.acceptance = *run.acceptance;
      advice.acceptance_from = "as in the earlier run";
      return {};
    }
  }
  advice.acceptance = assumed_acceptance(engine);
  advice.acceptance_from = advice.acceptance == kSameModelAcceptance ? "assumed for the same model at fewer bits"
                                                                     : "assumed for another model";
  return {};
}

// On this machine, with this file.
Result<BatchAdvice> advise_here(const PlanFlags& flags) {
  BatchAdvice advice;
  ASSIGN_OR_RETURN(EngineOptions options,
                   engine_options(EngineFlags{flags.target, flags.draft, flags.ram, flags.context, flags.threads,
                                              flags.draft_depth, flags.drafter, flags.kv}));
  const BatchJob job = {flags.prompt_tokens, flags.tokens, flags.batch.requests};
  // A device's times the profile does not have.
  options.device.name = kNoDevice;
  options.batch = BatchOptions{.sequences = static_cast<int32_t>(flags.batch.sequences),
                               .typical_tokens = job.prompt_tokens + job.output_tokens,
                               .requests = job.requests};
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::prepare(options));
  if (job.prompt_tokens + job.output_tokens > engine->context()) {
    return usage_error(fmt::format("{} + {} tokens are more than the context of {}; give fewer, or another --ctx",
                                   job.prompt_tokens, job.output_tokens, engine->context()));
  }
  ASSIGN_OR_RETURN(const std::string path, flags.profile.empty() ? profile_path() : Result<std::string>(flags.profile));
  ASSIGN_OR_RETURN(const MachineProfile profile, load_profile(path));
  ASSIGN_OR_RETURN(advice.input, plan_input(*engine, profile, job));
  if (advice.input.draft) {
    RETURN_IF_ERROR(choose_acceptance(flags, *engine, advice));
    advice.input.acceptance = {advice.acceptance};
  }
  if (flags.batch.sequences > 0) advice.input.sequences = flags.batch.sequences;
  advice.machine = profile.machine;
  advice.notes = engine->notices();
  return advice;
}

// On one of the paper's.
Result<BatchAdvice> advise_elsewhere(const PlanFlags& flags) {
  const BatchHardware* hardware = find_batch_hardware(flags.batch.hardware);
  CHECK(hardware != nullptr);  // the flag was checked
  if (!flags.target.empty() || !flags.draft.empty() || !flags.ram.empty()) {
    return usage_error("--hardware comes with the paper's models and memory; leave -m, -d and --ram out");
  }
  const BatchStack stack = flags.batch.stack == "paper" ? paper_stack() : BatchStack{};
  const BatchJob job = {flags.prompt_tokens, flags.tokens, flags.batch.requests};
  BatchAdvice advice;
  advice.input = batch_plan_input(*hardware, mixtral_8x7b(), eagle_for_mixtral(), stack, job);
  advice.acceptance = flags.acceptance >= 0 ? flags.acceptance : kPaperAcceptance;
  advice.acceptance_from = flags.acceptance >= 0 ? "given" : "inferred from the paper's gain on the A30";
  advice.input.acceptance = {advice.acceptance};
  if (flags.draft_depth != "auto") {
    ASSIGN_OR_RETURN(const EngineOptions options,
                     engine_options(EngineFlags{flags.target, flags.draft, flags.ram, 0, 0, flags.draft_depth,
                                                flags.drafter, flags.kv}));
    advice.input.depth = options.draft_depth;
    advice.input.max_depth = *options.draft_depth;
  }
  if (flags.batch.sequences > 0) advice.input.sequences = flags.batch.sequences;
  advice.machine = fmt::format(
      "{}, {}, Mixtral-8x7B and EAGLE at 16 bits", hardware->name,
      flags.batch.stack == "paper" ? "at the speeds of the paper's software" : "at the speeds of the data sheet");
  return advice;
}

double of(const SecondsByComponent& seconds, Component component) { return seconds[static_cast<size_t>(component)]; }

Json seconds_json(const SecondsByComponent& seconds) {
  Json json = Json::object();
  for (size_t i = 0; i < kComponents; ++i) json[component_name(static_cast<Component>(i))] = seconds[i];
  return json;
}

Json candidate_json(const BatchCandidate& one) {
  return {{"sequences", one.sequences},
          {"micro_batch", one.micro_batch},
          {"depth", one.depth},
          {"expert_slots", one.slots},
          {"draft_share_on_device", one.device_share},
          {"memory_bytes", one.memory_bytes},
          {"tokens_per_sequence", one.tokens_per_sequence},
          {"iteration_s", one.decode.seconds},
          {"target_s", one.decode.target_s},
          {"busy_s", seconds_json(one.decode.busy)},
          {"critical_s", seconds_json(one.decode.critical)},
          {"bytes_loaded", one.decode.loaded_bytes},
          {"limit", component_name(one.decode.limit)},
          {"decode_tokens_per_s", one.decode_tokens_per_s},
          {"tokens_per_s", one.tokens_per_s}};
}

Json advice_json(const BatchAdvice& advice) {
  const BatchPlan& plan = advice.plan;
  Json candidates = Json::array();
  for (const BatchCandidate& one : plan.candidates) candidates.push_back(candidate_json(one));
  return {{"schema", 1},
          {"machine", advice.machine},
          {"ram_budget_bytes", advice.input.memory.budget_bytes},
          {"assumed",
           {{"prompt_tokens", advice.input.job.prompt_tokens},
            {"generated_tokens", advice.input.job.output_tokens},
            {"acceptance", advice.acceptance},
            {"acceptance_from", advice.acceptance_from}}},
          {"best", candidate_json(plan.best)},
          {"without_draft", candidate_json(plan.plain)},
          {"layer_by_layer", candidate_json(plan.on_demand)},
          {"candidates", candidates},
          {"notes", advice.notes}};
}

constexpr const char* kHeading =
    "  sequences depth slots   tokens iteration     link attention    dense  experts    draft    other  decoding  "
    "with prompts  limit\n";

std::string candidate_line(const BatchCandidate& one) {
  const SecondsByComponent& busy = one.decode.busy;
  return fmt::format(
      "  {:>9} {:>5} {:>5} {:>8.0f} {:>8.3f}s {:>7.3f}s {:>8.3f}s {:>7.3f}s {:>7.3f}s {:>7.3f}s {:>7.3f}s {:>9.2f} "
      "{:>13.2f}  {}\n",
      one.sequences, one.depth, one.slots, one.tokens_per_sequence * static_cast<double>(one.sequences),
      one.decode.seconds, of(busy, Component::kLoad), of(busy, Component::kAttention), of(busy, Component::kDense),
      of(busy, Component::kExperts), of(busy, Component::kDraft),
      of(busy, Component::kOther) + of(busy, Component::kActivations), one.decode_tokens_per_s, one.tokens_per_s,
      component_name(one.decode.limit));
}

// One line per depth, or per number of sequences, in the order of the other.
template <typename Keep>
std::string candidate_lines(const BatchPlan& plan, const Keep& keep) {
  std::string text = kHeading;
  for (const BatchCandidate& one : plan.candidates) {
    if (keep(one)) text += candidate_line(one);
  }
  return text;
}

// At each depth the best number of sequences.
std::string lines_by_depth(const BatchPlan& plan) {
  std::vector<BatchCandidate> best;
  for (const BatchCandidate& one : plan.candidates) {
    const auto depth = static_cast<size_t>(one.depth);
    if (best.size() <= depth) best.resize(depth + 1);
    if (one.tokens_per_s > best[depth].tokens_per_s) best[depth] = one;
  }
  std::string text = kHeading;
  for (const BatchCandidate& one : best) {
    if (one.sequences > 0) text += candidate_line(one);
  }
  return text;
}

std::string advice_text(const BatchAdvice& advice) {
  const BatchPlan& plan = advice.plan;
  const BatchCandidate& best = plan.best;
  const BatchJob& job = advice.input.job;
  std::string text =
      fmt::format("requests of {} + {} tokens in {} of memory, on {}\n", job.prompt_tokens, job.output_tokens,
                  format_size(advice.input.memory.budget_bytes), printable(advice.machine));
  text += fmt::format("  best: {} at once, {} drafted; {:.2f} tokens/s, prompts included\n", best.sequences, best.depth,
                      best.tokens_per_s);
  if (advice.input.memory.slot_bytes > 0) {
    text += fmt::format(
        "  memory: {} for their texts, {} of {} experts beside them\n",
        format_size(static_cast<uint64_t>(best.sequences) * request_bytes(advice.input.memory, job, best.depth + 1)),
        best.slots, advice.input.memory.total_experts);
  }
  if (advice.input.draft) {
    text += fmt::format("  {:.0f} % of drafted tokens accepted ({}): {:.2f} tokens an iteration and text\n",
                        100 * advice.acceptance, advice.acceptance_from, best.tokens_per_sequence);
  }
  text += fmt::format("  what limits: {}\n", component_name(best.decode.limit));
  text += fmt::format("  against no draft ({} at once): {:.2f}x", plan.plain.sequences,
                      best.tokens_per_s / plan.plain.tokens_per_s);
  text += fmt::format("; against layer by layer ({} at once): {:.2f}x\n", plan.on_demand.sequences,
                      best.tokens_per_s / plan.on_demand.tokens_per_s);
  text += "\nwhat an iteration that only generates takes, predicted; parts go on side by side; tokens/s\n";
  text += "by depth, each at its best number of sequences\n" + lines_by_depth(plan);
  if (!advice.input.sequences) {
    text += "by sequences, at the best depth\n";
    text += candidate_lines(plan, [&](const BatchCandidate& one) { return one.depth == best.depth; });
  }
  for (const std::string& note : advice.notes) text += "note: " + printable(note) + '\n';
  return text;
}

// What the paper measured beside what is predicted.
std::string paper_text(const PlanFlags& flags, const BatchAdvice& advice) {
  const BatchPlanInput& input = advice.input;
  const auto at = [&](int depth) {
    return evaluate(input, Pipeline::kTwoMicroBatches, sequences_that_fit(input.memory, input.job, depth + 1), depth);
  };
  const BatchCandidate with = at(kPaperIterationDepth);
  const BatchCandidate without = at(0);
  std::string text;
  const bool measured = flags.batch.hardware == "a30" && input.job.prompt_tokens == kPaperIterationJob.prompt_tokens &&
                        input.job.output_tokens == kPaperIterationJob.output_tokens;
  if (measured) {
    const PaperIteration paper;
    const SecondsByComponent& busy = with.decode.busy;
    text += fmt::format("\nan iteration of {} requests with {} drafted tokens each, seconds: here, the paper's\n",
                        with.sequences, with.depth);
    const auto line = [&](const char* what, double here, double theirs) {
      text += fmt::format("  {:<22} {:>6.3f} {:>6.3f}\n", what, here, theirs);
    };
    const double other = input.other_s_per_token * static_cast<double>(with.sequences) * (with.depth + 1);
    line("attention", of(busy, Component::kAttention), paper.attention_s);
    line("device: experts, dense", of(busy, Component::kExperts) + of(busy, Component::kDense), paper.experts_s);
    line("link: experts", of(busy, Component::kLoad), paper.link_s);
    line("target, pipelined", with.decode.target_s, paper.target_s);
    line("draft", with.decode.seconds - with.decode.target_s - other, paper.draft_s);
    line("other", other, paper.other_s);
    line("whole", with.decode.seconds, paper.whole_s);
  }
  if (const std::optional<double> gain = paper_speculation_gain(flags.batch.hardware)) {
    text += fmt::format("decoding with {} drafted tokens over without: {:.2f}x here, {:.2f}x in the paper\n",
                        kPaperIterationDepth, with.decode_tokens_per_s / without.decode_tokens_per_s, *gain);
  }
  return text;
}

}  // namespace

void add_plan_batch_flags(CLI::App& command, PlanBatchFlags& flags) {
  command.add_flag("--batch", flags.batch, "plan for `drafthorse batch`: how many requests at once, how deep to draft");
  command.add_option("--sequences", flags.sequences, "requests worked on at once; default: what is fastest")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 20));
  command.add_option("--requests", flags.requests, "requests of the batch in all; default: more than fit at once")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 30));
  std::vector<std::string> machines;
  for (const BatchHardware& one : batch_hardware()) machines.push_back(one.name);
  command
      .add_option("--hardware", flags.hardware,
                  "plan a batch of Mixtral-8x7B on one of SpecMoEOff's machines instead: a30 or rtx4090d")
      ->type_name("NAME")
      ->check(one_of(machines));
  command
      .add_option("--stack", flags.stack,
                  "with --hardware, whose speeds: native (the data sheet's) or paper (its software's)")
      ->type_name("NAME")
      ->check(one_of({"native", "paper"}))
      ->capture_default_str();
}

int plan_batch(const PlanFlags& flags) {
  Console console;
  const bool elsewhere = !flags.batch.hardware.empty();
  if (flags.target.empty() && !elsewhere) return fail(console, usage_error("no model: give one with -m FILE"));
  Result<BatchAdvice> advice = elsewhere ? advise_elsewhere(flags) : advise_here(flags);
  if (!advice.ok()) return fail(console, advice.status());
  Result<BatchPlan> plan = plan_batch(advice->input);
  if (!plan.ok()) return fail(console, plan.status());
  advice->plan = std::move(plan).value();
  std::string text;
  if (flags.json) {
    text = json_text(advice_json(*advice));
  } else {
    text = advice_text(*advice);
    if (elsewhere) text += paper_text(flags, *advice);
  }
  const Status written = write_output(text);
  return written.ok() ? 0 : fail(console, written);
}

}  // namespace drafthorse::cli
