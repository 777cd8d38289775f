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
constexpr int64_t kPiecesPerThread = 4;
constexpr int64_t kBlockFloats = 64 * 512;  // of results per piece, so that they stay in a second-level cache

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  bool empty() const { return begin >= end; }
};

// Query rows [first, first + rows), row = token * group + head within the group, of each of a sequence's KV heads
// [head, head + heads), over all positions that they see, or over one span of them.
struct Piece {
  const AttentionSequence* sequence = nullptr;
  int64_t head = 0;
  int64_t heads = 0;
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
  size_t partial_floats(int64_t rows) const { return static_cast<size_t>(rows * (row_floats_ + 2)); }
  int64_t most_rows() const { return std::min(simd::kAttentionBlock, kBlockFloats / row_floats_); }
  // KV heads that a piece may have, with so many rows of each: neighbours are one run of memory.
  int64_t most_heads(int64_t rows) const {
    return std::min({shape_.n_head_kv, simd::kMaxAttentionRows / rows, kBlockFloats / (row_floats_ * rows)});
  }

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
      add(piece, span, out.data(), maximum.data(), sum.data(), totals);
    });
    finish(piece, totals);
  }

  void one_span(const Piece& piece, float* partials) const {
    const int64_t rows = piece.heads * piece.rows;
    float* out = partials + piece.partial;
    float* maximum = out + rows * row_floats_;
    run(piece, piece.seen, out, maximum, maximum + rows);
  }

  // What one_span() left of a piece's spans, which lie one after the other.
  void merge(const Piece& piece, const float* partials) const {
    const int64_t rows = piece.heads * piece.rows;
    Totals totals;
    const float* out = partials + piece.partial;
    for_each_span(piece.seen, [&](const Range& span) {
      const float* maximum = out + rows * row_floats_;
      add(piece, span, out, maximum, maximum + rows, totals);
      out += partial_floats(rows);
    });
    finish(piece, totals);
  }

 private:
  // By result: head within the piece, then row.
  struct Totals {
    std::array<bool, simd::kMaxAttentionRows> any{};
    std::array<float, simd::kMaxAttentionRows> maximum;
    std::array<float, simd::kMaxAttentionRows> sum;
  };

  static int64_t row_of(const Piece& piece, int64_t i) { return piece.first + i % piece.rows; }
  int64_t token_of(const Piece& piece, int64_t i) const { return row_of(piece, i) / group_; }
  int64_t head_of(const Piece& piece, int64_t i) const {
    return (piece.head + i / piece.rows) * group_ + row_of(piece, i) % group_;
  }
  float* result_of(const Piece& piece, int64_t i) const {
    const AttentionSequence& s = *piece.sequence;
    return s.out + token_of(piece, i) * s.out_stride + head_of(piece, i) * shape_.value_dim;
  }

  void run(const Piece& piece, const Range& span, float* out, float* maximum, float* sum) const {
    const AttentionSequence& s = *piece.sequence;
    std::array<const float*, simd::kMaxAttentionRows> q;
    std::array<int64_t, simd::kAttentionBlock> begin;
    std::array<int64_t, simd::kAttentionBlock> end;
    for (int64_t r = 0; r < piece.rows; ++r) {
      const Range seen = intersect(seen_by(s, piece.first + r), span);
      begin[r] = seen.begin;
      end[r] = seen.end;
    }
    for (int64_t i = 0; i < piece.heads * piece.rows; ++i) {
      q[i] = s.q + token_of(piece, i) * s.q_token_stride + head_of(piece, i) * s.q_head_stride;
    }
    kernel_({.q = q.data(),
             .heads = piece.heads,
             .rows = piece.rows,
             .begin = begin.data(),
             .end = end.data(),
             .keys = s.keys + static_cast<size_t>(piece.head) * s.key_head_stride,
             .key_stride = s.key_stride,
             .key_head_stride = s.key_head_stride,
             .key_dim = shape_.key_dim,
             .values = s.values + static_cast<size_t>(piece.head) * s.value_head_stride,
             .value_stride = s.value_stride,
             .value_head_stride = s.value_head_stride,
             .value_dim = shape_.value_dim,
             .scale = shape_.scale,
             .softcap = shape_.softcap,
             .out = out,
             .out_stride = row_floats_,
             .maximum = maximum,
             .sum = sum});
  }

  // A span's results to the sequence's own, for the rows that see any of it.
  void add(const Piece& piece, const Range& span, const float* out, const float* maximum, const float* sum,
           Totals& totals) const {
    for (int64_t i = 0; i < piece.heads * piece.rows; ++i) {
      if (intersect(seen_by(*piece.sequence, row_of(piece, i)), span).empty()) continue;
      const float* row = out + i * row_floats_;
      float* result = result_of(piece, i);
      if (std::exchange(totals.any[i], true)) {
        kernels_.merge_attention(row, maximum[i], sum[i], result, totals.maximum[i], totals.sum[i], shape_.value_dim);
        continue;
      }
      std::copy_n(row, shape_.value_dim, result);
      totals.maximum[i] = maximum[i];
      totals.sum[i] = sum[i];
    }
  }

  void finish(const Piece& piece, const Totals& totals) const {
    for (int64_t i = 0; i < piece.heads * piece.rows; ++i) {
      const float* sink = shape_.sinks == nullptr ? nullptr : shape_.sinks + head_of(piece, i);
      kernels_.finish_attention(result_of(piece, i), totals.maximum[i], totals.sum[i], sink, shape_.value_dim);
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
  const auto* positions = static_cast<const int32_t*>(destination->src[3]->data);
  const auto* cache_rows = static_cast<const int64_t*>(destination->src[4]->data);
  const int64_t tokens = q->ne[2];
  const auto first_row = [&](int64_t token) { return cache_rows[token] - positions[token]; };
  std::vector<AttentionSequence> sequences;
  for (int64_t first = 0, end = 0; first < tokens; first = end) {
    while (end < tokens && first_row(end) == first_row(first)) ++end;
    const auto row = static_cast<size_t>(first_row(first));
    sequences.push_back({
        .q = reinterpret_cast<const float*>(static_cast<const std::byte*>(q->data) +
                                            static_cast<size_t>(first) * q->nb[2]),
        .q_token_stride = static_cast<int64_t>(q->nb[2] / sizeof(float)),
        .q_head_stride = static_cast<int64_t>(q->nb[1] / sizeof(float)),
        .keys = static_cast<const std::byte*>(k->data) + row * k->nb[1],
        .key_stride = k->nb[1],
        .key_head_stride = ggml_row_size(shape.kv_type, shape.key_dim),
        .values = static_cast<const std::byte*>(v->data) + row * v->nb[1],
        .value_stride = v->nb[1],
        .value_head_stride = ggml_row_size(shape.kv_type, shape.value_dim),
        .positions = {positions + first, static_cast<size_t>(end - first)},
        .out = static_cast<float*>(destination->data) + first * destination->ne[0],
        .out_stride = destination->ne[0],
    });
  }
  attend(node.processor, shape, sequences, *node.workspace);
}

}  // namespace

struct AttentionWorkspace::Lists {
  std::vector<Piece> blocks;  // as many rows as a piece may have, and all heads
  std::vector<Piece> pieces;  // what threads take: whole ones and spans
  std::vector<Piece> split;   // those of which spans are taken
  std::vector<float> partials;
};

AttentionWorkspace::AttentionWorkspace() : lists_(std::make_unique<Lists>()) {}
AttentionWorkspace::~AttentionWorkspace() = default;
AttentionWorkspace::AttentionWorkspace(AttentionWorkspace&&) noexcept = default;
AttentionWorkspace& AttentionWorkspace::operator=(AttentionWorkspace&&) noexcept = default;

size_t AttentionWorkspace::bytes() const { return lists_->partials.capacity() * sizeof(float); }

bool supports_attention(const AttentionShape& shape) {
  const ggml_type type = shape.kv_type;
  if (type != GGML_TYPE_F16 && type != GGML_TYPE_BF16 && type != GGML_TYPE_Q8_0) return false;
  const auto fits = [&](int64_t dim) { return dim > 0 && dim <= kMaxHeadDim && dim % ggml_blck_size(type) == 0; };
  return fits(shape.key_dim) && fits(shape.value_dim) && shape.n_head_kv > 0 && shape.n_head > 0 &&
         shape.n_head % shape.n_head_kv == 0;
}

size_t attention_workspace_bytes(const AttentionShape& shape, int64_t tokens, int64_t context) {
  // A row of partial results, its maximum and its sum per token, head and span; none where one span holds everything.
  constexpr int64_t kMostLanes = simd::kMaxLanes;
  const int64_t row_floats = (shape.value_dim + kMostLanes - 1) / kMostLanes * kMostLanes + 2;
  const int64_t spans = (context + kAttentionSpan - 1) / kAttentionSpan;
  if (spans <= 1) return 0;
  return std::min(AttentionWorkspace::kMostBytes,
                  static_cast<size_t>(tokens * shape.n_head * spans * row_floats) * sizeof(float));
}

void attend(const Processor& processor, const AttentionShape& shape, std::span<const AttentionSequence> sequences,
            AttentionWorkspace& workspace) {
  CHECK(supports_attention(shape));
  const Attention attention(processor.kernels, shape);
  AttentionWorkspace::Lists& lists = workspace.lists();
  lists.blocks.clear();
  lists.pieces.clear();
  lists.split.clear();
  const auto work_of = [&](int64_t rows, const Range& seen) {
    return rows * (seen.end - seen.begin) * (shape.key_dim + shape.value_dim);
  };
  int64_t work = 0;
  for (const AttentionSequence& sequence : sequences) {
    const int64_t rows = static_cast<int64_t>(sequence.positions.size()) * attention.group();
    const int64_t blocks = (rows + attention.most_rows() - 1) / attention.most_rows();
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = rows * block / blocks;
      const int64_t count = rows * (block + 1) / blocks - first;
      lists.blocks.push_back({.sequence = &sequence,
                              .heads = shape.n_head_kv,
                              .first = first,
                              .rows = count,
                              .seen = attention.seen_by_all(sequence, first, count)});
      work += shape.n_head_kv * work_of(count, lists.blocks.back().seen);
    }
  }
  // As many heads side by side as leaves enough pieces for all threads to end together. Where that is too few, spans
  // are pieces of their own, as long as there is room for their results.
  const int threads = processor.pool.threads();
  const int64_t piece_work = threads == 1 ? work : work / (threads * kPiecesPerThread);
  size_t partial_floats = 0;
  for (const Piece& block : lists.blocks) {
    const int64_t most_heads = attention.most_heads(block.rows);
    const int64_t spans = spans_of(block.seen);
    const int64_t head_work = work_of(block.rows, block.seen);
    const size_t floats = static_cast<size_t>(spans * shape.n_head_kv) * attention.partial_floats(block.rows);
    const bool in_spans = spans > 1 && head_work * most_heads > piece_work &&
                          (partial_floats + floats) * sizeof(float) <= AttentionWorkspace::kMostBytes;
    const int64_t unit = std::max<int64_t>(1, in_spans ? head_work / spans : head_work);
    const int64_t heads = std::clamp<int64_t>(piece_work / unit, 1, most_heads);
    const int64_t parts = (shape.n_head_kv + heads - 1) / heads;
    for (int64_t part = 0; part < parts; ++part) {
      Piece piece = block;
      piece.head = shape.n_head_kv * part / parts;
      piece.heads = shape.n_head_kv * (part + 1) / parts - piece.head;
      if (!in_spans) {
        lists.pieces.push_back(piece);
        continue;
      }
      piece.partial = partial_floats;
      lists.split.push_back(piece);
      Piece span = piece;
      span.is_span = true;
      for_each_span(piece.seen, [&](const Range& seen) {
        span.seen = seen;
        lists.pieces.push_back(span);
        span.partial += attention.partial_floats(piece.heads * piece.rows);
      });
      partial_floats = span.partial;
    }
  }
  // Exactly as much: what it grows to is booked beforehand.
  if (lists.partials.size() < partial_floats) lists.partials = std::vector<float>(partial_floats);

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
                       ggml_tensor* cache_rows, const AttentionNode& node) {
  const AttentionShape& shape = node.shape;
  CHECK(supports_attention(shape));
  CHECK(q->ne[0] == shape.key_dim && q->ne[1] == shape.n_head && q->type == GGML_TYPE_F32);
  CHECK(q->nb[0] == sizeof(float) && q->ne[3] == 1 && positions->ne[0] == q->ne[2]);
  CHECK(cache_rows->type == GGML_TYPE_I64 && cache_rows->ne[0] == q->ne[2]);
  CHECK(k->ne[0] == shape.key_dim * shape.n_head_kv && k->type == shape.kv_type);
  CHECK(v->ne[0] == shape.value_dim * shape.n_head_kv && v->type == shape.kv_type);
  if (shape.kv_type == GGML_TYPE_F16) q = ggml_cast(context, ggml_cast(context, q, GGML_TYPE_F16), GGML_TYPE_F32);
  ggml_tensor* args[] = {q, k, v, positions, cache_rows};
  return ggml_custom_4d(context, GGML_TYPE_F32, shape.value_dim * shape.n_head, q->ne[2], 1, 1, args, 5, attention_node,
                        1, const_cast<AttentionNode*>(&node));
}

}  // namespace drafthorse::ops
