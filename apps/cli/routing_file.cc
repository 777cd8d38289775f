#include "routing_file.h"

#include <fmt/format.h>

#include <algorithm>

#include "routing_json.h"
#include "text_file.h"

namespace drafthorse::cli {
namespace {

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

TracedModel describe(const Engine& engine) {
  const LoadedModel& target = engine.target();
  const ExpertLayout& layout = target.model->layout();
  TracedModel model;
  model.target = base_name(engine.options().target_path);
  model.draft = engine.draft().model != nullptr ? base_name(engine.options().draft_path) : "";
  for (const ExpertLayer& layer : layout.layers) {
    TracedLayer& out = model.layers.emplace_back();
    out.experts = static_cast<int>(layer.experts.size());
    for (int x = 0; x < layer.n_extents && out.experts > 0; ++x) {
      uint64_t largest = 0;
      for (const auto& extents : layer.experts) largest = std::max(largest, widen(extents[x]).bytes());
      out.extent_bytes.push_back(largest);
    }
  }
  model.n_expert_used = target.model->config().n_expert_used;
  model.max_window = target.model->workspace().shape().max_window;
  model.slots = engine.memory_plan().slots;
  model.other_bytes = engine.ledger().total() - engine.ledger().bytes("expert slots");
  model.dense_bytes = target.model->dense_bytes();
  if (engine.draft().model != nullptr) {
    const Model& draft = *engine.draft().model;
    model.draft_layers = draft.config().n_layer;
    model.draft_token_bytes = draft.dense_bytes();
    for (size_t i = 0; i < draft.layout().n_layers(); ++i) {
      model.draft_token_bytes += draft.layout().expert_bytes(LayerId{static_cast<int32_t>(i)}) *
                                 static_cast<uint64_t>(draft.config().n_expert_used);
    }
  }
  const ScheduleOptions& schedule = engine.schedule().options();
  model.policy = schedule.policy;
  model.predictor = schedule.predictor;
  model.prefetch = schedule.prefetch;
  model.eviction = schedule.eviction;
  model.batched_reads = schedule.batched_reads;
  model.depth = engine.options().draft_depth;
  model.load_bytes_per_s = engine.schedule().scheduler()->times().bytes_per_s;
  return model;
}

Status cannot_write(const std::string& path) {
  return file_error(fmt::format("{}: the routing cannot be written there", path));
}

}  // namespace

Result<std::unique_ptr<RoutingFileWriter>> RoutingFileWriter::open(const std::string& path) {
  std::unique_ptr<RoutingFileWriter> writer(new RoutingFileWriter);
  writer->path_ = path;
  writer->file_.open(path);
  if (!writer->file_) return cannot_write(path);
  return writer;
}

void RoutingFileWriter::begin(const Engine& engine) { file_ << routing_line(describe(engine)); }
void RoutingFileWriter::begin_text() { file_ << routing_text_line(); }
void RoutingFileWriter::prompt(const TracedPrompt& prompt) { file_ << routing_line(prompt); }
void RoutingFileWriter::agreement(const TracedAgreement& agreement) { file_ << routing_line(agreement); }
void RoutingFileWriter::cycle(const TracedCycle& cycle) { file_ << routing_line(cycle); }

Status RoutingFileWriter::finish() {
  file_.close();
  return file_ ? Status() : cannot_write(path_);
}

Result<RoutingTrace> read_routing_file(const std::string& path) {
  const std::optional<std::string> text = read_text_file(path);
  if (!text) {
    return file_error(fmt::format("{}: cannot be read; give a file that `drafthorse run --trace-routing` wrote", path));
  }
  return parse_routing(*text, path);
}

}  // namespace drafthorse::cli
