// A made-up model's experts, for tests: a layout, the files' contents it points into, and the real files that FileSet
// wants for their names.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "io/expert_layout.h"
#include "io/file_set.h"
#include "io/testing/temporary_file.h"
#include "ops/expert_weights.h"

namespace drafthorse {

struct FakeExpertsOptions {
  std::vector<int> experts_per_layer;  // 0: a dense layer
  int64_t n_embd = 24;
  int64_t n_ff = 40;   // of layer 0; each further MoE layer's experts are a little larger
  bool fused = false;  // gate and up in one extent
  int n_files = 1;
};

class FakeExperts {
 public:
  FakeExperts(const FakeExpertsOptions& options, uint64_t seed) : contents_(static_cast<size_t>(options.n_files)) {
    std::mt19937_64 random(seed);
    for (size_t i = 0; i < options.experts_per_layer.size(); ++i) {
      ExpertLayer& layer = layout_.layers.emplace_back();
      const int64_t n_ff = options.n_ff + static_cast<int64_t>(i);
      const auto matrix_bytes = static_cast<uint64_t>(n_ff * options.n_embd) * sizeof(float);
      layer.gate = {GGML_TYPE_F32, options.n_embd, n_ff, 0, 0};
      layer.up = {GGML_TYPE_F32, options.n_embd, n_ff, options.fused ? 0 : 1, options.fused ? matrix_bytes : 0};
      layer.down = {GGML_TYPE_F32, n_ff, options.n_embd, options.fused ? 1 : 2, 0};
      layer.n_extents = options.fused ? 2 : 3;
      for (int e = 0; e < options.experts_per_layer[i]; ++e) {
        auto& extents = layer.experts.emplace_back();
        for (int x = 0; x < layer.n_extents; ++x) {
          extents[x] = append(options.fused && x == 0 ? 2 * matrix_bytes : matrix_bytes, random);
        }
      }
    }
    for (auto& content : contents_) {
      // Eight at a time: byte by byte would be most of the test's time.
      for (size_t i = 0; i < content.size(); i += sizeof(uint64_t)) {
        const uint64_t bits = random();
        std::memcpy(content.data() + i, &bits, std::min(sizeof(bits), content.size() - i));
      }
    }
  }

  const ExpertLayout& layout() const { return layout_; }
  const std::vector<std::vector<std::byte>>& contents() const { return contents_; }

  // The files lie in the temporary folder as long as this object lives.
  std::unique_ptr<FileSet> open_files() {
    std::vector<std::string> paths;
    for (const auto& content : contents_) {
      on_disk_.push_back(std::make_unique<TemporaryFile>(temporary_path("experts"), content));
      paths.push_back(on_disk_.back()->path());
    }
    Result<std::unique_ptr<FileSet>> files = FileSet::open(paths);
    CHECK(files.ok());
    return std::move(files).value();
  }

  // Whether these are the expert's matrices, each byte.
  bool matches(ExpertKey key, const ops::ExpertWeights& weights) const {
    const ExpertLayer& layer = layout_.layers[index(key.layer)];
    const auto& extents = layer.experts[index(key.expert)];
    const auto same = [&](const ExpertMatrix& matrix, const ops::WeightMatrix& got) {
      const FileExtent& extent = extents[matrix.extent];
      const std::byte* expected = contents_[extent.file].data() + extent.offset + matrix.offset;
      return got.type == matrix.type && got.columns == matrix.columns && got.rows == matrix.rows &&
             got.row_bytes == static_cast<size_t>(matrix.columns) * sizeof(float) &&
             std::memcmp(got.data, expected, static_cast<size_t>(got.rows) * got.row_bytes) == 0;
    };
    return same(layer.gate, weights.gate) && same(layer.up, weights.up) && same(layer.down, weights.down);
  }

 private:
  // Somewhere behind what is there, seldom on a block boundary; the last one ends with its file.
  FileExtent append(uint64_t bytes, std::mt19937_64& random) {
    const auto file = static_cast<int>(random() % contents_.size());
    auto& content = contents_[static_cast<size_t>(file)];
    const uint64_t offset = content.size() + random() % 64 * 4;
    content.resize(offset + bytes);
    return {file, offset, bytes};
  }

  ExpertLayout layout_;
  std::vector<std::vector<std::byte>> contents_;
  std::vector<std::unique_ptr<TemporaryFile>> on_disk_;
};

}  // namespace drafthorse
