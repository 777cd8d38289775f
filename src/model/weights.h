// A model's weights: the dense ones as ggml tensors in one device buffer, the routed experts as places in the files.
#pragma once

#include <ggml.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/compute.h"
#include "io/expert_layout.h"
#include "io/extent_reader.h"
#include "io/gguf_index.h"
#include "model/config.h"

namespace drafthorse {

// One transformer layer. Weights are [columns = inputs, rows = outputs]; nullptr where the model has none.
struct LayerWeights {
  ggml_tensor* attention_norm = nullptr;      // [n_embd]
  ggml_tensor* q = nullptr;                   // [n_embd, head_dim * n_head]
  ggml_tensor* k = nullptr;                   // [n_embd, head_dim * n_head_kv]
  ggml_tensor* v = nullptr;                   // [n_embd, head_dim * n_head_kv]
  ggml_tensor* attention_out = nullptr;       // [head_dim * n_head, n_embd]
  ggml_tensor* q_bias = nullptr;              // [head_dim * n_head]
  ggml_tensor* k_bias = nullptr;              // [head_dim * n_head_kv]
  ggml_tensor* v_bias = nullptr;              // [head_dim * n_head_kv]
  ggml_tensor* attention_out_bias = nullptr;  // [n_embd]
  ggml_tensor* ffn_norm = nullptr;            // [n_embd]
  ggml_tensor* router = nullptr;              // [n_embd, n_expert]; a layer has a router or a dense FFN
  ggml_tensor* gate = nullptr;                // [n_embd, n_ff]
  ggml_tensor* up = nullptr;                  // [n_embd, n_ff]
  ggml_tensor* down = nullptr;                // [n_ff, n_embd]
};

struct ModelWeights {
  ggml_tensor* token_embedding = nullptr;  // [n_embd, n_vocab]
  ggml_tensor* output_norm = nullptr;      // [n_embd]
  ggml_tensor* output = nullptr;           // [n_embd, n_vocab]; the embedding where the file ties them
  ggml_tensor* rope_factors = nullptr;     // [rope_dims / 2]
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

  // The routed experts of layer `layer` (separate, fused gate_up, or a tensor each), appended to layout().
  void experts(int layer, const ModelConfig& config);
  void no_experts();  // a dense layer

  // Fails where the file holds tensors that nothing declared: ignoring weights would give other text.
  Status finish();

  ExpertLayout& layout() { return layout_; }
  struct Declared {
    ggml_tensor* tensor;
    const TensorInfo* info;
  };
  const std::vector<Declared>& declared() const { return declared_; }
  ggml_context* release_context();

 private:
  const TensorInfo* find(const std::string& name, Use use, int64_t columns, int64_t rows, int64_t count, bool required);
  void fail(const std::string& what);

  const GgufIndex& index_;
  ggml_context* context_ = nullptr;
  std::vector<Declared> declared_;
  std::vector<const TensorInfo*> used_;
  ExpertLayout layout_;
  Status status_;
};

// Owns the dense weights' memory. Reserved at construction, filled by load().
class DenseWeights {
 public:
  static Result<DenseWeights> reserve(WeightDeclarations& declarations);
  DenseWeights() = default;
  DenseWeights(DenseWeights&&) = default;
  DenseWeights& operator=(DenseWeights&&) = default;

  uint64_t bytes() const { return buffer_.bytes(); }

  // Reads all tensors through the queue (nothing else may be in flight). progress(done, total) in bytes.
  Status load(const FileSet& files, ReadQueue& queue, const std::function<bool(uint64_t, uint64_t)>& progress);

 private:
  struct ContextDeleter {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };
  std::unique_ptr<ggml_context, ContextDeleter> context_;
  DeviceBuffer buffer_;
  std::vector<ExtentRead> reads_;  // neighbouring tensors together
};

}  // namespace drafthorse
