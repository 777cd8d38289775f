#include "ops/attention.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/units.h"

namespace drafthorse::ops {
namespace {

constexpr int64_t kLeastWork = 1 << 20;  // multiplications worth handing to another thread
constexpr int64_t kPiecesPerThread = 8;
constexpr int64_t kBlockFloats = 64 * 512;  // of results per block of rows, so that they stay in a second-level cache

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  bool empty() const { return begin >= end; }
};

// Query rows [first, first + rows) of a sequence's KV head, row = token * group + head within the group, over [begin,
// end): all that they see, or one span of it.
struct Piece {
  const AttentionSequence* sequence = nullptr;
  int64_t kv_head = 0;
  int64_t first = 0;
  int64_t rows = 0;
  Range seen;
  bool is_span = false;
  size_t partial = 0;  // where the results of a span go
};

int64_t spans_of(const Range& seen) {
  return (seen.end + kAttentionSpan - 1) / kAttentionSpan - seen.begin / kAttentionSpan;
}

Range intersect(const Range& a, const Range& b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

// Function(span's range) for all spans of a range, in order.
template <typename Function>
void for_each_span(const Range& seen, const Function& function) {
  for (int64_t first = seen.begin / kAttentionSpan * kAttentionSpan; first < seen.end; first += kAttentionSpan) {
    function(intersect(seen, {first, first + kAttentionSpan}));
  }
}

class Attention {
 public:
  Attention(const simd::Kernels& kernels, const AttentionShape& shape)
      : kernels_(kernels),
        kernel_(kernels.attend[shape.kv_type]),
        shape_(shape),
        group_(shape.n_head / shape.n_head_kv),
        row_floats_(static_cast<int64_t>(align_up(static_cast<uint64_t>(shape.value_dim), simd::kMaxLanes))) {}

  int64_t group() const { return group_; }
  // Results of a row: out, maximum, sum.
  int64_t partial_floats(int64_t rows) const { return rows * (row_floats_ + 2); }
  int64_t most_rows() const { return std::min(simd::kMaxAttentionRows, kBlockFloats / row_floats_); }

  Range seen_by(const AttentionSequence& sequence, int64_t row) const {
    const int64_t position = sequence.positions[static_cast<size_t>(row / group_)];
    return {shape_.window > 0 ? std::max<int64_t>(0, position + 1 - shape_.window) : 0, position + 1};
  }

  Range seen_by_all(const AttentionSequence& sequence, int64_t first, int64_t rows) const {
    Range all = seen_by(sequence, first);
    for (int64_t r = first + 1; r < first + rows; ++r) {
      const Range seen = seen_by(sequence, r);
      all = {std::min(all.begin, seen.begin), std::max(all.end, seen.end)};
    }
    return all;
  }

  // All of a piece's spans, one after the other, to the sequence's own results.
  void whole(const Piece& piece) const {
    alignas(64) std::array<float, kBlockFloats> out;
    std::array<float, simd::kMaxAttentionRows> maximum;
    std::array<float, simd::kMaxAttentionRows> sum;
    Totals totals;
    for_each_span(piece.seen, [&](const Range& span) {
      run(piece, span, out.data(), maximum.data(), sum.data());
      for (int64_t r = 0; r < piece.rows; ++r) {
        add(piece, r, span, out.data() + r * row_floats_, maximum[r], sum[r], totals);
      }
    });
    finish(piece, totals);
  }

  void one_span(const Piece& piece, float* partials) const {
    float* out = partials + piece.partial;
    float* maximum = out + piece.rows * row_floats_;
    run(piece, piece.seen, out, maximum, maximum + piece.rows);
  }

  // What one_span() left of a piece's spans, which lie one after the other.
  void merge(const Piece& piece, const float* partials) const {
    Totals totals;
    const float* out = partials + piece.partial;
    for_each_span(piece.seen, [&](const Range& span) {
      const float* maximum = out + piece.rows * row_floats_;
      const float* sum = maximum + piece.rows;
      for (int64_t r = 0; r < piece.rows; ++r) {
        add(piece, r, span, out + r * row_floats_, maximum[r], sum[r], totals);
      }
      out += partial_floats(piece.rows);
    });
    finish(piece, totals);
  }

 private:
  struct Totals {
    std::array<bool, simd::kMaxAttentionRows> any{};
    std::array<float, simd::kMaxAttentionRows> maximum;
    std::array<float, simd::kMaxAttentionRows> sum;
  };

  int64_t head_of(const Piece& piece, int64_t r) const { return piece.kv_head * group_ + (piece.first + r) % group_; }
  float* result_of(const Piece& piece, int64_t r) const {
    const AttentionSequence& s = *piece.sequence;
    return s.out + (piece.first + r) / group_ * s.out_stride + head_of(piece, r) * shape_.value_dim;
  }

  void run(const Piece& piece, const Range& span, float* out, float* maximum, float* sum) const {
    const AttentionSequence& s = *piece.sequence;
    std::array<const float*, simd::kMaxAttentionRows> q;
    std::array<int64_t, simd::kMaxAttentionRows> begin;
    std::array<int64_t, simd::kMaxAttentionRows> end;
    for (int64_t r = 0; r < piece.rows; ++r) {
      const Range seen = intersect(seen_by(s, piece.first + r), span);
      begin[r] = seen.begin;
      end[r] = seen.end;
      q[r] = s.q + (piece.first + r) / group_ * s.q_token_stride + head_of(piece, r) * s.q_head_stride;
    }
    kernel_({.q = q.data(),
             .rows = piece.rows,
             .begin = begin.data(),
             .end = end.data(),
             .keys = s.keys + static_cast<size_t>(piece.kv_head) * s.key_head_stride,
             .key_stride = s.key_stride,
             .key_dim = shape_.key_dim,
             .values = s.values + static_cast<size_t>(piece.kv_head) * s.value_head_stride,
             .value_stride = s.value_stride,
             .value_dim = shape_.value_dim,
             .scale = shape_.scale,
             .softcap = shape_.softcap,
             .out = out,
             .out_stride = row_floats_,
             .maximum = maximum,
             .sum = sum});
  }

  void add(const Piece& piece, int64_t r, const Range& span, const float* out, float maximum, float sum,
           Totals& totals) const {
    if (intersect(seen_by(*piece.sequence, piece.first + r), span).empty()) return;
    float* result = result_of(piece, r);
    if (!std::exchange(totals.any[r], true)) {
      std::copy_n(out, shape_.value_dim, result);
      totals.maximum[r] = maximum;
      totals.sum[r] = sum;
      return;
    }
    kernels_.merge_attention(out, maximum, sum, result, totals.maximum[r], totals.sum[r], shape_.value_dim);
  }

  void finish(const Piece& piece, const Totals& totals) const {
    for (int64_t r = 0; r < piece.rows; ++r) {
      const float* sink = shape_.sinks == nullptr ? nullptr : shape_.sinks + head_of(piece, r);
      kernels_.finish_attention(result_of(piece, r), totals.maximum[r], totals.sum[r], sink, shape_.value_dim);
    }
  }

  const simd::Kernels& kernels_;
  void (*kernel_)(const simd::AttentionArguments&);
  AttentionShape shape_;
  int64_t group_;
  int64_t row_floats_;  // of one row's results, padded
};

void attention_node(ggml_tensor* destination, int, int, void* userdata) {
  const auto& node = *static_cast<const AttentionNode*>(userdata);
  const AttentionShape& shape = node.shape;
  const ggml_tensor* q = destination->src[0];
  const ggml_tensor* k = destination->src[1];
  const ggml_tensor* v = destination->src[2];
  const ggml_tensor* positions = destination->src[3];
  const AttentionSequence sequence = {
      .q = static_cast<const float*>(q->data),
      .q_token_stride = static_cast<int64_t>(q->nb[2] / sizeof(float)),
      .q_head_stride = static_cast<int64_t>(q->nb[1] / sizeof(float)),
      .keys = static_cast<const std::byte*>(k->data),
      .key_stride = k->nb[1],
      .key_head_stride = ggml_row_size(shape.kv_type, shape.key_dim),
      .values = static_cast<const std::byte*>(v->data),
      .value_stride = v->nb[1],
      .value_head_stride = ggml_row_size(shape.kv_type, shape.value_dim),
      .positions = {static_cast<const int32_t*>(positions->data), static_cast<size_t>(q->ne[2])},
      .out = static_cast<float*>(destination->data),
      .out_stride = destination->ne[0],
  };
  attend(node.processor, shape, {&sequence, 1}, *node.workspace);
}

}  // namespace

struct AttentionWorkspace::Lists {
  std::vector<Piece> blocks;  // whole ones
  std::vector<Piece> pieces;  // what threads take: whole ones and spans
  std::vector<Piece> split;   // the blocks that are computed in spans
  std::vector<float> partials;
};

AttentionWorkspace::AttentionWorkspace() : lists_(std::make_unique<Lists>()) {}
AttentionWorkspace::~AttentionWorkspace() = default;
AttentionWorkspace::AttentionWorkspace(AttentionWorkspace&&) noexcept = default;
AttentionWorkspace& AttentionWorkspace::operator=(AttentionWorkspace&&) noexcept = default;

bool supports_attention(const AttentionShape& shape) {
  const ggml_type type = shape.kv_type;
  if (type != GGML_TYPE_F16 && type != GGML_TYPE_BF16 && type != GGML_TYPE_Q8_0) return false;
  const auto fits = [&](int64_t dim) { return dim > 0 && dim <= kMaxHeadDim && dim % ggml_blck_size(type) == 0; };
  return fits(shape.key_dim) && fits(shape.value_dim) && shape.n_head_kv > 0 && shape.n_head > 0 &&
         shape.n_head % shape.n_head_kv == 0;
}

void attend(const Processor& processor, const AttentionShape& shape, std::span<const AttentionSequence> sequences,
            AttentionWorkspace& workspace) {
  CHECK(supports_attention(shape));
  const Attention attention(processor.kernels, shape);
  AttentionWorkspace::Lists& lists = workspace.lists();
  lists.blocks.clear();
  lists.pieces.clear();
  lists.split.clear();
  const auto work_of = [&](const Piece& piece) {
    return piece.rows * (piece.seen.end - piece.seen.begin) * (shape.key_dim + shape.value_dim);
  };
  int64_t work = 0;
  for (const AttentionSequence& sequence : sequences) {
    const int64_t rows = static_cast<int64_t>(sequence.positions.size()) * attention.group();
    const int64_t blocks = (rows + attention.most_rows() - 1) / attention.most_rows();
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = rows * block / blocks;
      const int64_t count = rows * (block + 1) / blocks - first;
      const Range seen = attention.seen_by_all(sequence, first, count);
      for (int64_t head = 0; head < shape.n_head_kv; ++head) {
        lists.blocks.push_back({&sequence, head, first, count, seen});
        work += work_of(lists.blocks.back());
      }
    }
  }
  // Blocks too large for the threads to end together are cut into spans, as long as there is room for their results.
  const int threads = processor.pool.threads();
  size_t partial_floats = 0;
  for (Piece block : lists.blocks) {
    const int64_t spans = spans_of(block.seen);
    const size_t floats = static_cast<size_t>(spans * attention.partial_floats(block.rows));
    if (threads == 1 || spans == 1 || work_of(block) * kPiecesPerThread * threads < work ||
        (partial_floats + floats) * sizeof(float) > AttentionWorkspace::kMostBytes) {
      lists.pieces.push_back(block);
      continue;
    }
    block.partial = partial_floats;
    lists.split.push_back(block);
    Piece span = block;
    span.is_span = true;
    for_each_span(block.seen, [&](const Range& seen) {
      span.seen = seen;
      lists.pieces.push_back(span);
      span.partial += static_cast<size_t>(attention.partial_floats(block.rows));
    });
    partial_floats += floats;
  }
  if (lists.partials.size() < partial_floats) lists.partials.resize(partial_floats);

  const auto pieces = static_cast<int64_t>(lists.pieces.size());
  const int64_t grain = work == 0 ? 1 : std::max<int64_t>(1, pieces * kLeastWork / work);
  processor.pool.run(pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = lists.pieces[static_cast<size_t>(i)];
      if (piece.is_span) {
        attention.one_span(piece, lists.partials.data());
      } else {
        attention.whole(piece);
      }
    }
  });
  processor.pool.run(static_cast<int64_t>(lists.split.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      attention.merge(lists.split[static_cast<size_t>(i)], lists.partials.data());
    }
  });
}

ggml_tensor* attention(ggml_context* context, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, ggml_tensor* positions,
                       const AttentionNode& node) {
  const AttentionShape& shape = node.shape;
  CHECK(supports_attention(shape));
  CHECK(q->ne[0] == shape.key_dim && q->ne[1] == shape.n_head && q->type == GGML_TYPE_F32);
  CHECK(q->nb[0] == sizeof(float) && q->ne[3] == 1 && positions->ne[0] == q->ne[2]);
  CHECK(k->ne[0] == shape.key_dim * shape.n_head_kv && k->type == shape.kv_type);
  CHECK(v->ne[0] == shape.value_dim * shape.n_head_kv && v->type == shape.kv_type);
  ggml_tensor* args[] = {q, k, v, positions};
  return ggml_custom_4d(context, GGML_TYPE_F32, shape.value_dim * shape.n_head, q->ne[2], 1, 1, args, 4, attention_node,
                        1, const_cast<AttentionNode*>(&node));
}

}  // namespace drafthorse::ops
