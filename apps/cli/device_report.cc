#include "device_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/units.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

double percent(int64_t part, const DeviceLayerStats& of) {
  return 100.0 * static_cast<double>(part) /
         static_cast<double>(std::max<int64_t>(1, of.hits + of.copied + of.on_host));
}

// What a missing expert costs either way, by what was measured.
struct OneMiss {
  double bytes = 0;
  double copy_s = 0;
  double host_s = 0;
  double host_row_s = 0;
};

OneMiss one_miss(const LoadedModel& target) {
  const MissCosts& costs = target.device_experts->costs();
  const auto bytes = static_cast<double>(target.bank->slot_bytes(0));
  if (costs.link_bytes_per_s <= 0) return {bytes};
  return {bytes, bytes / costs.link_bytes_per_s, bytes / costs.host_bytes_per_s, bytes / costs.host_row_bytes_per_s};
}

Json ledger_json(const MemoryLedger& ledger) {
  Json memory = Json::array();
  for (const MemoryLedger::Entry& entry : ledger.entries()) {
    memory.push_back({{"tag", entry.tag}, {"bytes", entry.bytes}});
  }
  return memory;
}

Json stats_json(const DeviceLayerStats& layer) {
  return {{"hits", layer.hits},
          {"copied", layer.copied},
          {"on_host", layer.on_host},
          {"prefetched", layer.prefetched},
          {"prefetched_used", layer.prefetched_used},
          {"extra_waits", layer.extra_waits},
          {"bytes_copied", layer.bytes_copied},
          {"bytes_prefetched", layer.bytes_prefetched}};
}

Json layers_json(const std::vector<DeviceLayerStats>& layers) {
  Json out = Json::array();
  for (size_t i = 0; i < layers.size(); ++i) {
    Json& layer = out.emplace_back(Json{{"layer", i}});
    layer.update(stats_json(layers[i]));
  }
  return out;
}

// What holds for any run.
Json common_json(const Engine& engine) {
  Json out = {{"name", engine.device()->info().name},           {"description", engine.device()->info().description},
              {"placement", engine.options().device.placement}, {"vram_budget_bytes", engine.vram_budget_bytes()},
              {"memory", ledger_json(engine.device_ledger())},  {"waits", engine.device()->waits()}};
  const LoadedModel& target = engine.target();
  if (target.device_experts == nullptr) return out;
  const OneMiss miss = one_miss(target);
  out["expert_slots"] = target.device_experts->slots().slots();
  out["expert_bytes"] = static_cast<uint64_t>(miss.bytes);
  out["link_bytes_per_s"] = target.device_experts->tier().link_bytes_per_s();
  out["copy_s"] = miss.copy_s;
  out["host_s"] = miss.host_s;
  return out;
}

}  // namespace

std::string device_summary(const Engine& engine, const DeviceLayerStats& total, int64_t generated) {
  if (engine.device() == nullptr) return "";
  const LoadedModel& target = engine.target();
  std::string line = fmt::format("device: {}, {} of {}", engine.device()->info().name,
                                 format_size(engine.device_ledger().total()), format_size(engine.vram_budget_bytes()));
  if (target.device_experts != nullptr) {
    const auto tokens = static_cast<uint64_t>(std::max<int64_t>(1, generated));
    line += fmt::format(
        "; {} of {} experts fit there: {:.0f} % of those needed were there, {:.0f} % were copied ({} per token), "
        "{:.0f} % computed on the CPU",
        target.device_experts->slots().slots(), target.model->layout().total_experts(), percent(total.hits, total),
        percent(total.copied, total), format_size(total.bytes_copied / tokens), percent(total.on_host, total));
    if (total.prefetched > 0) {
      line +=
          fmt::format("; {} per token copied ahead, {:.0f} % of it used", format_size(total.bytes_prefetched / tokens),
                      100.0 * static_cast<double>(total.prefetched_used) / static_cast<double>(total.prefetched));
    }
  }
  return line;
}

void print_device_summary(Console& console, const Engine& engine, const SessionStats& stats) {
  if (engine.device() == nullptr) return;
  console.line(device_summary(engine, total_of(stats.decode_device), stats.generated_tokens));
  if (!engine.fixed_placement() && stats.near_ties > 0) {
    console.line(fmt::format("near ties: {} of {} tokens, where another device or depth may write another one",
                             stats.near_ties, stats.generated_tokens));
  }
}

std::string device_memory_text(const Engine& engine) {
  if (engine.device() == nullptr) return "";
  std::string text = fmt::format("\nmemory of {}, of a budget of {}\n", engine.device()->info().name,
                                 format_size(engine.vram_budget_bytes()));
  for (const MemoryLedger::Entry& entry : engine.device_ledger().entries()) {
    text += fmt::format("  {:<28} {:>12}\n", entry.tag, format_size(entry.bytes));
  }
  text += fmt::format("  {:<28} {:>12}\n", "in all", format_size(engine.device_ledger().total()));
  if (engine.target().bank == nullptr) return text;
  int slots = 0;
  for (int kind = 0; kind < engine.target().bank->kinds(); ++kind) slots += engine.target().bank->slots(kind);
  return text + fmt::format("  {:<28} {} of {}\n", "experts that fit there", slots,
                            engine.target().model->layout().total_experts());
}

Json device_plan_json(const Engine& engine) {
  if (engine.device() == nullptr) return {};
  return {{"name", engine.device()->info().name},
          {"vram_budget_bytes", engine.vram_budget_bytes()},
          {"memory", ledger_json(engine.device_ledger())},
          {"booked_bytes", engine.device_ledger().total()}};
}

void print_device_stats(Console& console, const Engine& engine, const SessionStats& stats) {
  if (engine.device() == nullptr) return;
  console.line(fmt::format("\nmemory of {}", engine.device()->info().name));
  for (const MemoryLedger::Entry& entry : engine.device_ledger().entries()) {
    console.line(fmt::format("  {:<28} {:>12}", entry.tag, format_size(entry.bytes)));
  }
  console.line(fmt::format("  {:<28} {:>12}", "in all", format_size(engine.device_ledger().total())));
  const LoadedModel& target = engine.target();
  if (target.device_experts == nullptr) return;
  const OneMiss miss = one_miss(target);
  console.line(miss.copy_s <= 0
                   ? "\nmissing experts are copied to the device: --placement fixed"
                   : fmt::format("\na missing expert of {} is copied in {:.2f} ms, or computed on the CPU in {:.2f} ms "
                                 "and {:.2f} more for each further token",
                                 format_size(static_cast<uint64_t>(miss.bytes)), miss.copy_s * 1e3, miss.host_s * 1e3,
                                 miss.host_row_s * 1e3));
  console.line("\nlayer    there   copied   on CPU       copied    ahead     used  copied ahead  waits for slots");
  for (size_t i = 0; i < stats.decode_device.size(); ++i) {
    const DeviceLayerStats& layer = stats.decode_device[i];
    console.line(fmt::format("{:>5} {:>8} {:>8} {:>8} {:>12} {:>8} {:>8} {:>13} {:>16}", i, layer.hits, layer.copied,
                             layer.on_host, format_size(layer.bytes_copied), layer.prefetched, layer.prefetched_used,
                             format_size(layer.bytes_prefetched), layer.extra_waits));
  }
}

Json device_json(const Engine& engine, const SessionStats& stats) {
  if (engine.device() == nullptr) return {};
  Json out = common_json(engine);
  out["near_ties"] = stats.near_ties;
  if (engine.target().device_experts == nullptr) return out;
  out["prefill_layers"] = layers_json(stats.prefill_device);
  out["decode_layers"] = layers_json(stats.decode_device);
  return out;
}

Json device_json(const Engine& engine, const DeviceLayerStats& total) {
  if (engine.device() == nullptr) return {};
  Json out = common_json(engine);
  if (engine.target().device_experts != nullptr) out["experts"] = stats_json(total);
  return out;
}

}  // namespace drafthorse::cli
