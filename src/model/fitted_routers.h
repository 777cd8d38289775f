// Routers fitted to a pair of models: linear maps from the draft's FFN inputs to the target's router logits, one for
// each of the target's layers with experts, kept in a small GGUF file beside the draft. `drafthorse calibrate` makes
// them (engine/calibration.h); they go into RouterProbes of the draft.
//
// The file: general.architecture "drafthorse-fitted"; drafthorse-fitted.version; .target and .draft, the fingerprints
// (io/fingerprint.h) of the models it was fitted to; for each layer N of the target blk.N.fitted.weight, F16
// [draft's n_embd, n_expert], and blk.N.fitted.bias, F32 [n_expert]. Files of others are checked like models'.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "io/gguf_index.h"
#include "model/config.h"
#include "model/weights.h"

namespace drafthorse {

// The draft's layer that corresponds to a layer of the target: proportionally, where their numbers differ.
LayerId corresponding_layer(LayerId layer, int target_layers, int draft_layers);

// Where such a file lies unless the user says otherwise: beside the draft, named after both.
std::string fitted_routers_path(const std::string& draft_path, const std::string& target_path);

// A model's file and what was read of it.
struct ModelFile {
  const GgufIndex& index;
  const ModelConfig& config;
};

class FittedRouters {
 public:
  // Reads what the file says and reserves memory. kFile where it is none, or damaged. Where it was fitted to other
  // models, or by another version, it is of no use and why_stale() says so.
  static Result<std::unique_ptr<FittedRouters>> open(const std::string& path, const ModelFile& target,
                                                     const ModelFile& draft);

  // A sentence; empty where the file is made for this pair.
  const std::string& why_stale() const { return why_stale_; }
  const std::string& path() const { return path_; }
  uint64_t bytes() const { return weights_.bytes(); }

  // kFile where reading fails, or a number is none.
  Status load();

  // nullptr for a layer without experts. They hold their numbers after load().
  ggml_tensor* router(LayerId layer) const { return maps_[index(layer)].router; }
  ggml_tensor* offset(LayerId layer) const { return maps_[index(layer)].offset; }

 private:
  struct Map {
    ggml_tensor* router = nullptr;  // [draft's n_embd, n_expert]
    ggml_tensor* offset = nullptr;  // [n_expert]
  };
  FittedRouters() = default;
  std::string path_;
  std::string why_stale_;
  std::vector<Map> maps_;  // by layer of the target
  DenseWeights weights_;
};

// One layer's, as it was fitted.
struct FittedRouter {
  LayerId layer{};             // of the target
  std::vector<float> router;   // [draft's n_embd, n_expert]
  std::vector<float> offsets;  // [n_expert]
};

// Writes all of them, in place of what is there only once all is written. kFile where that cannot be done.
Status write_fitted_routers(const std::string& path, const ModelFile& target, const ModelFile& draft,
                            const std::vector<FittedRouter>& routers);

}  // namespace drafthorse
