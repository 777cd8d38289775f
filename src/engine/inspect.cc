#include "engine/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/units.h"
#include "engine/engine.h"

namespace drafthorse {
namespace {

constexpr uint64_t kAnyBudget = uint64_t{1} << 60;
constexpr uint64_t kMostLayers = 1 << 16;

// "blk.12.attn_q.weight" -> 12.
std::optional<uint64_t> layer_of(std::string_view name) {
  constexpr std::string_view kBlock = "blk.";
  if (!name.starts_with(kBlock)) return std::nullopt;
  name.remove_prefix(kBlock.size());
  uint64_t layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.' || layer >= kMostLayers) {
    return std::nullopt;
  }
  return layer;
}

bool is_vocabulary(std::string_view name) {
  return name.starts_with("token_embd.") || name == "output.weight" || name == "output.bias";
}

void add_sizes(const GgufIndex& index, ModelDescription& out) {
  for (const TensorInfo& tensor : index.tensors()) {
    const char* type = ggml_type_name(tensor.type);
    TensorGroup& group = out.types[type];
    ++group.tensors;
    group.bytes += tensor.bytes;
    if (is_vocabulary(tensor.name)) {
      out.vocabulary_bytes += tensor.bytes;
      continue;
    }
    const std::optional<uint64_t> number = layer_of(tensor.name);
    const bool routed = number && is_routed_expert(tensor.name);
    (routed ? out.experts_bytes : out.dense_bytes) += tensor.bytes;
    if (!number) continue;
    if (*number >= out.layers.size()) out.layers.resize(*number + 1);
    LayerSizes& layer = out.layers[*number];
    (routed ? layer.experts_bytes : layer.dense_bytes) += tensor.bytes;
    if (routed && std::find(layer.types.begin(), layer.types.end(), type) == layer.types.end()) {
      layer.types.emplace_back(type);
    }
  }
}

EngineOptions unbounded(const std::string& target, const std::string& draft) {
  EngineOptions options;
  options.target_path = target;
  options.draft_path = draft;
  options.ram_bytes = kAnyBudget;
  options.threads = 1;
  return options;
}

}  // namespace

bool is_routed_expert(std::string_view name) {
  if (name.find("_exps.") != std::string_view::npos) return true;
  for (const std::string_view what : {".ffn_gate.", ".ffn_up.", ".ffn_down."}) {
    const size_t at = name.find(what);
    if (at != std::string_view::npos && at + what.size() < name.size()) {
      const char next = name[at + what.size()];
      if (next >= '0' && next <= '9') return true;
    }
  }
  return false;
}

Result<ModelDescription> describe_model(const std::string& path) {
  ModelDescription out;
  {
    ASSIGN_OR_RETURN(const GgufIndex index, GgufIndex::open(path));
    for (const GgufIndex::ShardFile& file : index.files()) {
      out.files.push_back(file.path);
      out.file_bytes += file.bytes;
    }
    const std::string* architecture = index.get_string("general.architecture");
    if (architecture == nullptr) {
      return file_error(fmt::format("{}: metadata has no 'general.architecture'; not a model file", path));
    }
    out.architecture = *architecture;
    if (const std::string* name = index.get_string("general.name")) out.name = *name;
    const auto number = [&](std::string_view key) {
      return index.get_u64(fmt::format("{}.{}", out.architecture, key)).value_or(0);
    };
    out.n_layer = number("block_count");
    out.n_expert = number("expert_count");
    out.n_expert_used = number("expert_used_count");
    out.context_trained = number("context_length");
    if (const auto* tokens = index.get_strings("tokenizer.ggml.tokens")) out.n_vocab = tokens->size();
    add_sizes(index, out);
  }
  // The engine itself is asked, so that this says what a run would say.
  const Result<std::unique_ptr<Engine>> engine = Engine::prepare(unbounded(path, ""));
  if (!engine.ok()) {
    out.problem = engine.status().message();
    return out;
  }
  const Model& model = *(*engine)->target().model;
  out.config = model.config();
  out.slot_bytes = ExpertCache::slot_bytes(model.layout());
  out.least_budget_bytes = (*engine)->memory_plan().least_budget_bytes;
  return out;
}

Result<DraftSuitability> describe_draft(const std::string& draft, const std::string& target) {
  ASSIGN_OR_RETURN(const ModelDescription of_draft, describe_model(draft));
  ASSIGN_OR_RETURN(const ModelDescription of_target, describe_model(target));
  DraftSuitability out;
  for (const ModelDescription* model : {&of_target, &of_draft}) {
    if (!model->problem.empty()) {
      out.reason = model->problem;
      return out;
    }
  }
  const Result<std::unique_ptr<Engine>> engine = Engine::prepare(unbounded(target, draft));
  if (!engine.ok()) {
    out.reason = engine.status().message();
    return out;
  }
  out.suitable = true;
  out.least_budget_bytes = (*engine)->memory_plan().least_budget_bytes;
  const uint64_t draft_bytes = of_draft.file_bytes;
  if (draft_bytes >= of_target.file_bytes) {
    out.remarks.push_back(fmt::format("it is no smaller than the target ({} against {}): drafting will not be faster",
                                      format_size(draft_bytes), format_size(of_target.file_bytes)));
  } else if (draft_bytes > of_target.file_bytes / 2) {
    out.remarks.push_back(fmt::format("it takes {} of memory, more than half of the target's {}",
                                      format_size(draft_bytes), format_size(of_target.file_bytes)));
  }
  const ModelConfig& a = *of_target.config;
  const ModelConfig& b = *of_draft.config;
  const bool same_shape = a.n_layer == b.n_layer && a.n_embd == b.n_embd && a.n_expert == b.n_expert;
  out.remarks.emplace_back(same_shape
                               ? "it has the target's shape: if it is the same model at fewer bits, the two will "
                                 "mostly agree"
                               : "it is another model: how often the two agree shows when it runs");
  const std::string not_shared = why_not_share_kv(a, b);
  out.remarks.push_back(not_shared.empty()
                            ? "it can work on the target's KV cache and needs none of its own (--drafter shared-kv)"
                            : fmt::format("it needs a KV cache of its own: {}", not_shared));
  if (a.is_moe() && a.n_embd != b.n_embd && (*engine)->schedule().fitted_bytes() == 0) {
    out.remarks.emplace_back("it is of another width: drafthorse calibrate fits it to the target, to foresee experts");
  }
  if (b.context_trained < a.context_trained) {
    out.remarks.push_back(
        fmt::format("it was trained for {} tokens, the target for {}: beyond that it will guess "
                    "badly",
                    b.context_trained, a.context_trained));
  }
  return out;
}

}  // namespace drafthorse
