#include "widen/plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <numeric>

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

// A size in the metadata, without the architecture's name, and what it counts.
struct SizeKey {
  std::string_view name;
  Axis axis;
};

constexpr std::array kSizeKeys = {
    SizeKey{"embedding_length", Axis::kChannels},
    SizeKey{"feed_forward_length", Axis::kFfn},
    SizeKey{"expert_feed_forward_length", Axis::kExpertFfn},
    SizeKey{"expert_shared_feed_forward_length", Axis::kSharedFfn},
    SizeKey{"attention.head_count", Axis::kHeads},
    SizeKey{"attention.head_count_kv", Axis::kKvHeads},
    SizeKey{"attention.q_lora_rank", Axis::kQueryState},
};

struct Name {
  int64_t layer = -1;    // -1: belongs to no layer
  std::string in_layer;  // without "blk.N."
  const TensorRole* role = nullptr;
};

bool is_number(std::string_view text) {
  return !text.empty() && text.size() < 10 &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); });
}

Name parse_name(const Architecture& architecture, const std::string& full) {
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
  name.role = architecture.find(role_name);
  return name;
}

class Planner {
 public:
  Planner(const GgufSource& source, const WidenOptions& options) : source_(source), options_(options) {}

  Result<WidenPlan> plan() {
    ASSIGN_OR_RETURN(plan_.source, read_shape(source_));
    const SourceShape& shape = plan_.source;
    ASSIGN_OR_RETURN(plan_.embd_copies, copies(options_.n_embd, shape.size(Axis::kChannels), "--embd", "channels"));
    ASSIGN_OR_RETURN(plan_.ff_copies, copies(options_.n_ff, shape.n_ff(), "--ff", "FFN rows"));
    if (!(options_.noise >= 0 && options_.noise <= 1)) return usage_error("--noise must be between 0 and 1");
    if (options_.n_extra_layers < 0) return usage_error("--extra-layers must not be negative");
    plan_.n_embd = shape.size(Axis::kChannels) * plan_.embd_copies;
    plan_.n_ff = shape.n_ff() * plan_.ff_copies;
    plan_.n_layer = shape.n_layer + options_.n_extra_layers;
    for (const SourceTensor& tensor : source_.tensors()) RETURN_IF_ERROR(add(tensor, parse(tensor.name)));
    if (source_.find("output.weight") == nullptr) RETURN_IF_ERROR(untie_head());
    for (int64_t layer = shape.n_layer; layer < plan_.n_layer; ++layer) RETURN_IF_ERROR(add_extra_layer(layer));
    return std::move(plan_);
  }

 private:
  Name parse(const std::string& name) const { return parse_name(*plan_.source.architecture, name); }

  static Result<int64_t> copies(int64_t wanted, int64_t have, const char* flag, const char* what) {
    if (wanted == 0) return int64_t{1};
    if (wanted < 0 || wanted % have != 0) {
      return usage_error(fmt::format("{} {} is not a multiple of the file's {} {}", flag, wanted, have, what));
    }
    return wanted / have;
  }

  // Of rows as long as the planned tensor's.
  Result<ggml_type> type_of(const TensorRole& role, const PlannedTensor& planned) const {
    if (role.kind == TensorKind::kVector || role.kind == TensorKind::kRouter) return GGML_TYPE_F32;
    const bool ffn = is_ffn(role.columns) || is_ffn(role.rows);
    const ggml_type type = ffn ? options_.type : options_.rest_type.value_or(options_.type);
    const auto fits = [&](ggml_type one) { return planned.n_columns() % ggml_blck_size(one) == 0; };
    if (fits(type)) return type;
    // Rows that no size makes longer, of one head's keys or of the latent state, as quantised files have them.
    if (role.columns == Axis::kFixed) return fits(GGML_TYPE_Q8_0) ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
    const int64_t block = ggml_blck_size(type);
    const bool by_ff = is_ffn(role.columns);
    const int64_t step = block / std::gcd(block, planned.source->n_columns);
    const int64_t have = by_ff ? plan_.source.n_ff() : plan_.source.size(Axis::kChannels);
    return usage_error(fmt::format(
        "{} would have rows of {} numbers, which blocks of {} ({}) do not divide; choose "
        "{} as a multiple of {} or another --type",
        planned.name, planned.n_columns(), block, ggml_type_name(type), by_ff ? "--ff" : "--embd", have * step));
  }

  Status check_shape(const SourceTensor& tensor, const TensorRole& role) const {
    const SourceShape& shape = plan_.source;
    const auto fits = [&](Axis axis, int64_t length) { return shape.size(axis) == 0 || length == shape.size(axis); };
    if (fits(role.columns, tensor.n_columns) && fits(role.rows, tensor.n_rows) && fits(role.slices, tensor.n_slices)) {
      return {};
    }
    const std::string slices = tensor.n_slices > 1 ? fmt::format(" x {}", tensor.n_slices) : "";
    return file_error(fmt::format("{}: {} is {} x {}{}, which does not fit the sizes in the metadata", source_.path(),
                                  tensor.name, tensor.n_columns, tensor.n_rows, slices));
  }

  Status add(const SourceTensor& tensor, const Name& name) { return add_as(tensor, name, tensor.name, false); }

  Status add_as(const SourceTensor& tensor, const Name& name, const std::string& new_name, bool extra_layer) {
    if (name.role == nullptr) {
      return file_error(fmt::format("{}: how to widen {} is not known", source_.path(), tensor.name));
    }
    const TensorRole& role = *name.role;
    RETURN_IF_ERROR(check_shape(tensor, role));
    PlannedTensor planned{.name = new_name,
                          .source = &tensor,
                          .column_copies = plan_.copies(role.columns),
                          .row_copies = plan_.copies(role.rows),
                          .slice_copies = plan_.copies(role.slices)};
    ASSIGN_OR_RETURN(planned.type, type_of(role, planned));
    if (role.kind == TensorKind::kMatrix || role.kind == TensorKind::kRouter) {
      planned.scale = 1.0F / static_cast<float>(planned.column_copies);
    }
    if (role.kind == TensorKind::kMatrix && planned.column_copies > 1) planned.noise = options_.noise;
    if (extra_layer && role.writes_residual) planned.scale = planned.noise = 0;
    if (name.layer == plan_.source.n_dense_lead && tensor.n_slices > 1 &&
        (role.columns == Axis::kExpertFfn || role.rows == Axis::kExpertFfn) && !extra_layer) {
      plan_.expert_bytes += planned.slice_bytes();
    }
    plan_.tensors.push_back(std::move(planned));
    return {};
  }

  Status untie_head() {
    const SourceTensor* embeddings = source_.find("token_embd.weight");
    if (embeddings == nullptr) return file_error(fmt::format("{} has no token_embd.weight", source_.path()));
    return add_as(*embeddings, parse("output.weight"), "output.weight", false);
  }

  // A copy of one of the layers that may stand at the end: those in front without experts may not.
  Status add_extra_layer(int64_t layer) {
    const SourceShape& shape = plan_.source;
    const int64_t first = shape.is_moe ? shape.n_dense_lead : 0;
    const int64_t model = first + (layer - shape.n_layer) % (shape.n_layer - first);
    for (const SourceTensor& tensor : source_.tensors()) {
      const Name name = parse(tensor.name);
      if (name.layer == model)
        RETURN_IF_ERROR(add_as(tensor, name, fmt::format("blk.{}.{}", layer, name.in_layer), true));
    }
    return {};
  }

  const GgufSource& source_;
  const WidenOptions& options_;
  WidenPlan plan_;
};

}  // namespace

int64_t WidenPlan::copies(Axis axis) const {
  if (axis == Axis::kFixed || (axis == Axis::kKvHeads && !source.kv_heads_repeat)) return 1;
  return is_ffn(axis) ? ff_copies : embd_copies;
}

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
  const auto set = [&](const std::string& key, int64_t value) {
    gguf_set_val_u32(out, key.c_str(), static_cast<uint32_t>(value));
  };
  const auto key = [&](std::string_view name) { return fmt::format("{}.{}", plan.source.architecture->name, name); };
  set(key("block_count"), plan.n_layer);
  for (const SizeKey& size : kSizeKeys) {
    if (const std::optional<int64_t> value = source.integer(key(size.name))) {
      set(key(size.name), *value * plan.copies(size.axis));
    }
  }
  if (!plan.source.is_moe && source.integer(key("leading_dense_block_count"))) {
    set(key("leading_dense_block_count"), plan.n_layer);
  }
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
