// Where each routed expert's bytes lie in the model's files, and how its matrices lie in those bytes.
//
// A model's family fills this in from the GGUF index; the expert store reads by it. Experts may be one slice each of
// gate, up and down tensors, have gate and up fused, or be tensors of their own.
#pragma once

#include <ggml.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "base/ids.h"

namespace drafthorse {

// A run of bytes in one file.
struct FileExtent {
  int file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// One matrix of an expert: [columns, rows] of `type`, starting `offset` bytes into extent number `extent`.
struct ExpertMatrix {
  ggml_type type = GGML_TYPE_F32;
  int64_t columns = 0;
  int64_t rows = 0;
  int extent = 0;
  uint64_t offset = 0;
};

inline constexpr int kMaxExpertExtents = 3;

// All experts of one layer: same shapes and types, different places.
struct ExpertLayer {
  ExpertMatrix gate;
  ExpertMatrix up;
  ExpertMatrix down;
  int n_extents = 0;
  std::vector<std::array<FileExtent, kMaxExpertExtents>> experts;  // by ExpertId
};

struct ExpertLayout {
  std::vector<ExpertLayer> layers;  // by LayerId; a dense layer has no experts

  size_t n_layers() const { return layers.size(); }
  int n_experts(LayerId layer) const { return static_cast<int>(layers[index(layer)].experts.size()); }
  std::vector<int> experts_by_layer() const {
    std::vector<int> experts;
    for (const ExpertLayer& layer : layers) experts.push_back(static_cast<int>(layer.experts.size()));
    return experts;
  }
  int total_experts() const {
    size_t total = 0;
    for (const ExpertLayer& layer : layers) total += layer.experts.size();
    return static_cast<int>(total);
  }
  int moe_layers() const {
    return static_cast<int>(
        std::count_if(layers.begin(), layers.end(), [](const ExpertLayer& layer) { return !layer.experts.empty(); }));
  }
  // Payload of one expert of this layer, in bytes.
  uint64_t expert_bytes(LayerId layer) const {
    uint64_t bytes = 0;
    const ExpertLayer& of = layers[index(layer)];
    if (of.experts.empty()) return 0;
    for (int i = 0; i < of.n_extents; ++i) bytes += of.experts.front()[i].bytes;
    return bytes;
  }
};

}  // namespace drafthorse
