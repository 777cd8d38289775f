#include "inspect_command.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/units.h"
#include "console.h"
#include "engine/inspect.h"
#include "output.h"
#include "plan/memory_plan.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

Json draft_json(const InspectFlags& flags, const DraftSuitability& draft) {
  return {{"target", flags.draft_for},
          {"suitable", draft.suitable},
          {"reason", draft.reason},
          {"remarks", draft.remarks},
          {"least_budget_bytes", draft.least_budget_bytes}};
}

Json model_json(const ModelDescription& model) {
  Json types = Json::object();
  for (const auto& [name, group] : model.types) types[name] = {{"tensors", group.tensors}, {"bytes", group.bytes}};
  Json layers = Json::array();
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const LayerSizes& layer = model.layers[i];
    layers.push_back({{"layer", i},
                      {"dense_bytes", layer.dense_bytes},
                      {"experts_bytes", layer.experts_bytes},
                      {"expert_types", layer.types}});
  }
  return {{"schema", 1},
          {"files", model.files},
          {"file_bytes", model.file_bytes},
          {"architecture", model.architecture},
          {"name", model.name},
          {"runs", model.problem.empty()},
          {"problem", model.problem},
          {"least_budget_bytes", model.least_budget_bytes},
          {"layers", model.n_layer},
          {"experts_per_layer", model.n_expert},
          {"experts_per_token", model.n_expert_used},
          {"vocabulary", model.n_vocab},
          {"context_trained", model.context_trained},
          {"vocabulary_bytes", model.vocabulary_bytes},
          {"dense_bytes", model.dense_bytes},
          {"experts_bytes", model.experts_bytes},
          {"slot_bytes", model.slot_bytes},
          {"types", types},
          {"by_layer", layers}};
}

std::string joined(const std::vector<std::string>& words) { return fmt::format("{}", fmt::join(words, " ")); }

// Layers of the same sizes in one line.
std::string layers_text(const ModelDescription& model) {
  std::string text;
  const auto same = [](const LayerSizes& a, const LayerSizes& b) {
    return a.dense_bytes == b.dense_bytes && a.experts_bytes == b.experts_bytes && a.types == b.types;
  };
  for (size_t first = 0; first < model.layers.size();) {
    size_t last = first;
    while (last + 1 < model.layers.size() && same(model.layers[first], model.layers[last + 1])) ++last;
    const LayerSizes& layer = model.layers[first];
    const std::string which = first == last ? fmt::format("layer {}", first) : fmt::format("layers {}-{}", first, last);
    std::string experts;
    if (layer.experts_bytes > 0 && model.n_expert > 0) {
      experts = fmt::format(" + {} experts of {} ({})", model.n_expert,
                            format_size(layer.experts_bytes / model.n_expert), joined(layer.types));
    }
    text += fmt::format("  {:<14} {:>11} dense{}\n", which, format_size(layer.dense_bytes), experts);
    first = last + 1;
  }
  return text;
}

std::string experts_text(const ModelDescription& model) {
  if (model.n_expert > 0) {
    const auto with = std::count_if(model.layers.begin(), model.layers.end(),
                                    [](const LayerSizes& layer) { return layer.experts_bytes > 0; });
    const bool in_all = static_cast<uint64_t>(with) == model.n_layer;
    return fmt::format("{} in each {}, {} for each token", model.n_expert,
                       in_all ? "layer" : fmt::format("of {} layers", with), model.n_expert_used);
  }
  return model.experts_bytes > 0 ? "some; the file does not say how many" : "none: a dense model";
}

std::string model_text(const ModelDescription& model) {
  std::string text = model.files.front() + '\n';
  if (model.files.size() > 1) text += fmt::format("  and {} more shards\n", model.files.size() - 1);
  const auto line = [&](std::string_view what, const std::string& value) {
    text += fmt::format("  {:<14} {}\n", what, value);
  };
  if (!model.name.empty()) line("name", printable(model.name));
  line("architecture", printable(model.architecture));
  line("layers", fmt::format("{}", model.n_layer));
  line("experts", experts_text(model));
  line("vocabulary", fmt::format("{} tokens", model.n_vocab));
  line("context", fmt::format("{} tokens", model.context_trained));
  text += "\nsize\n";
  const auto part = [&](std::string_view what, uint64_t bytes, std::string_view where) {
    if (bytes == 0) return;
    text += fmt::format("  {:<14} {:>11}{}{}\n", what, format_size(bytes), where.empty() ? "" : "   ", where);
  };
  part("file", model.file_bytes, model.files.size() > 1 ? "all shards" : "");
  part("vocabulary", model.vocabulary_bytes, "token embedding and head, always in memory");
  part("dense", model.dense_bytes, "attention, norms, routers: always in memory");
  part("experts", model.experts_bytes, "in memory as far as the budget goes");
  if (model.slot_bytes > 0) part("one expert", model.slot_bytes, "in memory");
  text += "\ntypes\n";
  for (const auto& [name, group] : model.types) {
    text += fmt::format("  {:<14} {:>11}   {} tensors\n", name, format_size(group.bytes), group.tensors);
  }
  text += "\nlayers\n" + layers_text(model);
  if (model.problem.empty()) {
    text += fmt::format("\nruns with --ram {}M and more (default context, no draft)\n",
                        named_budget(model.least_budget_bytes) / kMiB);
  } else {
    text += fmt::format("\ncannot be run: {}\n", printable(model.problem));
  }
  return text;
}

std::string draft_text(const InspectFlags& flags, const DraftSuitability& draft) {
  if (!draft.suitable) return fmt::format("\ncannot draft for {}: {}\n", flags.draft_for, draft.reason);
  std::string text = fmt::format("\ncan draft for {}, with --ram {}M and more\n", flags.draft_for,
                                 named_budget(draft.least_budget_bytes) / kMiB);
  for (const std::string& remark : draft.remarks) text += fmt::format("  {}\n", remark);
  return text;
}

}  // namespace

CLI::App* add_inspect_command(CLI::App& app, InspectFlags& flags) {
  CLI::App* inspect = app.add_subcommand("inspect", "Show what a model file holds and the least memory it runs in");
  inspect->add_option("FILE", flags.file, "a GGUF file (any shard of a split one)")
      ->type_name("")
      ->required()
      ->check(check_not_empty);
  inspect->add_option("--draft-for", flags.draft_for, "say whether FILE can draft for this model, and why not")
      ->type_name("OTHER")
      ->check(check_not_empty);
  inspect->add_flag("--json", flags.json, "print JSON");
  return inspect;
}

int inspect(const InspectFlags& flags) {
  Console console;
  const Result<ModelDescription> model = describe_model(flags.file);
  if (!model.ok()) return fail(console, model.status());
  Json json = model_json(*model);
  std::string text = model_text(*model);
  if (!flags.draft_for.empty()) {
    const Result<DraftSuitability> draft = describe_draft(flags.file, flags.draft_for);
    if (!draft.ok()) return fail(console, draft.status());
    json["draft_for"] = draft_json(flags, *draft);
    text += draft_text(flags, *draft);
  }
  const Status written = write_output(flags.json ? json_text(json) : text);
  return written.ok() ? 0 : fail(console, written);
}

}  // namespace drafthorse::cli
