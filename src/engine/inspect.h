// What a model file is, without loading it: for `drafthorse inspect`.
//
// Architectures that are not computed are described too, as far as GGUF's conventions go; `problem` then says why the
// model cannot be run.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/config.h"

namespace drafthorse {

// By a tensor's name: "blk.0.ffn_up_exps.weight" or, a tensor each, "blk.0.ffn_up.3.weight". Shared experts are none.
bool is_routed_expert(std::string_view name);

struct TensorGroup {
  int64_t tensors = 0;
  uint64_t bytes = 0;
};

struct LayerSizes {
  uint64_t dense_bytes = 0;        // attention, norms, router, shared experts, or a dense FFN
  uint64_t experts_bytes = 0;      // all routed experts together
  std::vector<std::string> types;  // of the routed experts' matrices, each once
};

struct ModelDescription {
  std::vector<std::string> files;  // all shards
  uint64_t file_bytes = 0;
  std::string architecture;
  std::string name;
  std::optional<ModelConfig> config;  // where the architecture is one drafthorse computes
  // By the file's metadata, whatever the architecture; 0 where it does not say.
  uint64_t n_layer = 0;
  uint64_t n_expert = 0;
  uint64_t n_expert_used = 0;
  uint64_t n_vocab = 0;
  uint64_t context_trained = 0;
  uint64_t vocabulary_bytes = 0;  // token embedding and head
  uint64_t dense_bytes = 0;       // all that stays in memory, without the vocabulary
  uint64_t experts_bytes = 0;     // all routed experts
  uint64_t slot_bytes = 0;        // memory that one routed expert takes; 0 for a dense model or one that cannot be run
  std::vector<LayerSizes> layers;
  std::map<std::string, TensorGroup> types;  // by type name
  std::string problem;                       // why it cannot be run, one sentence; empty where it can
  uint64_t least_budget_bytes = 0;  // for --ram, with the default context and no draft; 0 where it cannot be run
};

// kFile where it is no model at all.
Result<ModelDescription> describe_model(const std::string& path);

struct DraftSuitability {
  bool suitable = false;
  std::string reason;                // why not, one sentence
  std::vector<std::string> remarks;  // what to expect of it where it is
  uint64_t least_budget_bytes = 0;   // for both together
};

// Whether `draft` can draft for `target`. kFile where one of the two cannot be read.
Result<DraftSuitability> describe_draft(const std::string& draft, const std::string& target);

}  // namespace drafthorse
