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
// Of the host's memory that what goes to a device passes through: large reads, and little of the budget.
constexpr uint64_t kStagingBytes = 16 * kMiB;

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

void WeightDeclarations::keep_on_host(const ggml_tensor* tensor) {
  for (Declared& declared : declared_) {
    if (declared.tensor == tensor) declared.on_host = true;
  }
}

ggml_tensor* WeightDeclarations::duplicate(const ggml_tensor* tensor) {
  const auto declared =
      std::find_if(declared_.begin(), declared_.end(), [tensor](const Declared& one) { return one.tensor == tensor; });
  CHECK(declared != declared_.end());
  ggml_tensor* other = ggml_dup_tensor(context_, tensor);
  declared_.push_back({other, declared->info});
  return other;
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

Result<DenseWeights> DenseWeights::reserve(WeightDeclarations& declarations, Device* device) {
  using Declared = WeightDeclarations::Declared;
  DenseWeights weights;
  std::vector<Declared> tensors = declarations.declared();
  weights.derived_ = declarations.derived();
  if (device != nullptr) {
    weights.device_ = device;
    weights.memory_.emplace(*device);
    for (const Declared& one : tensors) {
      if (one.on_host) continue;
      weights.memory_->add(one.tensor);
      weights.on_device_.push_back({one.tensor, extent_of(*one.info)});
    }
    for (const WeightDeclarations::Derived& one : weights.derived_) weights.memory_->add(one.tensor);
    std::erase_if(tensors, [](const Declared& one) { return !one.on_host; });
  }
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
  for (const WeightDeclarations::Derived& one : weights.derived_) {
    if (device != nullptr) break;
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
  uint64_t offset = read_bytes;
  for (const WeightDeclarations::Derived& one : weights.derived_) {
    if (device != nullptr) break;
    offset = align_up(offset, kTensorAlignment);
    weights.buffer_.place(one.tensor, offset);
    offset += ggml_nbytes(one.tensor);
  }
  weights.context_.reset(declarations.release_context());
  return weights;
}

Status DenseWeights::load(const FileSet& files, ReadQueue& queue,
                          const std::function<bool(uint64_t, uint64_t)>& progress) {
  RETURN_IF_ERROR(read_all(reads_, files, queue, memory_ ? nullptr : progress));
  if (memory_) return load_to_device(files, queue, progress);
  for (const WeightDeclarations::Derived& one : derived_) one.make(*one.source, *one.tensor);
  return {};
}

// What is derived needs its source as a whole.
uint64_t DenseWeights::staging_bytes() const {
  if (!memory_) return 0;
  uint64_t most = kStagingBytes;
  for (const WeightDeclarations::Derived& one : derived_) {
    most = std::max(most, ggml_nbytes(one.source) + ggml_nbytes(one.tensor));
  }
  return most + 4 * kSmallPage;
}

FileExtent DenseWeights::extent_on_device(const ggml_tensor* tensor) const {
  const auto found = std::find_if(on_device_.begin(), on_device_.end(),
                                  [tensor](const OnDevice& one) { return one.tensor == tensor; });
  CHECK(found != on_device_.end());
  return found->extent;
}

Status DenseWeights::load_to_device(const FileSet& files, ReadQueue& queue,
                                    const std::function<bool(uint64_t, uint64_t)>& progress) {
  {
    ASSIGN_OR_RETURN(const Arena staging, Arena::reserve(kStagingBytes + 2 * kSmallPage));
    uint64_t total = 0;
    for (const OnDevice& one : on_device_) total += one.extent.bytes;
    uint64_t done = 0;
    for (const OnDevice& one : on_device_) {
      for (uint64_t offset = 0; offset < one.extent.bytes; offset += kStagingBytes) {
        const FileExtent part = {one.extent.file, one.extent.offset + offset,
                                 std::min(kStagingBytes, one.extent.bytes - offset)};
        const ExtentRead read = {part, staging.data()};
        RETURN_IF_ERROR(read_all({&read, 1}, files, queue));
        ggml_backend_tensor_set(one.tensor, staging.data() + widen(part).payload, offset, part.bytes);
        done += part.bytes;
        if (progress && !progress(done, total)) return interrupted_error();
      }
    }
  }
  for (const WeightDeclarations::Derived& one : derived_) RETURN_IF_ERROR(derive_for_device(one, files, queue));
  return {};
}

Status DenseWeights::derive_for_device(const WeightDeclarations::Derived& one, const FileSet& files, ReadQueue& queue) {
  const FileExtent extent = extent_on_device(one.source);
  const uint64_t source_bytes = align_up(widen(extent).bytes(), kSmallPage);
  ASSIGN_OR_RETURN(const Arena staging, Arena::reserve(source_bytes + ggml_nbytes(one.tensor)));
  const ExtentRead read = {extent, staging.data()};
  RETURN_IF_ERROR(read_all({&read, 1}, files, queue));
  ggml_tensor source = *one.source;
  source.data = staging.data() + widen(extent).payload;
  ggml_tensor result = *one.tensor;
  result.data = staging.data() + source_bytes;
  one.make(source, result);
  ggml_backend_tensor_set(one.tensor, result.data, 0, ggml_nbytes(one.tensor));
  return {};
}

}  // namespace drafthorse
