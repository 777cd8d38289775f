#include "widen/architecture.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

namespace drafthorse {

namespace {

constexpr TensorRole vector(std::string_view name, Axis elements) {
  return {.name = name, .kind = TensorKind::kVector, .columns = elements};
}

// Added to the residual stream.
constexpr TensorRole output_bias(std::string_view name) {
  return {.name = name, .kind = TensorKind::kVector, .columns = Axis::kChannels, .writes_residual = true};
}

constexpr TensorRole matrix(std::string_view name, Axis columns, Axis rows, Axis slices = Axis::kFixed) {
  return {.name = name, .columns = columns, .rows = rows, .slices = slices};
}

// What its product gives is added to the residual stream.
constexpr TensorRole output(std::string_view name, Axis columns) {
  return {.name = name, .columns = columns, .rows = Axis::kChannels, .writes_residual = true};
}

constexpr TensorRole router(std::string_view name) {
  return {.name = name, .kind = TensorKind::kRouter, .columns = Axis::kChannels};
}

constexpr TensorRole kEnds[] = {
    {.name = "token_embd.weight", .kind = TensorKind::kTable, .columns = Axis::kChannels},
    vector("output_norm.weight", Axis::kChannels),
    matrix("output.weight", Axis::kChannels, Axis::kFixed),
    vector("attn_norm.weight", Axis::kChannels),
    vector("ffn_norm.weight", Axis::kChannels),
};

constexpr TensorRole kHeadAttention[] = {
    matrix("attn_q.weight", Axis::kChannels, Axis::kQueryHeads),
    matrix("attn_k.weight", Axis::kChannels, Axis::kKvHeads),
    matrix("attn_v.weight", Axis::kChannels, Axis::kKvHeads),
    vector("attn_q.bias", Axis::kQueryHeads),
    vector("attn_k.bias", Axis::kKvHeads),
    vector("attn_v.bias", Axis::kKvHeads),
    output("attn_output.weight", Axis::kValueHeads),
};

// Their biases, and what scales the rotations, which knows no width.
constexpr TensorRole kLlamaExtras[] = {
    output_bias("attn_output.bias"),     vector("rope_freqs.weight", Axis::kFixed),
    vector("ffn_gate.bias", Axis::kFfn), vector("ffn_up.bias", Axis::kFfn),
    output_bias("ffn_down.bias"),
};

// Each head is normed on its own.
constexpr TensorRole kHeadNorms[] = {
    vector("attn_q_norm.weight", Axis::kFixed),
    vector("attn_k_norm.weight", Axis::kFixed),
};

constexpr TensorRole kLatentAttention[] = {
    matrix("attn_q.weight", Axis::kChannels, Axis::kQueryHeads),  // or, where queries have a state:
    matrix("attn_q_a.weight", Axis::kChannels, Axis::kQueryState),
    vector("attn_q_a_norm.weight", Axis::kQueryState),
    matrix("attn_q_b.weight", Axis::kQueryState, Axis::kQueryHeads),
    matrix("attn_kv_a_mqa.weight", Axis::kChannels, Axis::kFixed),
    vector("attn_kv_a_norm.weight", Axis::kFixed),
    matrix("attn_k_b.weight", Axis::kFixed, Axis::kFixed, Axis::kHeads),
    matrix("attn_v_b.weight", Axis::kFixed, Axis::kFixed, Axis::kHeads),
    matrix("attn_kv_b.weight", Axis::kFixed, Axis::kKeysAndValues),  // in older files: both
    output("attn_output.weight", Axis::kValueHeads),
};

constexpr TensorRole kDenseFfn[] = {
    matrix("ffn_gate.weight", Axis::kChannels, Axis::kFfn),
    matrix("ffn_up.weight", Axis::kChannels, Axis::kFfn),
    output("ffn_down.weight", Axis::kFfn),
};

constexpr TensorRole kExperts[] = {
    router("ffn_gate_inp.weight"),
    matrix("ffn_gate_exps.weight", Axis::kChannels, Axis::kExpertFfn),
    matrix("ffn_up_exps.weight", Axis::kChannels, Axis::kExpertFfn),
    output("ffn_down_exps.weight", Axis::kExpertFfn),
};

constexpr TensorRole kSharedExpert[] = {
    matrix("ffn_gate_shexp.weight", Axis::kChannels, Axis::kSharedFfn),
    matrix("ffn_up_shexp.weight", Axis::kChannels, Axis::kSharedFfn),
    output("ffn_down_shexp.weight", Axis::kSharedFfn),
};

constexpr TensorRole kExpertBiases[] = {vector("exp_probs_b.bias", Axis::kFixed)};

// A vector in the file, a matrix of one row by what it does. The head's bias is one number a token.
constexpr TensorRole kQwen2Extras[] = {router("ffn_gate_inp_shexp.weight"), vector("output.bias", Axis::kFixed)};

constexpr RoleTable kLlama[] = {kEnds, kHeadAttention, kLlamaExtras, kDenseFfn, kExperts};
constexpr RoleTable kQwen2[] = {kEnds, kHeadAttention, kQwen2Extras, kDenseFfn, kExperts, kSharedExpert};
constexpr RoleTable kQwen3[] = {kEnds, kHeadAttention, kHeadNorms, kDenseFfn, kExperts};
constexpr RoleTable kDeepseek[] = {kEnds, kHeadAttention, kDenseFfn, kExperts, kSharedExpert};
constexpr RoleTable kDeepseek2[] = {kEnds, kLatentAttention, kDenseFfn, kExperts, kExpertBiases, kSharedExpert};

constexpr Architecture kArchitectures[] = {
    {.name = "llama", .tables = kLlama, .one_ffn_length = true},
    {.name = "qwen2", .tables = kQwen2},
    {.name = "qwen2moe", .tables = kQwen2},
    {.name = "qwen3", .tables = kQwen3},
    {.name = "qwen3moe", .tables = kQwen3},
    {.name = "deepseek", .tables = kDeepseek},
    {.name = "deepseek2", .tables = kDeepseek2, .latent_attention = true},
};

class ShapeReader {
 public:
  explicit ShapeReader(const GgufSource& source) : source_(source) {}

  Result<SourceShape> read() {
    name_ = source_.text("general.architecture").value_or("");
    const auto* const known = std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                                           [&](const Architecture& one) { return one.name == name_; });
    if (known == std::end(kArchitectures)) {
      return file_error(fmt::format("{} is of architecture '{}'; what can be widened: {} (Mixtral's is llama)",
                                    source_.path(), name_, widened_architecture_names()));
    }
    shape_ = {.architecture = known, .sizes = {}};
    ASSIGN_OR_RETURN(shape_.n_layer, required("block_count"));
    ASSIGN_OR_RETURN(size(Axis::kChannels), required("embedding_length"));
    ASSIGN_OR_RETURN(size(Axis::kFfn), required("feed_forward_length"));
    ASSIGN_OR_RETURN(size(Axis::kHeads), required("attention.head_count"));
    RETURN_IF_ERROR(known->latent_attention ? read_latent() : read_heads());
    read_experts();
    return shape_;
  }

 private:
  std::string key(std::string_view name) const { return fmt::format("{}.{}", name_, name); }

  int64_t optional(std::string_view name, int64_t otherwise) const {
    return source_.integer(key(name)).value_or(otherwise);
  }

  Result<int64_t> required(std::string_view name) const {
    const int64_t value = optional(name, 0);
    if (value < 1) return file_error(fmt::format("{}: {} is not a positive number", source_.path(), key(name)));
    return value;
  }

  int64_t& size(Axis axis) { return shape_.sizes[static_cast<size_t>(axis)]; }

  Status read_heads() {
    const int64_t n_head = size(Axis::kHeads);
    const int64_t n_head_kv = optional("attention.head_count_kv", n_head);
    const int64_t head_dim = optional("attention.key_length", size(Axis::kChannels) / n_head);
    if (n_head_kv < 1 || n_head % n_head_kv != 0) {
      return file_error(fmt::format("{}: {} query heads cannot share {} KV heads", source_.path(), n_head, n_head_kv));
    }
    size(Axis::kQueryHeads) = size(Axis::kValueHeads) = n_head * head_dim;
    size(Axis::kKvHeads) = n_head_kv * head_dim;
    return {};
  }

  // With keys and values in stacks, metadata speak of attention as it runs: over the latent state, one for all heads.
  // With both in one matrix they speak of it as it was trained.
  Status read_latent() {
    const int64_t n_head = size(Axis::kHeads);
    shape_.kv_heads_repeat = !source_.integer(key("attention.key_length_mla")).has_value();
    const std::string_view of = shape_.kv_heads_repeat ? "" : "_mla";
    ASSIGN_OR_RETURN(const int64_t key_dim, required(fmt::format("attention.key_length{}", of)));
    ASSIGN_OR_RETURN(const int64_t value_dim, required(fmt::format("attention.value_length{}", of)));
    ASSIGN_OR_RETURN(const int64_t rope_dim, required("rope.dimension_count"));
    size(Axis::kQueryHeads) = n_head * key_dim;
    size(Axis::kValueHeads) = n_head * value_dim;
    size(Axis::kKeysAndValues) = n_head * (key_dim - rope_dim + value_dim);
    size(Axis::kQueryState) = optional("attention.q_lora_rank", 0);
    return {};
  }

  void read_experts() {
    const int64_t n_expert = optional("expert_count", 0);
    shape_.n_dense_lead = std::clamp<int64_t>(optional("leading_dense_block_count", 0), 0, shape_.n_layer);
    shape_.is_moe = n_expert > 0 && shape_.n_dense_lead < shape_.n_layer;
    if (!shape_.is_moe) shape_.n_dense_lead = shape_.n_layer;
    const int64_t n_ff = size(Axis::kFfn);
    size(Axis::kExpertFfn) = n_ff;
    if (!shape_.is_moe || shape_.architecture->one_ffn_length) return;
    const int64_t n_used = std::max<int64_t>(1, optional("expert_used_count", 1));
    size(Axis::kExpertFfn) = std::max<int64_t>(1, optional("expert_feed_forward_length", n_ff / n_used));
    const int64_t n_shared = optional("expert_shared_count", 0);
    size(Axis::kSharedFfn) =
        n_shared > 0 ? n_shared * size(Axis::kExpertFfn) : optional("expert_shared_feed_forward_length", n_ff);
  }

  const GgufSource& source_;
  std::string name_;
  SourceShape shape_;
};

}  // namespace

const TensorRole* Architecture::find(std::string_view tensor) const {
  for (const RoleTable& table : tables) {
    for (const TensorRole& role : table) {
      if (role.name == tensor) return &role;
    }
  }
  return nullptr;
}

Result<SourceShape> read_shape(const GgufSource& source) { return ShapeReader(source).read(); }

std::string widened_architecture_names() {
  std::vector<std::string_view> names;
  for (const Architecture& one : kArchitectures) names.push_back(one.name);
  std::sort(names.begin(), names.end());
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace drafthorse
