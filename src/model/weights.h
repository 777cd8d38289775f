// A model's weights: the dense ones as ggml tensors in one device buffer, the routed experts as places in the files.
#pragma once

#include <ggml.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/compute.h"
#include "backend/device.h"
#include "io/expert_layout.h"
#include "io/extent_reader.h"
#include "io/gguf_index.h"
#include "model/config.h"

namespace drafthorse {

// Latent attention, beside attention_norm and attention_out. A matrix per head is the last dimension.
struct LatentWeights {
  ggml_tensor* q = nullptr;          // [n_embd, (nope_dim + rope_dim) * n_head], or in two steps:
  ggml_tensor* q_a = nullptr;        // [n_embd, q_rank]
  ggml_tensor* q_a_norm = nullptr;   // [q_rank]
  ggml_tensor* q_b = nullptr;        // [q_rank, (nope_dim + rope_dim) * n_head]
  ggml_tensor* kv_a = nullptr;       // [n_embd, kv_rank + rope_dim]
  ggml_tensor* kv_a_norm = nullptr;  // [kv_rank]
  ggml_tensor* k_b = nullptr;        // [nope_dim, kv_rank, n_head] a head's query to the latent space
  ggml_tensor* v_b = nullptr;        // [kv_rank, value_dim, n_head] from the latent space to a head's values
  ggml_tensor* kv_b = nullptr;       // [kv_rank, (nope_dim + value_dim) * n_head]: k_b, transposed, and v_b in one
};

// One transformer layer. Weights are [columns = inputs, rows = outputs]; nullptr where the model has none.
struct LayerWeights {
  ggml_tensor* attention_norm = nullptr;       // [n_embd]
  ggml_tensor* attention_norm_bias = nullptr;  // [n_embd]
  ggml_tensor* q = nullptr;                    // [n_embd, head_dim * n_head]
  ggml_tensor* k = nullptr;                    // [n_embd, head_dim * n_head_kv]
  ggml_tensor* v = nullptr;                    // [n_embd, head_dim * n_head_kv]
  ggml_tensor* attention_out = nullptr;        // [head_dim * n_head, n_embd]
  ggml_tensor* q_bias = nullptr;               // [head_dim * n_head]
  ggml_tensor* k_bias = nullptr;               // [head_dim * n_head_kv]
  ggml_tensor* v_bias = nullptr;               // [head_dim * n_head_kv]
  ggml_tensor* attention_out_bias = nullptr;   // [n_embd]
  ggml_tensor* q_norm = nullptr;               // [head_dim]
  ggml_tensor* k_norm = nullptr;               // [head_dim]
  LatentWeights latent;
  ggml_tensor* ffn_norm = nullptr;       // [n_embd]
  ggml_tensor* ffn_norm_bias = nullptr;  // [n_embd]
  ggml_tensor* router = nullptr;         // [n_embd, n_expert]; a layer has a router or a dense FFN
  ggml_tensor* router_bias = nullptr;    // [n_expert]; for choosing experts, not for weighting them
  ggml_tensor* shared_router = nullptr;  // [n_embd]; its sigmoid weights the shared expert
  ggml_tensor* shared_gate = nullptr;    // [n_embd, n_ff_shared]
  ggml_tensor* shared_up = nullptr;      // [n_embd, n_ff_shared]
  ggml_tensor* shared_down = nullptr;    // [n_ff_shared, n_embd]
  ggml_tensor* gate = nullptr;           // [n_embd, n_ff]
  ggml_tensor* up = nullptr;             // [n_embd, n_ff]
  ggml_tensor* down = nullptr;           // [n_ff, n_embd]
};

struct ModelWeights {
  ggml_tensor* token_embedding = nullptr;    // [n_embd, n_vocab]
  ggml_tensor* output_norm = nullptr;        // [n_embd]
  ggml_tensor* output_norm_bias = nullptr;   // [n_embd]
  ggml_tensor* output = nullptr;             // [n_embd, n_vocab]; the embedding where the file ties them
  ggml_tensor* output_bias = nullptr;        // [n_vocab]
  ggml_tensor* rope_factors = nullptr;       // [rope.dims / 2]
  ggml_tensor* rope_factors_long = nullptr;  // [rope.dims / 2], for contexts longer than rope.original_context
  std::vector<LayerWeights> layers;
};

// Declares the tensors a family uses, checking presence, shape and type against the index. The first error sticks.
class WeightDeclarations {
 public:
  explicit WeightDeclarations(const GgufIndex& index);
  ~WeightDeclarations();
  WeightDeclarations(const WeightDeclarations&) = delete;
  WeightDeclarations& operator=(const WeightDeclarations&) = delete;

  enum class Use { kMatrix, kVector };  // a matrix may be quantised; a vector must be F32
  ggml_tensor* required(const std::string& name, Use use, int64_t columns, int64_t rows = 1);
  ggml_tensor* optional(const std::string& name, Use use, int64_t columns, int64_t rows = 1);

  // A matrix for each of `heads`: [columns, rows, heads].
  ggml_tensor* required_per_head(const std::string& name, int64_t columns, int64_t rows, int64_t heads);

  // A tensor [columns, rows, heads] that no file has: `make` fills it from `source` once that is loaded. Of the
  // source's type where that is a float's, else F16. `source` may be nullptr, after an error.
  using Make = void (*)(const ggml_tensor& source, ggml_tensor& result);
  ggml_tensor* derived(const ggml_tensor* source, int64_t columns, int64_t rows, int64_t heads, Make make);

  // For a device: tensors that only the host reads, and one that both do, as a tensor of its own for each.
  void keep_on_host(const ggml_tensor* tensor);
  ggml_tensor* duplicate(const ggml_tensor* tensor);

  // The routed experts of layer `layer` (separate, fused gate_up, or a tensor each), appended to layout().
  void experts(int layer, const ModelConfig& config);
  void no_experts();  // a dense layer

  // Fails where the file holds tensors that nothing declared: ignoring weights would give other text.
  Status finish();

  ExpertLayout& layout() { return layout_; }
  struct Declared {
    ggml_tensor* tensor;
    const TensorInfo* info;
    bool on_host = false;  // although the others are on a device
  };
  const std::vector<Declared>& declared() const { return declared_; }
  struct Derived {
    const ggml_tensor* source;
    ggml_tensor* tensor;
    Make make;
  };
  const std::vector<Derived>& derived() const { return derived_; }
  ggml_context* release_context();

 private:
  const TensorInfo* find(const std::string& name, Use use, int64_t columns, int64_t rows, int64_t count, bool required);
  void fail(const std::string& what);

  const GgufIndex& index_;
  ggml_context* context_ = nullptr;
  std::vector<Declared> declared_;
  std::vector<Derived> derived_;
  std::vector<const TensorInfo*> used_;
  ExpertLayout layout_;
  Status status_;
};

// Owns the dense weights' memory. Reserved at construction, filled by load().
class DenseWeights {
 public:
  // device: where they go, but for those kept on the host; must outlive them. nullptr: all are the host's.
  static Result<DenseWeights> reserve(WeightDeclarations& declarations, Device* device = nullptr);
  DenseWeights() = default;
  DenseWeights(DenseWeights&&) = default;
  DenseWeights& operator=(DenseWeights&&) = default;

  uint64_t bytes() const { return buffer_.bytes(); }  // of the host's memory
  uint64_t device_bytes() const { return memory_ ? memory_->bytes() : 0; }
  uint64_t staging_bytes() const;  // of the host's memory, while loading to a device
  Status allocate() { return memory_ ? memory_->allocate("dense weights") : Status(); }

  // Reads all tensors through the queue (nothing else may be in flight) and makes what is derived from them.
  // progress(done, total) in bytes.
  Status load(const FileSet& files, ReadQueue& queue, const std::function<bool(uint64_t, uint64_t)>& progress);

 private:
  struct ContextDeleter {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };
  std::unique_ptr<ggml_context, ContextDeleter> context_;
  Status load_to_device(const FileSet& files, ReadQueue& queue,
                        const std::function<bool(uint64_t, uint64_t)>& progress);
  Status derive_for_device(const WeightDeclarations::Derived& one, const FileSet& files, ReadQueue& queue);
  FileExtent extent_on_device(const ggml_tensor* tensor) const;

  DeviceBuffer buffer_;
  std::vector<ExtentRead> reads_;  // neighbouring tensors together
  Device* device_ = nullptr;
  std::optional<DeviceArena> memory_;
  struct OnDevice {
    ggml_tensor* tensor;
    FileExtent extent;
  };
  std::vector<OnDevice> on_device_;
  std::vector<WeightDeclarations::Derived> derived_;
};

}  // namespace drafthorse
