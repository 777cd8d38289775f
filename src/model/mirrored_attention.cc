#include "model/mirrored_attention.h"

#include <algorithm>

#include "base/units.h"
#include "model/device_attention.h"

namespace drafthorse {
namespace {

constexpr size_t kTensors = 8;  // beside keys and values

}  // namespace

MirroredAttention::MirroredAttention(Device& device, const ModelConfig& config, const KvCache& host, int32_t slots,
                                     int32_t rows)
    : device_(device),
      config_(config),
      host_(host),
      rows_(rows),
      held_(static_cast<size_t>(slots)),
      context_(
          ggml_init({(kTensors + 2 * static_cast<size_t>(config.n_layer)) * ggml_tensor_overhead(), nullptr, true})),
      memory_(device) {
  CHECK(slots > 0 && rows > 0 && rows % kDeviceRows == 0 && host.shape().type == GGML_TYPE_F16);
  const auto tensor = [&](ggml_type type, int64_t width, int64_t height) {
    ggml_tensor* made = ggml_new_tensor_2d(context_.get(), type, width, height);
    memory_.add(made);
    return made;
  };
  const int64_t width = int64_t{config.head_dim} * config.n_head_kv;
  for (int32_t layer = 0; layer < config.n_layer; ++layer) {
    keys_.push_back(tensor(GGML_TYPE_F16, width, int64_t{rows} * slots));
    if (!config.is_latent()) values_.push_back(tensor(GGML_TYPE_F16, width, int64_t{rows} * slots));
  }
  column_of_slot_ = tensor(GGML_TYPE_I32, slots, 1);
  slot_of_column_ = tensor(GGML_TYPE_I32, slots, 1);
  source_ = tensor(GGML_TYPE_I32, slots, 1);
  target_ = tensor(GGML_TYPE_I64, slots, 1);
  row_ = tensor(GGML_TYPE_I64, slots, 1);
  mask_ = tensor(GGML_TYPE_F16, int64_t{rows} * slots, 1);
}

uint64_t MirroredAttention::slot_bytes(const ModelConfig& config, int32_t rows) {
  const auto n = static_cast<uint64_t>(rows);
  const uint64_t scores = 2 * sizeof(float) * n * static_cast<uint64_t>(config.n_head);
  const uint64_t turned_values = sizeof(ggml_fp16_t) * n * static_cast<uint64_t>(config.value_dim * config.n_head_kv);
  return n * KvCache::position_bytes(config, GGML_TYPE_F16) + scores + turned_values + sizeof(ggml_fp16_t) * n;
}

int32_t MirroredAttention::slot_of(int32_t sequence) const {
  const auto found =
      std::find_if(held_.begin(), held_.end(), [&](const Slot& one) { return one.sequence == sequence; });
  return found == held_.end() ? -1 : static_cast<int32_t>(found - held_.begin());
}

// A slot that nobody has, or whose text has ended; -1: none.
int32_t MirroredAttention::admit(int32_t sequence) {
  for (int32_t slot = 0; slot < slots(); ++slot) {
    const int32_t holder = held_[slot].sequence;
    const bool is_free = holder < 0 || host_.length(holder) == 0;
    // A text that begins in this pass has no rows yet, either.
    if (!is_free || std::find(slots_.begin(), slots_.end(), slot) != slots_.end()) continue;
    held_[slot] = {sequence, 0};
    return slot;
  }
  return -1;
}

const std::vector<bool>& MirroredAttention::begin(std::span<const SequenceColumn> columns) {
  mirrored_.assign(columns.size(), false);
  columns_.clear();
  slots_.clear();
  positions_.clear();
  used_ = extent_ = 0;
  // Rows that were forgotten since may be others now.
  for (const SequenceColumn& one : columns) {
    const int32_t slot = slot_of(one.sequence);
    if (slot >= 0) held_[slot].valid = std::min(held_[slot].valid, host_.length(one.sequence));
  }
  for (size_t i = 0; i < columns.size(); ++i) {
    const SequenceColumn& one = columns[i];
    const bool alone = (i == 0 || columns[i - 1].sequence != one.sequence) &&
                       (i + 1 == columns.size() || columns[i + 1].sequence != one.sequence);
    int32_t slot = slot_of(one.sequence);
    if (slot >= 0 && one.position >= rows_) held_[slot] = {};  // it has outgrown its slot
    if (!alone || one.position >= rows_) continue;
    if (slot < 0) slot = admit(one.sequence);
    if (slot < 0) continue;
    copy_rows(slot, one.position);
    held_[slot].valid = one.position + 1;  // once the pass is over
    mirrored_[i] = true;
    columns_.push_back(static_cast<int32_t>(i));
    slots_.push_back(slot);
    positions_.push_back(one.position);
    used_ = std::max(used_, slot + 1);
    extent_ = std::max(extent_, one.position + 1);
  }
  attended_ += static_cast<int64_t>(columns_.size());
  if (any()) write_indices();
  return mirrored_;
}

void MirroredAttention::copy_rows(int32_t slot, int32_t end) {
  const Slot& one = held_[slot];
  if (one.valid >= end) return;
  for (const bool keys : {true, false}) {
    for (size_t layer = 0; layer < (keys ? keys_ : values_).size(); ++layer) {
      ggml_tensor* to = (keys ? keys_ : values_)[layer];
      const ggml_tensor* from =
          keys ? host_.keys(static_cast<int32_t>(layer)) : host_.values(static_cast<int32_t>(layer));
      const auto row = static_cast<uint64_t>(host_.first_row(one.sequence) + one.valid);
      device_.write(to, static_cast<const std::byte*>(from->data) + row * from->nb[1],
                    static_cast<uint64_t>(slot * rows_ + one.valid) * to->nb[1],
                    static_cast<uint64_t>(end - one.valid) * to->nb[1]);
    }
  }
}

void MirroredAttention::write_indices() {
  extent_ = (extent_ + kDeviceRows - 1) / kDeviceRows * kDeviceRows;
  // A slot without a column attends with somebody's query to one row of its own; nobody reads what comes of it.
  column_of_slot_data_.assign(static_cast<size_t>(used_), columns_.front());
  mask_data_.assign(static_cast<size_t>(extent_) * static_cast<size_t>(used_), kUnseen);
  for (int32_t slot = 0; slot < used_; ++slot) mask_data_[static_cast<size_t>(slot) * extent_] = kSeen;
  target_data_.clear();
  row_data_.clear();
  for (size_t i = 0; i < columns_.size(); ++i) {
    const std::span row(mask_data_.data() + int64_t{slots_[i]} * extent_, static_cast<size_t>(extent_));
    row[0] = kUnseen;
    mark_seen(row, positions_[i], config_.attention_window);
    column_of_slot_data_[slots_[i]] = columns_[i];
    target_data_.push_back(columns_[i]);
    row_data_.push_back(int64_t{slots_[i]} * rows_ + positions_[i]);
  }
  const auto write = [&](ggml_tensor* tensor, const auto& data) {
    device_.write(tensor, data.data(), 0, data.size() * sizeof(data[0]));
  };
  write(column_of_slot_, column_of_slot_data_);
  write(slot_of_column_, slots_);
  write(source_, columns_);
  write(target_, target_data_);
  write(row_, row_data_);
  write(mask_, mask_data_);
}

void MirroredAttention::pretend_all() {
  columns_.assign(held_.size(), 0);
  used_ = slots();
  extent_ = rows_;
}

void MirroredAttention::build(StageGraph& graph, LayerId layer, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v,
                              ggml_tensor* attended) {
  ggml_context* context = graph.context;
  const auto n = static_cast<int64_t>(columns_.size());
  const int64_t n_head = config_.n_head;
  const auto first = [&](ggml_tensor* indices, int64_t count) { return ggml_view_1d(context, indices, count, 0); };
  const auto written = [&](ggml_tensor* x, ggml_tensor* slots) {
    return ggml_set_rows(context, slots, ggml_get_rows(context, x, first(source_, n)), first(row_, n));
  };
  const auto by_slot = [&](ggml_tensor* rows, int64_t width) {  // [width, extent, n_head_kv, used]
    const size_t head_bytes = ggml_row_size(rows->type, config_.head_dim);
    return ggml_view_4d(context, rows, width, extent_, config_.n_head_kv, used_, rows->nb[1], head_bytes,
                        static_cast<size_t>(rows_) * rows->nb[1], 0);
  };
  ggml_tensor* keys = written(k, keys_[index(layer)]);
  ggml_tensor* values = v != nullptr ? written(v, values_[index(layer)]) : keys;
  ggml_tensor* queries = ggml_get_rows(context, q, first(column_of_slot_, used_));
  queries = ggml_reshape_4d(context, queries, config_.head_dim, 1, n_head, used_);
  ggml_tensor* mask = ggml_reshape_4d(context, first(mask_, int64_t{extent_} * used_), extent_, 1, 1, used_);
  ggml_tensor* out = masked_attention(context, queries, by_slot(keys, config_.head_dim),
                                      by_slot(values, config_.value_dim), mask, config_.attention_scale);
  out = ggml_reshape_2d(context, out, int64_t{config_.value_dim} * n_head, used_);
  out = ggml_get_rows(context, out, first(slot_of_column_, n));
  ggml_build_forward_expand(graph.graph, ggml_set_rows(context, attended, out, first(target_, n)));
}

}  // namespace drafthorse
