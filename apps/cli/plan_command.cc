#include "plan_command.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include "base/units.h"
#include "console.h"
#include "device_report.h"
#include "earlier_run.h"
#include "engine/engine.h"
#include "engine/work.h"
#include "engine_flags.h"
#include "output.h"
#include "profile_file.h"
#include "simulate/prediction.h"
#include "simulate/what_helps.h"
#include "text_file.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Plan {
  std::unique_ptr<Engine> engine;
  PredictionInput input;
  Memory memory;
  std::optional<EarlierRun> like;
  std::string acceptance_from;
  std::string no_prediction;  // why there is none
  std::optional<Prediction> prediction;
  std::optional<SpeedPrediction> without_draft;  // its memory given to experts; where a run may do that
  bool releases_draft = false;
  SpeedPrediction with_draft;  // where that is so: at the best depth before
  std::vector<Suggestion> suggestions;
  std::vector<std::string> notes;
};

Result<EngineOptions> engine_options(const PlanFlags& flags) {
  ASSIGN_OR_RETURN(EngineOptions options,
                   engine_options(EngineFlags{flags.target, flags.draft, flags.ram, flags.context, flags.threads,
                                              flags.draft_depth, flags.drafter, flags.kv}));
  ASSIGN_OR_RETURN(options.device, device_options(flags.device));
  return options;
}

bool same_shape(const ModelConfig& a, const ModelConfig& b) {
  return a.n_layer == b.n_layer && a.n_embd == b.n_embd && a.n_expert == b.n_expert && a.n_ff == b.n_ff &&
         a.n_ff_expert == b.n_ff_expert;
}

void set_acceptance(const PlanFlags& flags, Plan& plan) {
  if (flags.acceptance >= 0) {
    plan.input.text.acceptance = flags.acceptance;
    plan.acceptance_from = "given";
  } else if (plan.input.foreseen) {
    plan.input.text.acceptance = kSameModelAcceptance;
    plan.acceptance_from = "assumed for the same model at fewer bits";
  } else {
    plan.input.text.acceptance = kOtherModelAcceptance;
    plan.acceptance_from = "assumed for another model";
  }
}

// How an earlier run drafted, from its statistics file, instead of assumptions.
Status learn_from_run(const PlanFlags& flags, Plan& plan) {
  if (flags.like.empty()) return {};
  const std::optional<std::string> text = read_text_file(flags.like);
  if (!text) {
    return file_error(
        fmt::format("{}: cannot be read; give a file that `drafthorse run --stats-file` wrote", flags.like));
  }
  ASSIGN_OR_RETURN(plan.like, parse_earlier_run(*text, flags.like));
  if (plan.input.draft && flags.acceptance < 0 && plan.like->acceptance) {
    plan.input.text.acceptance = *plan.like->acceptance;
    plan.acceptance_from = "as in the earlier run";
  }
  return {};
}

// How it routed; with the machine's profile, because what is read ahead depends on times.
Status learn_skew(const PlanFlags& flags, Plan& plan) {
  if (!plan.like || flags.skew >= 0 || plan.memory.total_experts == 0) return {};
  const EarlierRun& run = *plan.like;
  ASSIGN_OR_RETURN(const std::optional<double> skew,
                   skew_from_hit_rate(plan.input, run.hit_rate, run.expert_slots, run.window));
  plan.input.text.skew = skew.value_or(plan.input.text.skew);
  return {};
}

// As a run goes on that has given the draft's memory to experts, which it does where that is faster.
Status foretell_release(Plan& plan) {
  constexpr double kWorthIt = 1.05;
  PredictionInput alone = plan.input;
  alone.draft.reset();
  alone.foreseen = false;
  alone.draft_prompt = 0;
  alone.slots = plan.engine->slots_without_draft();
  alone.depth = 0;
  ASSIGN_OR_RETURN(plan.without_draft, predict_speed(alone));
  plan.releases_draft = plan.without_draft->tokens_per_s > kWorthIt * plan.prediction->best.tokens_per_s;
  if (!plan.releases_draft) return {};
  plan.with_draft = plan.prediction->best;
  plan.prediction->best = *plan.without_draft;
  const double demanded = plan.without_draft->demanded;
  plan.prediction->hit_rate = demanded > 0 ? 1 - plan.without_draft->missed / demanded : 1;
  // What helps from then on.
  plan.input = alone;
  plan.memory.fixed_bytes -=
      plan.memory.slot_bytes * static_cast<uint64_t>(alone.slots - plan.engine->memory_plan().slots);
  return {};
}

Status foretell(const PlanFlags& flags, Plan& plan) {
  RETURN_IF_ERROR(learn_skew(flags, plan));
  ASSIGN_OR_RETURN(plan.prediction, predict(plan.input));
  if (plan.engine->can_release_draft()) RETURN_IF_ERROR(foretell_release(plan));
  plan.suggestions = what_helps(plan.input, plan.memory, plan.prediction->best);
  return {};
}

void foretell_speed(const PlanFlags& flags, Plan& plan) {
  Result<std::string> path = flags.profile.empty() ? profile_path() : Result<std::string>(flags.profile);
  Result<MachineProfile> machine = path.ok() ? load_profile(*path) : Result<MachineProfile>(path.status());
  if (!machine.ok()) {
    plan.no_prediction = machine.status().message();
    return;
  }
  plan.input.machine = std::move(machine).value();
  const MachineProfile& profile = plan.input.machine;
  struct stat info {};
  if (stat(flags.target.c_str(), &info) == 0 && profile.disk_device != info.st_dev) {
    plan.notes.push_back(
        fmt::format("the disk was measured at {}, another file system than the model's; run "
                    "`drafthorse profile {}` for better figures",
                    profile.disk_file, flags.target));
  }
  if (profile.threads != plan.engine->options().threads) {
    plan.notes.push_back(
        fmt::format("the machine was measured with {} threads, the prediction is for those", profile.threads));
  }
  if (const Status status = foretell(flags, plan); !status.ok()) plan.no_prediction = status.message();
}

Result<Plan> make_plan(const PlanFlags& flags) {
  Plan plan;
  ASSIGN_OR_RETURN(const EngineOptions options, engine_options(flags));
  ASSIGN_OR_RETURN(plan.engine, Engine::prepare(options));
  const Engine& engine = *plan.engine;
  const Model& target = *engine.target().model;
  plan.input.target = model_work(engine.target_index(), target);
  plan.input.slots = engine.memory_plan().slots;
  plan.input.prompt_tokens = std::clamp(flags.prompt_tokens, 1, std::max(1, engine.context() - 1));
  plan.input.generated_tokens = std::clamp(flags.tokens, 1, std::max(1, engine.context() - plan.input.prompt_tokens));
  plan.input.prefill_tokens = target.workspace().shape().columns;
  plan.input.max_window = target.workspace().shape().max_window;
  if (flags.skew >= 0) plan.input.text.skew = flags.skew;
  if (options.draft_depth) plan.input.depth = *options.draft_depth;
  if (engine.draft().model != nullptr) {
    const Model& draft = *engine.draft().model;
    plan.input.draft = model_work(engine.draft_index(), draft);
    plan.input.foreseen = target.config().is_moe() && same_shape(target.config(), draft.config());
    // On the target's KV cache it reads of the prompt only what it is compared on.
    const int body = plan.input.prompt_tokens - 1;
    plan.input.draft_prompt = engine.drafts_with("shared-kv") ? std::min(kScoredPositions, body) : body;
    set_acceptance(flags, plan);
  }
  RETURN_IF_ERROR(learn_from_run(flags, plan));
  const uint64_t slot_bytes = ExpertCache::slot_bytes(target.layout());
  plan.memory = {engine.ram_budget_bytes(), engine.ledger().total() - engine.ledger().bytes("expert slots"), slot_bytes,
                 target.layout().total_experts()};
  plan.notes = engine.notices();
  if (engine.device() == nullptr) {
    foretell_speed(flags, plan);
  } else {
    plan.no_prediction = fmt::format("how fast {} is the profile does not tell", engine.device()->info().name);
  }
  return plan;
}

std::vector<int> slots_by_layer(const Plan& plan) {
  // The cache gives no layer slots of its own: an even share is what the layers get on average.
  std::vector<int> shares;
  int left = plan.input.slots;
  int moe = plan.input.target.moe_layers();
  for (const LayerWork& layer : plan.input.target.layers) {
    const int share = layer.n_expert > 0 ? (left + moe - 1) / moe : 0;
    if (layer.n_expert > 0) --moe;
    left -= share;
    shares.push_back(share);
  }
  return shares;
}

const char* name_of(Bottleneck bottleneck) {
  switch (bottleneck) {
    case Bottleneck::kDisk:
      return "disk";
    case Bottleneck::kMemory:
      return "memory bandwidth";
    default:
      return "arithmetic";
  }
}

Json speed_json(const SpeedPrediction& speed) {
  return {{"depth", speed.depth ? Json(*speed.depth) : Json("auto")},
          {"tokens_per_s", speed.tokens_per_s},
          {"tokens_per_cycle", speed.tokens_per_cycle},
          {"drafted_per_cycle", speed.drafted_per_cycle},
          {"cycle_s", speed.cycle_s},
          {"draft_s", speed.draft_s},
          {"stall_s", speed.stall_s},
          {"compute_s", speed.compute_s},
          {"experts_demanded", speed.demanded},
          {"experts_missed", speed.missed},
          {"bytes_read_per_token", speed.bytes_per_token},
          {"limit", name_of(speed.bottleneck)}};
}

Json plan_json(const PlanFlags& flags, const Plan& plan) {
  const Engine& engine = *plan.engine;
  Json memory = Json::array();
  for (const MemoryLedger::Entry& entry : engine.ledger().entries()) {
    memory.push_back({{"tag", entry.tag}, {"bytes", entry.bytes}});
  }
  Json json = {
      {"schema", 1},
      {"model", flags.target},
      {"draft", flags.draft},
      {"ram_budget_bytes", engine.ram_budget_bytes()},
      {"least_budget_bytes", engine.memory_plan().least_budget_bytes},
      {"memory", memory},
      {"booked_bytes", engine.ledger().total()},
      {"expected_peak_bytes", expected_peak_bytes(engine, plan.input.prompt_tokens, plan.input.generated_tokens)},
      {"context", engine.context()},
      {"expert_slots", engine.memory_plan().slots},
      {"experts", plan.memory.total_experts},
      {"slots_by_layer", slots_by_layer(plan)},
      {"device", device_plan_json(engine)},
      {"assumed",
       {{"prompt_tokens", plan.input.prompt_tokens},
        {"generated_tokens", plan.input.generated_tokens},
        {"skew", plan.input.text.skew},
        {"acceptance", plan.input.text.acceptance},
        {"acceptance_from", plan.acceptance_from}}},
      {"notes", plan.notes}};
  if (!plan.prediction) {
    json["prediction"] = nullptr;
    json["no_prediction"] = plan.no_prediction;
    return json;
  }
  Json depths = Json::array();
  for (const SpeedPrediction& speed : plan.prediction->by_depth) depths.push_back(speed_json(speed));
  Json suggestions = Json::array();
  for (const Suggestion& one : plan.suggestions) {
    suggestions.push_back({{"what", one.what}, {"tokens_per_s", one.tokens_per_s}});
  }
  json["prediction"] = {{"load_s", plan.prediction->load_s},
                        {"ttft_s", plan.prediction->ttft_s},
                        {"hit_rate", plan.prediction->hit_rate},
                        {"best", speed_json(plan.prediction->best)},
                        {"releases_draft", plan.releases_draft},
                        {"without_draft", plan.without_draft ? speed_json(*plan.without_draft) : Json()},
                        {"by_depth", depths},
                        {"suggestions", suggestions}};
  return json;
}

std::string speed_line(std::string_view what, const SpeedPrediction& speed) {
  return fmt::format("  {:<24} {:>8.2f} tokens/s   {:>9} read per token   {:>3.0f} % waiting for the disk\n", what,
                     speed.tokens_per_s, format_size(static_cast<uint64_t>(speed.bytes_per_token)),
                     100 * speed.stall_s / speed.cycle_s);
}

std::string depth_text(const SpeedPrediction& speed) {
  if (speed.depth) return fmt::format("at depth {}", *speed.depth);
  return fmt::format("drafting, depth about {:.0f}", speed.drafted_per_cycle);
}

std::string speed_text(const Plan& plan) {
  const Prediction& prediction = *plan.prediction;
  std::string text = fmt::format("\nspeed, predicted (prompt {} tokens, {} generated)\n", plan.input.prompt_tokens,
                                 plan.input.generated_tokens);
  text += fmt::format("  {:<24} {:>8.2f} s\n", "loading", prediction.load_s);
  text += fmt::format("  {:<24} {:>8.2f} s after loading\n", "first token", prediction.ttft_s);
  const bool has_draft = plan.engine->draft().model != nullptr;
  text += speed_line(has_draft ? "without drafting" : "generating", prediction.plain);
  if (has_draft) {
    if (plan.without_draft) {
      text += speed_line(fmt::format("with {} slots instead", plan.engine->slots_without_draft()), *plan.without_draft);
    }
    if (plan.releases_draft) {
      text += speed_line(depth_text(plan.with_draft), plan.with_draft);
      text += "  the draft does not pay: a run gives its memory to experts once it has seen that\n";
    } else {
      text += speed_line(depth_text(prediction.best), prediction.best);
      text += fmt::format("  {:.0f} % of drafted tokens accepted ({}): {:.1f} tokens a cycle\n",
                          100 * plan.input.text.acceptance, plan.acceptance_from, prediction.best.tokens_per_cycle);
      if (prediction.best.drafted_per_cycle < 0.5) text += "  drafting does not pay\n";
    }
  }
  if (plan.input.slots < plan.memory.total_experts) {
    text += fmt::format(
        "  {:.0f} % of experts there when needed{}\n", 100 * prediction.hit_rate,
        plan.input.text.skew == kDefaultSkew ? ", if the text uses them as unevenly as the demo's does" : "");
  }
  text += fmt::format("  what limits: {}\n", name_of(prediction.best.bottleneck));
  text += "\nwhat would help\n";
  if (plan.suggestions.empty()) text += "  nothing that plan knows of\n";
  for (const Suggestion& one : plan.suggestions) {
    text += fmt::format("  {:>5.2f}x  {}\n", one.tokens_per_s / prediction.best.tokens_per_s, one.what);
  }
  return text;
}

std::string plan_text(const Plan& plan) {
  const Engine& engine = *plan.engine;
  std::string text = fmt::format("memory, of a budget of {}\n", format_size(engine.ram_budget_bytes()));
  for (const MemoryLedger::Entry& entry : engine.ledger().entries()) {
    text += fmt::format("  {:<28} {:>12}\n", entry.tag, format_size(entry.bytes));
  }
  text += fmt::format("  {:<28} {:>12}\n", "in all", format_size(engine.ledger().total()));
  text += fmt::format("  {:<28} {:>12}\n", "of that used by this text",
                      format_size(expected_peak_bytes(engine, plan.input.prompt_tokens, plan.input.generated_tokens)));
  text += fmt::format("  the least that works         --ram {}M\n",
                      named_budget(engine.memory_plan().least_budget_bytes) / kMiB);
  text += device_memory_text(engine);
  if (plan.memory.total_experts > 0) {
    text += fmt::format("\nexperts: {} of {} fit", engine.memory_plan().slots, plan.memory.total_experts);
    if (engine.can_release_draft()) text += fmt::format(" ({} without the draft)", engine.slots_without_draft());
    const std::vector<int> shares = slots_by_layer(plan);
    text += fmt::format(", {:.1f} a layer on average\n",
                        static_cast<double>(engine.memory_plan().slots) / static_cast<double>(shares.size()));
  }
  text +=
      plan.prediction ? speed_text(plan) : fmt::format("\nno prediction of speed: {}\n", printable(plan.no_prediction));
  for (const std::string& note : plan.notes) text += "note: " + printable(note) + '\n';
  return text;
}

}  // namespace

CLI::App* add_plan_command(CLI::App& app, PlanFlags& flags) {
  CLI::App* plan = app.add_subcommand("plan", "Show memory and predicted speed of a run, before loading anything");
  plan->add_option("-m,--model", flags.target, "the model, a GGUF file (any shard of a split one)")->type_name("FILE");
  plan->add_option("-d,--draft", flags.draft, "a smaller model with the same vocabulary, to draft with")
      ->type_name("FILE")
      ->check(check_not_empty);
  plan->add_option("--ram", flags.ram, "memory for everything, such as 8G or 1200M; default: what the machine has free")
      ->type_name("SIZE")
      ->check(check_not_empty);
  plan->add_option("--ctx", flags.context, "longest text in tokens; default: 4096, or the model's own")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 24));
  plan->add_option("--threads", flags.threads, "threads to compute with; default: one per core")
      ->type_name("N")
      ->check(CLI::Range(1, 512));
  plan->add_option("--draft-depth", flags.draft_depth, "tokens drafted per step: auto, or a number")
      ->type_name("auto|N")
      ->capture_default_str();
  add_drafter_flag(*plan, flags.drafter);
  add_kv_flag(*plan, flags.kv);
  add_device_flags(*plan, flags.device);
  plan->add_option("--prompt-tokens", flags.prompt_tokens, "length of the prompt to plan for")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  plan->add_option("-n,--tokens", flags.tokens, "tokens to plan for generating")
      ->type_name("N")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  plan->add_option("--acceptance", flags.acceptance,
                   "share of drafted tokens the target accepts; default: by the kind "
                   "of draft")
      ->type_name("P")
      ->check(CLI::Range(0.0, 1.0));
  plan->add_option("--skew", flags.skew,
                   fmt::format("how unevenly a text uses a layer's experts, 0: evenly; default: {}", kDefaultSkew))
      ->type_name("X")
      ->check(CLI::Range(0.0, 100.0));
  plan->add_option("--like", flags.like, "plan for a text that routes and drafts as this run did (its --stats-file)")
      ->type_name("STATS")
      ->check(check_not_empty);
  plan->add_option("--profile", flags.profile, "another profile than this machine's own")
      ->type_name("FILE")
      ->check(check_not_empty);
  plan->add_flag("--json", flags.json, "print JSON");
  add_plan_batch_flags(*plan, flags.batch);
  return plan;
}

int plan(const PlanFlags& flags) {
  Console console;
  if (flags.drafter == "list") {
    std::string lines;
    for (const std::string& name : drafter_names()) lines += name + '\n';
    const Status written = write_output(lines);
    return written.ok() ? 0 : fail(console, written);
  }
  if (flags.batch.batch || !flags.batch.hardware.empty()) return plan_batch(flags);
  if (flags.target.empty()) return fail(console, usage_error("no model: give one with -m FILE"));
  const Result<Plan> made = make_plan(flags);
  if (!made.ok()) return fail(console, made.status());
  const Status written = write_output(flags.json ? json_text(plan_json(flags, *made)) : plan_text(*made));
  return written.ok() ? 0 : fail(console, written);
}

}  // namespace drafthorse::cli
