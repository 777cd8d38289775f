#include "widen/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "base/check.h"

namespace drafthorse {

namespace {

struct WeightType {
  std::string_view name;
  ggml_type type;
  uint32_t file_type;  // as general.file_type counts them
};

constexpr std::array kWeightTypes = {
    WeightType{"F32", GGML_TYPE_F32, 0},    WeightType{"F16", GGML_TYPE_F16, 1},
    WeightType{"BF16", GGML_TYPE_BF16, 32}, WeightType{"Q8_0", GGML_TYPE_Q8_0, 7},
    WeightType{"Q6_K", GGML_TYPE_Q6_K, 18}, WeightType{"Q5_K", GGML_TYPE_Q5_K, 16},
    WeightType{"Q4_K", GGML_TYPE_Q4_K, 14}, WeightType{"Q3_K", GGML_TYPE_Q3_K, 11},
    WeightType{"Q2_K", GGML_TYPE_Q2_K, 10}, WeightType{"Q4_0", GGML_TYPE_Q4_0, 2},
};

// What the numbers along one dimension of a tensor belong to, and so how often they are repeated.
enum class Axis { kFixed, kChannels, kHeads, kKvHeads, kFfn };

struct Role {
  std::string_view name;         // of the tensor, without layer and expert
  Axis columns;                  // of a matrix: what it reads; of a vector: what it is
  Axis rows = Axis::kFixed;      // of a matrix: what it gives
  bool sums_columns = true;      // a product with a vector; the embedding is a table of rows
  bool writes_residual = false;  // zero in extra layers
  bool keeps_f32 = false;
};

constexpr std::array kRoles = {
    Role{.name = "token_embd.weight", .columns = Axis::kChannels, .sums_columns = false},
    Role{.name = "output_norm.weight", .columns = Axis::kChannels},
    Role{.name = "output.weight", .columns = Axis::kChannels},
    Role{.name = "rope_freqs.weight", .columns = Axis::kFixed},
    Role{.name = "attn_norm.weight", .columns = Axis::kChannels},
    Role{.name = "attn_q.weight", .columns = Axis::kChannels, .rows = Axis::kHeads},
    Role{.name = "attn_k.weight", .columns = Axis::kChannels, .rows = Axis::kKvHeads},
    Role{.name = "attn_v.weight", .columns = Axis::kChannels, .rows = Axis::kKvHeads},
    Role{.name = "attn_q.bias", .columns = Axis::kHeads},
    Role{.name = "attn_k.bias", .columns = Axis::kKvHeads},
    Role{.name = "attn_v.bias", .columns = Axis::kKvHeads},
    Role{.name = "attn_output.weight", .columns = Axis::kHeads, .rows = Axis::kChannels, .writes_residual = true},
    Role{.name = "attn_output.bias", .columns = Axis::kChannels, .writes_residual = true},
    Role{.name = "ffn_norm.weight", .columns = Axis::kChannels},
    Role{.name = "ffn_gate_inp.weight", .columns = Axis::kChannels, .keeps_f32 = true},
    Role{.name = "ffn_gate.weight", .columns = Axis::kChannels, .rows = Axis::kFfn},
    Role{.name = "ffn_up.weight", .columns = Axis::kChannels, .rows = Axis::kFfn},
    Role{.name = "ffn_down.weight", .columns = Axis::kFfn, .rows = Axis::kChannels, .writes_residual = true},
    Role{.name = "ffn_gate_exps.weight", .columns = Axis::kChannels, .rows = Axis::kFfn},
    Role{.name = "ffn_up_exps.weight", .columns = Axis::kChannels, .rows = Axis::kFfn},
    Role{.name = "ffn_down_exps.weight", .columns = Axis::kFfn, .rows = Axis::kChannels, .writes_residual = true},
    Role{.name = "ffn_gate.bias", .columns = Axis::kFfn},
    Role{.name = "ffn_up.bias", .columns = Axis::kFfn},
    Role{.name = "ffn_down.bias", .columns = Axis::kChannels, .writes_residual = true},
};

struct Name {
  int64_t layer = -1;    // -1: belongs to no layer
  std::string in_layer;  // without "blk.N."
  const Role* role = nullptr;
};

bool is_number(std::string_view text) {
  return !text.empty() && text.size() < 10 &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); });
}

Name parse_name(const std::string& full) {
  Name name{.in_layer = full};
  if (full.starts_with("blk.")) {
    const size_t dot = full.find('.', 4);
    const std::string_view number = std::string_view(full).substr(4, dot == std::string::npos ? 0 : dot - 4);
    if (!is_number(number)) return name;
    name.layer = std::stoll(std::string(number));
    name.in_layer = full.substr(dot + 1);
  }
  // One tensor per expert: "ffn_up.3.weight" plays the role of "ffn_up.weight".
  std::string role_name = name.in_layer;
  const size_t first = role_name.find('.');
  const size_t last = role_name.rfind('.');
  if (first != last && is_number(std::string_view(role_name).substr(first + 1, last - first - 1))) {
    role_name.erase(first, last - first);
  }
  const auto role = std::find_if(kRoles.begin(), kRoles.end(), [&](const Role& r) { return r.name == role_name; });
  if (role != kRoles.end()) name.role = &*role;
  return name;
}

class Planner {
 public:
  Planner(const GgufSource& source, const WidenOptions& options) : source_(source), options_(options) {}

  Result<WidenPlan> plan() {
    RETURN_IF_ERROR(read_sizes());
    ASSIGN_OR_RETURN(plan_.embd_copies, copies(options_.n_embd, n_embd_, "--embd", "channels"));
    ASSIGN_OR_RETURN(plan_.ff_copies, copies(options_.n_ff, n_ff_, "--ff", "FFN rows"));
    if (!(options_.noise >= 0 && options_.noise <= 1)) return usage_error("--noise must be between 0 and 1");
    if (options_.n_extra_layers < 0) return usage_error("--extra-layers must not be negative");
    plan_.n_embd = n_embd_ * plan_.embd_copies;
    plan_.n_ff = n_ff_ * plan_.ff_copies;
    plan_.n_layer = n_layer_ + options_.n_extra_layers;
    for (const SourceTensor& tensor : source_.tensors()) RETURN_IF_ERROR(add(tensor, parse_name(tensor.name)));
    if (source_.find("output.weight") == nullptr) RETURN_IF_ERROR(untie_head());
    for (int64_t layer = n_layer_; layer < plan_.n_layer; ++layer) RETURN_IF_ERROR(add_extra_layer(layer));
    return std::move(plan_);
  }

 private:
  Status read_sizes() {
    const std::string architecture = source_.text("general.architecture").value_or("");
    if (architecture != "llama") {
      return file_error(fmt::format("{} is of architecture '{}'; only 'llama' can be widened (Mixtral's too is llama)",
                                    source_.path(), architecture));
    }
    const auto read = [&](const char* key, int64_t& value) {
      const std::optional<int64_t> found = source_.integer(key);
      if (!found || *found < 1) return file_error(fmt::format("{}: {} is not a positive number", source_.path(), key));
      value = *found;
      return Status();
    };
    RETURN_IF_ERROR(read("llama.block_count", n_layer_));
    RETURN_IF_ERROR(read("llama.embedding_length", n_embd_));
    RETURN_IF_ERROR(read("llama.feed_forward_length", n_ff_));
    RETURN_IF_ERROR(read("llama.attention.head_count", n_head_));
    n_head_kv_ = source_.integer("llama.attention.head_count_kv").value_or(n_head_);
    head_dim_ = source_.integer("llama.attention.key_length").value_or(n_embd_ / n_head_);
    if (n_head_kv_ < 1 || n_head_ % n_head_kv_ != 0) {
      return file_error(
          fmt::format("{}: {} query heads cannot share {} KV heads", source_.path(), n_head_, n_head_kv_));
    }
    return {};
  }

  static Result<int64_t> copies(int64_t wanted, int64_t have, const char* flag, const char* what) {
    if (wanted == 0) return int64_t{1};
    if (wanted < 0 || wanted % have != 0) {
      return usage_error(fmt::format("{} {} is not a multiple of the file's {} {}", flag, wanted, have, what));
    }
    return wanted / have;
  }

  int64_t size_of(Axis axis) const {
    switch (axis) {
      case Axis::kChannels:
        return n_embd_;
      case Axis::kHeads:
        return n_head_ * head_dim_;
      case Axis::kKvHeads:
        return n_head_kv_ * head_dim_;
      case Axis::kFfn:
        return n_ff_;
      case Axis::kFixed:
        break;
    }
    return 0;  // any
  }

  int64_t copies_of(Axis axis) const {
    if (axis == Axis::kFixed) return 1;
    return axis == Axis::kFfn ? plan_.ff_copies : plan_.embd_copies;
  }

  ggml_type type_of(const Role& role) const {
    if (role.keeps_f32) return GGML_TYPE_F32;
    const bool ffn = role.columns == Axis::kFfn || role.rows == Axis::kFfn;
    return ffn ? options_.type : options_.rest_type.value_or(options_.type);
  }

  Status add(const SourceTensor& tensor, const Name& name) { return add_as(tensor, name, tensor.name, false); }

  Status add_as(const SourceTensor& tensor, const Name& name, const std::string& new_name, bool extra_layer) {
    if (name.role == nullptr) {
      return file_error(fmt::format("{}: how to widen {} is not known", source_.path(), tensor.name));
    }
    const Role& role = *name.role;
    const bool matrix = tensor.n_dims > 1;
    const int64_t want_columns = size_of(role.columns);
    const int64_t want_rows = size_of(role.rows);
    if ((want_columns != 0 && tensor.n_columns != want_columns) || (want_rows != 0 && tensor.n_rows != want_rows)) {
      return file_error(fmt::format("{}: {} is {} x {}, which does not fit the sizes in the metadata", source_.path(),
                                    tensor.name, tensor.n_columns, tensor.n_rows));
    }
    PlannedTensor planned{.name = new_name,
                          .source = &tensor,
                          .type = matrix ? type_of(role) : GGML_TYPE_F32,
                          .column_copies = copies_of(role.columns),
                          .row_copies = copies_of(role.rows)};
    if (matrix && role.sums_columns) {
      planned.scale = 1.0F / static_cast<float>(planned.column_copies);
      if (planned.column_copies > 1 && !role.keeps_f32) planned.noise = options_.noise;
    }
    if (extra_layer && role.writes_residual) planned.scale = planned.noise = 0;
    const int64_t block = ggml_blck_size(planned.type);
    if (planned.n_columns() % block != 0) {
      return usage_error(
          fmt::format("{} would have rows of {} numbers, which blocks of {} ({}) do not divide; choose "
                      "{} as a multiple of {} or another --type",
                      new_name, planned.n_columns(), block, ggml_type_name(planned.type),
                      role.columns == Axis::kFfn ? "--ff" : "--embd", block));
    }
    plan_.tensors.push_back(std::move(planned));
    return {};
  }

  Status untie_head() {
    const SourceTensor* embeddings = source_.find("token_embd.weight");
    if (embeddings == nullptr) return file_error(fmt::format("{} has no token_embd.weight", source_.path()));
    return add_as(*embeddings, parse_name("output.weight"), "output.weight", false);
  }

  Status add_extra_layer(int64_t layer) {
    const int64_t model = layer % n_layer_;
    for (const SourceTensor& tensor : source_.tensors()) {
      const Name name = parse_name(tensor.name);
      if (name.layer == model)
        RETURN_IF_ERROR(add_as(tensor, name, fmt::format("blk.{}.{}", layer, name.in_layer), true));
    }
    return {};
  }

  const GgufSource& source_;
  const WidenOptions& options_;
  WidenPlan plan_;
  int64_t n_layer_ = 0;
  int64_t n_embd_ = 0;
  int64_t n_ff_ = 0;
  int64_t n_head_ = 0;
  int64_t n_head_kv_ = 0;
  int64_t head_dim_ = 0;
};

}  // namespace

Result<WidenPlan> plan_widening(const GgufSource& source, const WidenOptions& options) {
  return Planner(source, options).plan();
}

void write_metadata(const GgufSource& source, const WidenPlan& plan, const WidenOptions& options, gguf_context* out) {
  gguf_set_kv(out, source.metadata());
  // Sizes that are no longer true, and an alignment that the new file does not have.
  for (const char* key :
       {"general.alignment", "general.size_label", "split.no", "split.count", "split.tensors.count"}) {
    gguf_remove_key(out, key);
  }
  const auto set = [&](const char* key, int64_t value) { gguf_set_val_u32(out, key, static_cast<uint32_t>(value)); };
  const auto multiply = [&](const char* key, int64_t factor) {
    if (const std::optional<int64_t> value = source.integer(key)) set(key, *value * factor);
  };
  set("llama.block_count", plan.n_layer);
  set("llama.embedding_length", plan.n_embd);
  set("llama.feed_forward_length", plan.n_ff);
  multiply("llama.expert_feed_forward_length", plan.ff_copies);
  multiply("llama.attention.head_count", plan.embd_copies);
  multiply("llama.attention.head_count_kv", plan.embd_copies);
  const auto type = std::find_if(kWeightTypes.begin(), kWeightTypes.end(),
                                 [&](const WeightType& t) { return t.type == options.type; });
  if (type != kWeightTypes.end()) gguf_set_val_u32(out, "general.file_type", type->file_type);
  if (plan.embd_copies == 1 && plan.ff_copies == 1 && options.n_extra_layers == 0) return;
  const std::string name = fmt::format("{} (widened: {} channels x{}, FFN {} x{}, {} untrained layers)",
                                       source.text("general.name").value_or("model"), plan.n_embd, plan.embd_copies,
                                       plan.n_ff, plan.ff_copies, options.n_extra_layers);
  gguf_set_val_str(out, "general.name", name.c_str());
  set("drafthorse.widened.embd_copies", plan.embd_copies);
  set("drafthorse.widened.ff_copies", plan.ff_copies);
  set("drafthorse.widened.extra_layers", options.n_extra_layers);
  gguf_set_val_f32(out, "drafthorse.widened.noise", options.noise);
}

std::optional<ggml_type> parse_weight_type(std::string_view name) {
  std::string upper(name);
  std::transform(upper.begin(), upper.end(), upper.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  for (const WeightType& type : kWeightTypes) {
    if (type.name == upper) return type.type;
  }
  return std::nullopt;
}

std::string weight_type_names() {
  std::vector<std::string_view> names;
  for (const WeightType& type : kWeightTypes) names.push_back(type.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace drafthorse
