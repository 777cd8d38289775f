#include "support/tiny_model.h"

#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "gguf.h"

namespace drafthorse {

namespace {

struct GgufDeleter {
  void operator()(gguf_context* context) const { gguf_free(context); }
};
struct GgmlDeleter {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
using GgufPtr = std::unique_ptr<gguf_context, GgufDeleter>;
using GgmlPtr = std::unique_ptr<ggml_context, GgmlDeleter>;

// What attention and FFN add, against a residual stream of deviation 1 (with an untied head). Trained networks refine
// the stream; with branches as large as the stream random ones amplify every rounding from layer to layer instead.
constexpr float kBranchScale = 0.35F;

struct Tensor {
  std::string name;
  ggml_type type = GGML_TYPE_F32;
  std::vector<int64_t> shape;  // innermost first
  std::vector<uint8_t> data;
};

// Independent of the standard library's distributions, so that a seed means the same weights everywhere.
class Normal {
 public:
  Normal(uint32_t seed, std::string_view role) : state_(0x9E3779B97F4A7C15ULL * (seed + 1ULL)) {
    for (const char c : role) state_ = (state_ ^ static_cast<uint8_t>(c)) * 0x100000001B3ULL;
  }
  // Nearly normal: the sum of four uniform numbers, scaled to mean 0 and deviation 1.
  float next() {
    uint64_t bits = splitmix();
    int32_t sum = 0;
    for (int i = 0; i < 4; ++i, bits >>= 16) sum += static_cast<int32_t>(bits & 0xFFFF);
    constexpr float kMean = 4 * 32767.5F;
    constexpr float kDeviation = 65536.0F * 0.57735027F;
    return (static_cast<float>(sum) - kMean) / kDeviation;
  }

 private:
  uint64_t splitmix() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

std::vector<uint8_t> as_bytes(const std::vector<float>& values, ggml_type type, int64_t row) {
  const int64_t n_rows = static_cast<int64_t>(values.size()) / row;
  std::vector<uint8_t> bytes(ggml_row_size(type, row) * static_cast<size_t>(n_rows));
  ggml_quantize_chunk(type, values.data(), bytes.data(), 0, n_rows, row, nullptr);
  return bytes;
}

class Builder {
 public:
  Builder(const TinyModelOptions& options, int64_t n_vocab) : o_(options), n_vocab_(n_vocab) {}

  std::vector<Tensor> build() {
    const float embd_deviation = 1.0F / std::sqrt(static_cast<float>(o_.n_embd));
    // A tied head needs small embeddings, or each token would mostly predict itself.
    matrix("token_embd.weight", o_.type, o_.n_embd, n_vocab_, o_.tied_head ? embd_deviation : 1.0F);
    norm("output_norm", o_.n_embd);
    if (!o_.tied_head) matrix("output.weight", head_type(), o_.n_embd, n_vocab_, embd_deviation);
    if (has_norm_biases()) vector("output.bias", n_vocab_, 0, 0.3F);
    if (o_.rope_freqs) factors("rope_freqs.weight", 0.25F);
    if (o_.rope.factors) {
      factors("rope_factors_long.weight", 0.5F);
      factors("rope_factors_short.weight", 0.125F);
    }
    for (int32_t layer = 0; layer < o_.n_layer; ++layer) {
      if (is_latent()) {
        latent_attention(layer);
      } else {
        attention(layer);
      }
      feed_forward(layer);
    }
    return std::move(tensors_);
  }

 private:
  bool is(std::string_view architecture) const { return o_.architecture == architecture; }
  bool is_latent() const { return is("deepseek2"); }
  bool has_norm_biases() const { return is("phimoe"); }
  bool has_qkv_biases() const { return o_.qkv_bias || is("qwen2") || is("qwen2moe") || is("phimoe"); }
  int32_t expert_rows() const { return o_.n_ff_expert > 0 ? o_.n_ff_expert : o_.n_ff; }
  // Rows that K-quants' blocks do not divide are stored as quantised files store them.
  static ggml_type fitting(ggml_type type, int64_t row) {
    if (row % ggml_blck_size(type) == 0) return type;
    return row % ggml_blck_size(GGML_TYPE_Q8_0) == 0 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
  }

  ggml_type head_type() const { return o_.mixed_types ? GGML_TYPE_Q6_K : o_.type; }
  ggml_type mixed(int32_t layer, ggml_type plain) const {
    return o_.mixed_types && layer % 2 == 0 ? GGML_TYPE_Q6_K : plain;
  }

  std::vector<float> random(const std::string& role, int64_t count, float mean, float deviation) const {
    Normal normal(o_.seed, role);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = mean + deviation * normal.next();
    return values;
  }

  void vector(const std::string& name, int64_t size, float mean, float deviation) {
    tensors_.push_back(
        {name, GGML_TYPE_F32, {size}, as_bytes(random(name, size, mean, deviation), GGML_TYPE_F32, size)});
  }

  void norm(const std::string& name, int64_t size) {
    vector(name + ".weight", size, 1.0F, 0.1F);
    if (has_norm_biases()) vector(name + ".bias", size, 0, 0.2F);
  }

  void matrix(const std::string& name, ggml_type type, int64_t row, int64_t n_rows, float deviation) {
    store(name, type, {row, n_rows}, random(name, row * n_rows, 0, deviation));
  }

  void store(const std::string& name, ggml_type wanted, const std::vector<int64_t>& shape,
             const std::vector<float>& values) {
    const ggml_type type = fitting(wanted, shape[0]);
    tensors_.push_back({name, type, shape, as_bytes(values, type, shape[0])});
  }

  // Like Llama 3's: high frequencies stay, low ones are slowed down.
  void factors(const std::string& name, float step) {
    std::vector<float> values(static_cast<size_t>(o_.head_dim / 2));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = i < values.size() / 2 ? 1.0F : 1.0F + step * static_cast<float>(i);
    tensors_.push_back({name, GGML_TYPE_F32, {o_.head_dim / 2}, as_bytes(values, GGML_TYPE_F32, o_.head_dim / 2)});
  }

  void attention(int32_t layer) {
    const std::string prefix = fmt::format("blk.{}.", layer);
    const int64_t q_width = int64_t{o_.n_head} * o_.head_dim;
    const int64_t kv_width = int64_t{o_.n_head_kv} * o_.head_dim;
    const float deviation = 1.0F / std::sqrt(static_cast<float>(o_.n_embd));
    norm(prefix + "attn_norm", o_.n_embd);
    matrix(prefix + "attn_q.weight", o_.type, o_.n_embd, q_width, 1.5F * deviation);
    matrix(prefix + "attn_k.weight", o_.type, o_.n_embd, kv_width, 1.5F * deviation);
    matrix(prefix + "attn_v.weight", mixed(layer, o_.type), o_.n_embd, kv_width, deviation);
    if (is("qwen3") || is("qwen3moe")) {
      vector(prefix + "attn_q_norm.weight", o_.head_dim, 1.0F, 0.1F);
      vector(prefix + "attn_k_norm.weight", o_.head_dim, 1.0F, 0.1F);
    }
    if (has_qkv_biases()) {
      vector(prefix + "attn_q.bias", q_width, 0, 0.3F);
      vector(prefix + "attn_k.bias", kv_width, 0, 0.3F);
      vector(prefix + "attn_v.bias", kv_width, 0, 0.3F);
    }
    if (has_norm_biases()) vector(prefix + "attn_output.bias", o_.n_embd, 0, 0.1F);
    matrix(prefix + "attn_output.weight", o_.type, q_width, o_.n_embd,
           kBranchScale / std::sqrt(static_cast<float>(q_width)));
  }

  void latent_attention(int32_t layer) {
    const TinyLatent& latent = o_.latent;
    const std::string prefix = fmt::format("blk.{}.", layer);
    const auto deviation = [](int64_t row) { return 1.0F / std::sqrt(static_cast<float>(row)); };
    const int64_t q_width = int64_t{latent.nope_dim + latent.rope_dim} * o_.n_head;
    norm(prefix + "attn_norm", o_.n_embd);
    if (latent.q_rank == 0) {
      matrix(prefix + "attn_q.weight", o_.type, o_.n_embd, q_width, deviation(o_.n_embd));
    } else {
      matrix(prefix + "attn_q_a.weight", o_.type, o_.n_embd, latent.q_rank, deviation(o_.n_embd));
      norm(prefix + "attn_q_a_norm", latent.q_rank);
      matrix(prefix + "attn_q_b.weight", o_.type, latent.q_rank, q_width, deviation(latent.q_rank));
    }
    matrix(prefix + "attn_kv_a_mqa.weight", o_.type, o_.n_embd, latent.kv_rank + latent.rope_dim, deviation(o_.n_embd));
    norm(prefix + "attn_kv_a_norm", latent.kv_rank);
    expand_latent(prefix, deviation(latent.kv_rank));
    const int64_t value_width = int64_t{latent.value_dim} * o_.n_head;
    matrix(prefix + "attn_output.weight", o_.type, value_width, o_.n_embd, kBranchScale * deviation(value_width));
  }

  // From the latent state to each head's keys, then its values: one matrix, or keys transposed and values.
  void expand_latent(const std::string& prefix, float deviation) {
    const TinyLatent& latent = o_.latent;
    const int64_t rank = latent.kv_rank;
    const int64_t head_rows = latent.nope_dim + latent.value_dim;
    const std::vector<float> all = random(prefix + "attn_kv_b", rank * head_rows * o_.n_head, 0, deviation);
    if (!latent.split_kv_b) {
      store(prefix + "attn_kv_b.weight", o_.type, {rank, head_rows * o_.n_head}, all);
      return;
    }
    std::vector<float> keys;
    std::vector<float> values;
    for (int64_t head = 0; head < o_.n_head; ++head) {
      const float* rows = all.data() + head * head_rows * rank;
      for (int64_t r = 0; r < rank; ++r) {
        for (int64_t j = 0; j < latent.nope_dim; ++j) keys.push_back(rows[j * rank + r]);
      }
      values.insert(values.end(), rows + latent.nope_dim * rank, rows + head_rows * rank);
    }
    store(prefix + "attn_k_b.weight", o_.type, {latent.nope_dim, rank, o_.n_head}, keys);
    store(prefix + "attn_v_b.weight", o_.type, {rank, latent.value_dim, o_.n_head}, values);
  }

  void feed_forward(int32_t layer) {
    const std::string prefix = fmt::format("blk.{}.", layer);
    const float in_deviation = 1.0F / std::sqrt(static_cast<float>(o_.n_embd));
    const auto down_deviation = [](int32_t rows) { return kBranchScale / std::sqrt(static_cast<float>(rows)); };
    const ggml_type down_type = o_.down_type.value_or(mixed(layer, o_.type));
    norm(prefix + "ffn_norm", o_.n_embd);
    if (o_.n_expert == 0 || layer < o_.n_dense_lead) {
      matrix(prefix + "ffn_gate.weight", o_.type, o_.n_embd, o_.n_ff, in_deviation);
      matrix(prefix + "ffn_up.weight", o_.type, o_.n_embd, o_.n_ff, in_deviation);
      matrix(prefix + "ffn_down.weight", down_type, o_.n_ff, o_.n_embd, down_deviation(o_.n_ff));
      return;
    }
    const int32_t rows = expert_rows();
    matrix(prefix + "ffn_gate_inp.weight", GGML_TYPE_F32, o_.n_embd, o_.n_expert, 2.0F * in_deviation);
    if (o_.routing.bias) vector(prefix + "exp_probs_b.bias", o_.n_expert, 0, 0.2F);
    if (o_.fused_gate_up) {
      experts(prefix, "gate_up", {"gate", "up"}, o_.type, o_.n_embd, rows, in_deviation);
    } else {
      experts(prefix, "gate", {"gate"}, o_.type, o_.n_embd, rows, in_deviation);
      experts(prefix, "up", {"up"}, o_.type, o_.n_embd, rows, in_deviation);
    }
    // However their weights are scaled, experts add as much.
    experts(prefix, "down", {"down"}, down_type, rows, o_.n_embd, down_deviation(rows) / o_.routing.scale);
    if (o_.n_ff_shared == 0) return;
    if (is("qwen2moe")) vector(prefix + "ffn_gate_inp_shexp.weight", o_.n_embd, 0, in_deviation);
    matrix(prefix + "ffn_gate_shexp.weight", o_.type, o_.n_embd, o_.n_ff_shared, in_deviation);
    matrix(prefix + "ffn_up_shexp.weight", o_.type, o_.n_embd, o_.n_ff_shared, in_deviation);
    matrix(prefix + "ffn_down_shexp.weight", down_type, o_.n_ff_shared, o_.n_embd, down_deviation(o_.n_ff_shared));
  }

  // One role of all experts of a layer; `parts` are the roles whose rows follow each other in each expert.
  void experts(const std::string& prefix, const std::string& name, const std::vector<std::string>& parts,
               ggml_type wanted, int64_t row, int64_t n_rows, float deviation) {
    const ggml_type type = fitting(wanted, row);
    const auto n_parts = static_cast<int64_t>(parts.size());
    Tensor stacked{prefix + "ffn_" + name + "_exps.weight", type, {row, n_rows * n_parts, o_.n_expert}, {}};
    for (int32_t expert = 0; expert < o_.n_expert; ++expert) {
      std::vector<uint8_t> bytes;
      for (const std::string& part : parts) {
        const std::string role = fmt::format("{}{}.{}", prefix, part, expert);
        const std::vector<uint8_t> rows = as_bytes(random(role, row * n_rows, 0, deviation), type, row);
        bytes.insert(bytes.end(), rows.begin(), rows.end());
      }
      if (o_.separate_experts) {
        const std::string own_name = fmt::format("{}ffn_{}.{}.weight", prefix, name, expert);
        tensors_.push_back({own_name, type, {row, n_rows * n_parts}, std::move(bytes)});
      } else {
        stacked.data.insert(stacked.data.end(), bytes.begin(), bytes.end());
      }
    }
    if (!o_.separate_experts) tensors_.push_back(std::move(stacked));
  }

  const TinyModelOptions& o_;
  int64_t n_vocab_;
  std::vector<Tensor> tensors_;
};

Status check_options(const TinyModelOptions& o) {
  if (o.n_layer < 1 || o.n_embd < 1 || o.n_ff < 1 || o.n_head_kv < 1 || o.head_dim < 2 || o.n_shards < 1 ||
      o.n_expert < 0) {
    return usage_error("a tiny model needs positive sizes");
  }
  if (o.architecture != "deepseek2" && o.n_head % o.n_head_kv != 0)
    return usage_error("n_head must be a multiple of n_head_kv");
  if (o.n_expert > 0 && (o.n_expert_used < 1 || o.n_expert_used > o.n_expert)) {
    return usage_error("n_expert_used must be between 1 and n_expert");
  }
  if (o.n_expert == 0 && (o.fused_gate_up || o.separate_experts)) {
    return usage_error("fused_gate_up and separate_experts are layouts of experts; n_expert is 0");
  }
  const auto divides = [](ggml_type type, int64_t row) { return row % ggml_blck_size(type) == 0; };
  const ggml_type down = o.down_type.value_or(o.type);
  const ggml_type more = o.mixed_types ? GGML_TYPE_Q6_K : o.type;
  if (o.architecture != "llama") return {};  // rows of many lengths: what does not fit is stored otherwise
  if (!divides(o.type, o.n_embd) || !divides(o.type, int64_t{o.n_head} * o.head_dim) || !divides(down, o.n_ff) ||
      !divides(more, o.n_embd) || (!o.down_type && !divides(more, o.n_ff))) {
    return usage_error(fmt::format("a block of {} does not divide every row (n_embd {}, n_ff {}, n_head * head_dim {})",
                                   ggml_type_name(o.type), o.n_embd, o.n_ff, o.n_head * o.head_dim));
  }
  return {};
}

void set_u32(gguf_context* out, const std::string& key, int32_t value) {
  gguf_set_val_u32(out, key.c_str(), static_cast<uint32_t>(value));
}

void copy_vocabulary(const gguf_context* from, gguf_context* out) {
  // All of the source's metadata, less what describes its own shape.
  gguf_set_kv(out, from);
  for (int64_t i = gguf_get_n_kv(out) - 1; i >= 0; --i) {
    const std::string key = gguf_get_key(out, i);
    if (!key.starts_with("tokenizer.")) gguf_remove_key(out, key.c_str());
  }
}

// Keeps the vocabulary's first tokens (all: 0) and adds padding.
void resize_vocabulary(const gguf_context* from, int32_t n_tokens, int32_t n_padding, gguf_context* out) {
  if (n_tokens == 0 && n_padding == 0) return;
  constexpr int32_t kUnused = 5;  // llama.cpp's token type
  const int64_t tokens_key = gguf_find_key(from, "tokenizer.ggml.tokens");
  const int64_t types_key = gguf_find_key(from, "tokenizer.ggml.token_type");
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  const size_t kept = n_tokens > 0 ? static_cast<size_t>(n_tokens) : gguf_get_arr_n(from, tokens_key);
  for (size_t i = 0; i < kept; ++i) {
    tokens.emplace_back(gguf_get_arr_str(from, tokens_key, i));
    types.push_back(static_cast<const int32_t*>(gguf_get_arr_data(from, types_key))[i]);
  }
  for (int32_t i = 0; i < n_padding; ++i) {
    tokens.push_back(fmt::format("[PAD {}]", i));
    types.push_back(kUnused);
  }
  std::vector<const char*> pointers;
  for (const std::string& token : tokens) pointers.push_back(token.c_str());
  gguf_set_arr_str(out, "tokenizer.ggml.tokens", pointers.data(), pointers.size());
  gguf_set_arr_data(out, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
  if (n_tokens > 0) gguf_set_arr_str(out, "tokenizer.ggml.merges", nullptr, 0);
}

void write_heads(const TinyModelOptions& o, const std::string& prefix, gguf_context* out) {
  const auto set = [&](std::string_view key, int32_t value) { set_u32(out, prefix + std::string(key), value); };
  set("attention.head_count", o.n_head);
  if (o.architecture != "deepseek2") {
    set("attention.head_count_kv", o.n_head_kv);
    set("attention.key_length", o.head_dim);
    set("attention.value_length", o.head_dim);
    set("rope.dimension_count", o.head_dim);
    return;
  }
  const TinyLatent& latent = o.latent;
  set("attention.q_lora_rank", latent.q_rank);
  set("attention.kv_lora_rank", latent.kv_rank);
  set("rope.dimension_count", latent.rope_dim);
  if (latent.split_kv_b) {
    set("attention.head_count_kv", 1);
    set("attention.key_length", latent.kv_rank + latent.rope_dim);
    set("attention.value_length", latent.kv_rank);
    set("attention.key_length_mla", latent.nope_dim + latent.rope_dim);
    set("attention.value_length_mla", latent.value_dim);
  } else {
    set("attention.head_count_kv", o.n_head);
    set("attention.key_length", latent.nope_dim + latent.rope_dim);
    set("attention.value_length", latent.value_dim);
  }
}

void write_rope(const TinyModelOptions& o, const std::string& prefix, gguf_context* out) {
  const TinyRope& rope = o.rope;
  const auto number = [&](std::string_view key, float value) {
    gguf_set_val_f32(out, (prefix + std::string(key)).c_str(), value);
  };
  number("rope.freq_base", o.rope_freq_base);
  if (rope.type != nullptr) gguf_set_val_str(out, (prefix + "rope.scaling.type").c_str(), rope.type);
  if (rope.factor != 1) number("rope.scaling.factor", rope.factor);
  if (rope.attn_factor != 1) number("rope.scaling.attn_factor", rope.attn_factor);
  if (rope.yarn_log_multiplier != 0) number("rope.scaling.yarn_log_multiplier", rope.yarn_log_multiplier);
  if (rope.original_context > 0) set_u32(out, prefix + "rope.scaling.original_context_length", rope.original_context);
}

void write_experts(const TinyModelOptions& o, const std::string& prefix, gguf_context* out) {
  const auto set = [&](std::string_view key, int32_t value) { set_u32(out, prefix + std::string(key), value); };
  const TinyRouting& routing = o.routing;
  const int32_t rows = o.n_ff_expert > 0 ? o.n_ff_expert : o.n_ff;
  const bool is_deepseek = o.architecture.starts_with("deepseek");
  if (o.n_expert > 0) {
    set("expert_count", o.n_expert);
    set("expert_used_count", o.n_expert_used);
  }
  if (is_deepseek) {
    set("leading_dense_block_count", o.n_expert == 0 ? o.n_layer : o.n_dense_lead);
    set("expert_shared_count", o.n_ff_shared / rows);
    gguf_set_val_f32(out, (prefix + "expert_weights_scale").c_str(), routing.scale);
  }
  if (is_deepseek || o.n_ff_expert > 0) set("expert_feed_forward_length", rows);
  if (o.architecture == "qwen2moe") set("expert_shared_feed_forward_length", o.n_ff_shared);
  if (o.architecture == "deepseek2")
    gguf_set_val_bool(out, (prefix + "expert_weights_norm").c_str(), routing.normalised);
  if (routing.gating > 0) set("expert_gating_func", routing.gating);
  if (routing.n_group > 0) {
    set("expert_group_count", routing.n_group);
    set("expert_group_used_count", routing.n_group_used);
  }
}

void write_shape(const TinyModelOptions& o, int64_t n_vocab, gguf_context* out) {
  const std::string prefix = o.architecture + ".";
  const auto set = [&](std::string_view key, int32_t value) { set_u32(out, prefix + std::string(key), value); };
  gguf_set_val_str(out, "general.architecture", o.architecture.c_str());
  gguf_set_val_str(out, "general.name", "random weights for tests");
  set("context_length", o.n_ctx_train);
  set("embedding_length", o.n_embd);
  set("block_count", o.n_layer);
  set("feed_forward_length", o.n_ff);
  write_heads(o, prefix, out);
  write_rope(o, prefix, out);
  gguf_set_val_f32(out, (prefix + "attention.layer_norm_rms_epsilon").c_str(), 1e-5F);
  set("vocab_size", static_cast<int32_t>(n_vocab));
  if (o.window > 0) set("attention.sliding_window", o.window);
  write_experts(o, prefix, out);
}

void add_tensor(Tensor& tensor, ggml_context* shapes, gguf_context* out) {
  ggml_tensor* shape = ggml_new_tensor(shapes, tensor.type, static_cast<int>(tensor.shape.size()), tensor.shape.data());
  ggml_set_name(shape, tensor.name.c_str());
  CHECK(ggml_nbytes(shape) == tensor.data.size());
  shape->data = tensor.data.data();
  gguf_add_tensor(out, shape);
}

}  // namespace

std::string tiny_model_shard_path(const std::string& path, int32_t shard, int32_t n_shards) {
  constexpr std::string_view kSuffix = ".gguf";
  const std::string stem = path.ends_with(kSuffix) ? path.substr(0, path.size() - kSuffix.size()) : path;
  return fmt::format("{}-{:05}-of-{:05}.gguf", stem, shard + 1, n_shards);
}

Result<std::string> write_tiny_model(const std::string& path, const TinyModelOptions& options) {
  RETURN_IF_ERROR(check_options(options));
  const GgufPtr vocab(gguf_init_from_file(options.vocab_path.c_str(), {/*no_alloc=*/true, /*ctx=*/nullptr}));
  if (vocab == nullptr) return file_error(fmt::format("cannot read the vocabulary of {}", options.vocab_path));
  const int64_t tokens_key = gguf_find_key(vocab.get(), "tokenizer.ggml.tokens");
  if (tokens_key < 0) return file_error(fmt::format("{} has no vocabulary", options.vocab_path));
  const auto n_available = static_cast<int64_t>(gguf_get_arr_n(vocab.get(), tokens_key));
  if (options.n_tokens > n_available) return usage_error(fmt::format("the vocabulary has {} tokens", n_available));
  const int64_t n_vocab = (options.n_tokens > 0 ? options.n_tokens : n_available) + options.n_padding;

  std::vector<Tensor> tensors = Builder(options, n_vocab).build();
  const auto n_shards = static_cast<size_t>(options.n_shards);
  if (n_shards > tensors.size()) return usage_error(fmt::format("{} shards for {} tensors", n_shards, tensors.size()));

  const GgmlPtr shapes(ggml_init({tensors.size() * ggml_tensor_overhead(), nullptr, /*no_alloc=*/true}));
  for (size_t shard = 0; shard < n_shards; ++shard) {
    const GgufPtr out(gguf_init_empty());
    if (shard == 0) {
      copy_vocabulary(vocab.get(), out.get());
      resize_vocabulary(vocab.get(), options.n_tokens, options.n_padding, out.get());
      write_shape(options, n_vocab, out.get());
      if (!options.chat_template.empty()) {
        gguf_set_val_str(out.get(), "tokenizer.chat_template", options.chat_template.c_str());
      }
    }
    if (n_shards > 1) {
      gguf_set_val_u16(out.get(), "split.no", static_cast<uint16_t>(shard));
      gguf_set_val_u16(out.get(), "split.count", static_cast<uint16_t>(n_shards));
      gguf_set_val_i32(out.get(), "split.tensors.count", static_cast<int32_t>(tensors.size()));
    }
    for (size_t i = tensors.size() * shard / n_shards; i < tensors.size() * (shard + 1) / n_shards; ++i) {
      add_tensor(tensors[i], shapes.get(), out.get());
    }
    const std::string file =
        n_shards == 1 ? path : tiny_model_shard_path(path, static_cast<int32_t>(shard), options.n_shards);
    if (!gguf_write_to_file(out.get(), file.c_str(), /*only_meta=*/false)) {
      return file_error(fmt::format("cannot write {}", file));
    }
  }
  return n_shards == 1 ? path : tiny_model_shard_path(path, 0, options.n_shards);
}

}  // namespace drafthorse
