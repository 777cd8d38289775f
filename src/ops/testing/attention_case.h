// Sequences with random queries and caches of any type, attention by its definition, and attend() over them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "ops/attention.h"
#include "ops/isa.h"
#include "ops/testing/random_weights.h"

namespace drafthorse::ops {

// Rows of a cache: `dim` elements for each KV head.
struct CacheRows {
  CacheRows(ggml_type type, int64_t dim, int64_t n_head_kv, int64_t rows, std::mt19937_64& random)
      : head_bytes(ggml_row_size(type, dim)),
        row_bytes(head_bytes * static_cast<size_t>(n_head_kv)),
        width(dim * n_head_kv),
        values(random_floats(static_cast<size_t>(width * rows), random)),
        data(row_bytes * static_cast<size_t>(rows)) {
    ggml_quantize_chunk(type, values.data(), data.data(), 0, rows * n_head_kv, dim, nullptr);
    ggml_get_type_traits(type)->to_float(data.data(), values.data(), static_cast<int64_t>(values.size()));
  }
  // Every byte of a row set: not a number in any type.
  void poison(int64_t row) { std::memset(data.data() + static_cast<size_t>(row) * row_bytes, 0xFF, row_bytes); }

  size_t head_bytes;
  size_t row_bytes;
  int64_t width;
  std::vector<float> values;  // as the type represents them
  std::vector<std::byte> data;
};

struct SequenceCase {
  // `shared_values`: values are the first elements of the keys, as in MLA.
  SequenceCase(const AttentionShape& of, std::vector<int32_t> at, int64_t cache_rows, uint64_t seed,
               bool shared_values = false)
      : shape(of),
        positions(std::move(at)),
        random(seed),
        keys(of.kv_type, of.key_dim, of.n_head_kv, cache_rows, random),
        values(of.kv_type, shared_values ? 1 : of.value_dim, of.n_head_kv, shared_values ? 0 : cache_rows, random),
        shared(shared_values),
        q(random_floats(positions.size() * static_cast<size_t>(of.n_head * of.key_dim), random)) {}

  int64_t width() const { return shape.n_head * shape.value_dim; }

  // Tokens [first, first + count); results to `out`.
  AttentionSequence part(size_t first, size_t count, float* out) const {
    const CacheRows& v = shared ? keys : values;
    return {.q = q.data() + first * static_cast<size_t>(shape.n_head * shape.key_dim),
            .q_token_stride = shape.n_head * shape.key_dim,
            .q_head_stride = shape.key_dim,
            .keys = keys.data.data(),
            .key_stride = keys.row_bytes,
            .key_head_stride = keys.head_bytes,
            .values = v.data.data(),
            .value_stride = v.row_bytes,
            .value_head_stride = v.head_bytes,
            .positions = {positions.data() + first, count},
            .out = out,
            .out_stride = width()};
  }

  std::vector<float> run(const Processor& processor, size_t first, size_t count) const {
    std::vector<float> out(count * static_cast<size_t>(width()));
    const AttentionSequence sequence = part(first, count, out.data());
    AttentionWorkspace workspace;
    attend(processor, shape, {&sequence, 1}, workspace);
    return out;
  }
  std::vector<float> run(const Processor& processor) const { return run(processor, 0, positions.size()); }

  // One head of one token by the definition of softmax.
  std::vector<double> reference(size_t token, int64_t head) const {
    const CacheRows& v = shared ? keys : values;
    const int64_t kv_head = head / (shape.n_head / shape.n_head_kv);
    const int64_t v_head = kv_head * (shared ? shape.key_dim : shape.value_dim);
    const float* query = q.data() + (static_cast<int64_t>(token) * shape.n_head + head) * shape.key_dim;
    const int64_t end = positions[token] + 1;
    const int64_t begin = shape.window > 0 ? std::max<int64_t>(0, end - shape.window) : 0;
    double maximum = shape.sinks == nullptr ? -std::numeric_limits<double>::infinity() : shape.sinks[head];
    std::vector<double> scores(static_cast<size_t>(end));
    for (int64_t p = begin; p < end; ++p) {
      const float* key = keys.values.data() + p * keys.width + kv_head * shape.key_dim;
      for (int64_t d = 0; d < shape.key_dim; ++d) scores[p] += static_cast<double>(query[d]) * key[d];
      scores[p] *= shape.scale;
      if (shape.softcap > 0) scores[p] = shape.softcap * std::tanh(scores[p] / shape.softcap);
      maximum = std::max(maximum, scores[p]);
    }
    double sum = shape.sinks == nullptr ? 0 : std::exp(shape.sinks[head] - maximum);
    std::vector<double> out(static_cast<size_t>(shape.value_dim));
    for (int64_t p = begin; p < end; ++p) {
      const double weight = std::exp(scores[p] - maximum);
      sum += weight;
      for (int64_t d = 0; d < shape.value_dim; ++d) out[d] += weight * v.values[p * v.width + v_head + d];
    }
    for (double& value : out) value /= sum;
    return out;
  }

  // The largest difference between `y`, as run() returns it, and the reference.
  double largest_error(const std::vector<float>& y) const {
    double largest = 0;
    for (size_t t = 0; t < positions.size(); ++t) {
      for (int64_t h = 0; h < shape.n_head; ++h) {
        const std::vector<double> expected = reference(t, h);
        const float* row = y.data() + static_cast<int64_t>(t) * width() + h * shape.value_dim;
        for (int64_t d = 0; d < shape.value_dim; ++d) {
          const double error = std::abs(row[d] - expected[d]);
          if (!(error <= largest)) largest = error;  // not a number is an error too
        }
      }
    }
    return largest;
  }

  AttentionShape shape;
  std::vector<int32_t> positions;
  std::mt19937_64 random;
  CacheRows keys;
  CacheRows values;
  bool shared;
  std::vector<float> q;
};

}  // namespace drafthorse::ops
