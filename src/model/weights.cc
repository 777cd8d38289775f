#include "model/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "base/units.h"
#include "ops/linear.h"

namespace drafthorse {
namespace {

// Tensors closer than this in the file are read as one piece, the gap included.
constexpr uint64_t kMaxGapBytes = 64 * kKiB;
constexpr uint64_t kTensorAlignment = 64;

std::string shape_text(int64_t columns, int64_t rows, int64_t count) {
  if (count > 1) return fmt::format("[{}, {}, {}]", columns, rows, count);
  return rows > 1 ? fmt::format("[{}, {}]", columns, rows) : fmt::format("[{}]", columns);
}

FileExtent extent_of(const TensorInfo& info) { return {info.file, info.offset, info.bytes}; }

}  // namespace

WeightDeclarations::WeightDeclarations(const GgufIndex& index) : index_(index) {
  const ggml_init_params params = {2 * ggml_tensor_overhead() * (index.tensors().size() + 1), nullptr, true};
  context_ = ggml_init(params);
  CHECK(context_ != nullptr);
}

WeightDeclarations::~WeightDeclarations() {
  if (context_ != nullptr) ggml_free(context_);
}

ggml_context* WeightDeclarations::release_context() { return std::exchange(context_, nullptr); }

void WeightDeclarations::fail(const std::string& what) {
  if (status_.ok()) status_ = file_error(fmt::format("{}: {}", index_.files().front().path, what));
}

const TensorInfo* WeightDeclarations::find(const std::string& name, Use use, int64_t columns, int64_t rows,
                                           int64_t count, bool required) {
  if (!status_.ok()) return nullptr;
  const TensorInfo* info = index_.find(name);
  if (info == nullptr) {
    if (required) fail(fmt::format("tensor '{}' is missing", name));
    return nullptr;
  }
  used_.push_back(info);
  if (info->ne[0] != columns || info->ne[1] != rows || info->ne[2] != count || info->ne[3] != 1) {
    fail(fmt::format("tensor '{}' has shape [{}, {}, {}, {}] where {} was expected", name, info->ne[0], info->ne[1],
                     info->ne[2], info->ne[3], shape_text(columns, rows, count)));
    return nullptr;
  }
  if (use == Use::kVector ? info->type != GGML_TYPE_F32 : !ops::supports_weights(info->type)) {
    fail(fmt::format("tensor '{}' has type {}, which cannot be computed with", name, ggml_type_name(info->type)));
    return nullptr;
  }
  return info;
}

ggml_tensor* WeightDeclarations::required(const std::string& name, Use use, int64_t columns, int64_t rows) {
  const TensorInfo* info = find(name, use, columns, rows, 1, true);
  if (info == nullptr) return nullptr;
  ggml_tensor* tensor = ggml_new_tensor_2d(context_, info->type, columns, rows);
  ggml_set_name(tensor, name.c_str());
  declared_.push_back({tensor, info});
  return tensor;
}

ggml_tensor* WeightDeclarations::required_per_head(const std::string& name, int64_t columns, int64_t rows,
                                                   int64_t heads) {
  const TensorInfo* info = find(name, Use::kMatrix, columns, rows, heads, true);
  if (info == nullptr) return nullptr;
  ggml_tensor* tensor = ggml_new_tensor_3d(context_, info->type, columns, rows, heads);
  ggml_set_name(tensor, name.c_str());
  declared_.push_back({tensor, info});
  return tensor;
}

ggml_tensor* WeightDeclarations::derived(const ggml_tensor* source, int64_t columns, int64_t rows, int64_t heads,
                                         Make make) {
  if (source == nullptr) return nullptr;
  const bool is_float =
      source->type == GGML_TYPE_F32 || source->type == GGML_TYPE_F16 || source->type == GGML_TYPE_BF16;
  ggml_tensor* tensor = ggml_new_tensor_3d(context_, is_float ? source->type : GGML_TYPE_F16, columns, rows, heads);
  derived_.push_back({source, tensor, make});
  return tensor;
}

ggml_tensor* WeightDeclarations::optional(const std::string& name, Use use, int64_t columns, int64_t rows) {
  return index_.find(name) == nullptr ? nullptr : required(name, use, columns, rows);
}

void WeightDeclarations::no_experts() { layout_.layers.emplace_back(); }

void WeightDeclarations::experts(int layer, const ModelConfig& config) {
  ExpertLayer& out = layout_.layers.emplace_back();
  if (!status_.ok()) return;
  const auto blk = [layer](std::string_view rest) { return fmt::format("blk.{}.{}", layer, rest); };
  const int64_t n_embd = config.n_embd;
  const int64_t n_ff = config.n_ff_expert;
  const int64_t n_expert = config.n_expert;
  out.experts.resize(static_cast<size_t>(n_expert));

  // Appends one extent per expert: a slice of a stacked tensor, or a tensor of its own.
  const auto add_stacked = [&](const TensorInfo* info) {
    if (info == nullptr) return;
    const uint64_t slice = info->bytes / static_cast<uint64_t>(n_expert);
    for (int64_t e = 0; e < n_expert; ++e) {
      out.experts[e][out.n_extents] = {info->file, info->offset + static_cast<uint64_t>(e) * slice, slice};
    }
    ++out.n_extents;
  };
  const auto add_own = [&](std::string_view what, int64_t columns, int64_t rows) -> const TensorInfo* {
    const TensorInfo* first = nullptr;
    for (int64_t e = 0; e < n_expert; ++e) {
      const std::string name = blk(fmt::format("{}.{}.weight", what, e));
      const TensorInfo* info = find(name, Use::kMatrix, columns, rows, 1, true);
      if (info == nullptr) return nullptr;
      if (first == nullptr) first = info;
      if (info->type != first->type) {
        fail(fmt::format("tensor '{}' has another type than expert 0's", name));
        return nullptr;
      }
      out.experts[e][out.n_extents] = extent_of(*info);
    }
    ++out.n_extents;
    return first;
  };
  const auto set = [&](ExpertMatrix& matrix, const TensorInfo* info, int64_t columns, int64_t rows) {
    if (info != nullptr) matrix = {info->type, columns, rows, out.n_extents - 1, 0};
  };

  const std::string down_name = blk("ffn_down_exps.weight");
  if (index_.find(blk("ffn_gate_up_exps.weight")) != nullptr) {
    const TensorInfo* fused = find(blk("ffn_gate_up_exps.weight"), Use::kMatrix, n_embd, 2 * n_ff, n_expert, true);
    add_stacked(fused);
    set(out.gate, fused, n_embd, n_ff);
    set(out.up, fused, n_embd, n_ff);
    if (fused != nullptr) out.up.offset = static_cast<uint64_t>(n_ff) * ggml_row_size(fused->type, n_embd);
    const TensorInfo* down = find(down_name, Use::kMatrix, n_ff, n_embd, n_expert, true);
    add_stacked(down);
    set(out.down, down, n_ff, n_embd);
  } else if (index_.find(blk("ffn_gate.0.weight")) != nullptr) {
    set(out.gate, add_own("ffn_gate", n_embd, n_ff), n_embd, n_ff);
    set(out.up, add_own("ffn_up", n_embd, n_ff), n_embd, n_ff);
    set(out.down, add_own("ffn_down", n_ff, n_embd), n_ff, n_embd);
  } else {
    const auto stacked = [&](ExpertMatrix& matrix, const std::string& name, int64_t columns, int64_t rows) {
      const TensorInfo* info = find(name, Use::kMatrix, columns, rows, n_expert, true);
      add_stacked(info);
      set(matrix, info, columns, rows);
    };
    stacked(out.gate, blk("ffn_gate_exps.weight"), n_embd, n_ff);
    stacked(out.up, blk("ffn_up_exps.weight"), n_embd, n_ff);
    stacked(out.down, down_name, n_ff, n_embd);
  }
  if (status_.ok() && ops::activation_format(out.gate.type) != ops::activation_format(out.up.type)) {
    fail(fmt::format("layer {}: gate of type {} and up of type {} cannot share an activation", layer,
                     ggml_type_name(out.gate.type), ggml_type_name(out.up.type)));
  }
}

Status WeightDeclarations::finish() {
  RETURN_IF_ERROR(status_);
  const std::unordered_set<const TensorInfo*> used(used_.begin(), used_.end());
  for (const TensorInfo& info : index_.tensors()) {
    if (!used.contains(&info)) {
      fail(
          fmt::format("tensor '{}' is not part of this architecture as drafthorse knows it; leaving it out would "
                      "change the text",
                      info.name));
    }
  }
  return status_;
}

Result<DenseWeights> DenseWeights::reserve(WeightDeclarations& declarations) {
  using Declared = WeightDeclarations::Declared;
  DenseWeights weights;
  std::vector<Declared> tensors = declarations.declared();
  std::sort(tensors.begin(), tensors.end(), [](const Declared& a, const Declared& b) {
    return std::pair(a.info->file, a.info->offset) < std::pair(b.info->file, b.info->offset);
  });
  // Neighbours in the file become neighbours in memory: one read, and the padding of one block around it.
  std::vector<uint64_t> run_offsets;
  std::vector<size_t> run_of(tensors.size());
  std::vector<FileExtent> runs;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const FileExtent extent = extent_of(*tensors[i].info);
    if (!runs.empty() && runs.back().file == extent.file &&
        extent.offset - (runs.back().offset + runs.back().bytes) <= kMaxGapBytes) {
      runs.back().bytes = extent.offset + extent.bytes - runs.back().offset;
    } else {
      runs.push_back(extent);
    }
    run_of[i] = runs.size() - 1;
  }
  uint64_t total = 0;
  for (const FileExtent& run : runs) {
    run_offsets.push_back(total);
    total += widen(run).bytes();
  }
  const uint64_t read_bytes = total;
  for (const WeightDeclarations::Derived& one : declarations.derived()) {
    total = align_up(total, kTensorAlignment) + ggml_nbytes(one.tensor);
  }
  ASSIGN_OR_RETURN(weights.buffer_, DeviceBuffer::reserve(total));
  for (size_t i = 0; i < tensors.size(); ++i) {
    const FileExtent& run = runs[run_of[i]];
    weights.buffer_.place(tensors[i].tensor,
                          run_offsets[run_of[i]] + widen(run).payload + (tensors[i].info->offset - run.offset));
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    weights.reads_.push_back({runs[i], weights.buffer_.data() + run_offsets[i]});
  }
  weights.derived_ = declarations.derived();
  uint64_t offset = read_bytes;
  for (const WeightDeclarations::Derived& one : weights.derived_) {
    offset = align_up(offset, kTensorAlignment);
    weights.buffer_.place(one.tensor, offset);
    offset += ggml_nbytes(one.tensor);
  }
  weights.context_.reset(declarations.release_context());
  return weights;
}

Status DenseWeights::load(const FileSet& files, ReadQueue& queue,
                          const std::function<bool(uint64_t, uint64_t)>& progress) {
  RETURN_IF_ERROR(read_all(reads_, files, queue, progress));
  for (const WeightDeclarations::Derived& one : derived_) one.make(*one.source, *one.tensor);
  return {};
}

}  // namespace drafthorse
