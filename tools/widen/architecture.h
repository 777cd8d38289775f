// The architectures that can be widened: what each tensor's dimensions belong to, by its name, and how long they are.
// A further architecture is a list of tables in architecture.cc, with tables of its own for what none has yet.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "widen/gguf_source.h"

namespace drafthorse {

// What the numbers along one dimension of a tensor belong to, and so how often they are repeated.
enum class Axis {
  kFixed,          // stays as it is, however long: vocabulary, experts, one head, the latent state
  kChannels,       // the residual stream
  kQueryHeads,     // all query heads' elements, head after head
  kKvHeads,        // all keys' or values', likewise
  kValueHeads,     // what attention gives: all heads' values
  kKeysAndValues,  // latent attention, kept in one matrix: keys and values of each head
  kHeads,          // latent attention, kept in two stacks: one slice for each head
  kQueryState,     // latent attention: the narrow state that queries pass through
  kFfn,            // rows of a dense FFN
  kExpertFfn,      // of each routed expert
  kSharedFfn,      // of the shared expert
};
inline constexpr size_t kAxes = static_cast<size_t>(Axis::kSharedFfn) + 1;

constexpr bool is_ffn(Axis axis) { return axis == Axis::kFfn || axis == Axis::kExpertFfn || axis == Axis::kSharedFfn; }

enum class TensorKind {
  kVector,  // added or multiplied element by element: repeated, F32
  kTable,   // rows are looked up: repeated
  kMatrix,  // a product sums over the columns: divided by their copies
  kRouter,  // likewise, and decides between experts: F32, the same numbers as before
};

struct TensorRole {
  std::string_view name;  // without layer and expert
  TensorKind kind = TensorKind::kMatrix;
  Axis columns = Axis::kFixed;   // of a matrix: what it reads; of a vector: what it is
  Axis rows = Axis::kFixed;      // of a matrix: what it gives
  Axis slices = Axis::kFixed;    // of a stack of matrices
  bool writes_residual = false;  // zero in extra layers
};

using RoleTable = std::span<const TensorRole>;

struct Architecture {
  std::string_view name;  // general.architecture
  std::span<const RoleTable> tables;
  bool latent_attention = false;
  bool one_ffn_length = false;  // feed_forward_length is an expert's rows too

  const TensorRole* find(std::string_view tensor) const;  // nullptr where its meaning is not known
};

// What the metadata says of a file.
struct SourceShape {
  const Architecture* architecture = nullptr;
  int64_t n_layer = 0;
  int64_t n_dense_lead = 0;  // layers without experts in front, and so the first one with; all of a dense model
  bool is_moe = false;
  bool kv_heads_repeat = true;       // false: one for all heads, which stays one
  std::array<int64_t, kAxes> sizes;  // by Axis; 0: any

  int64_t size(Axis axis) const { return sizes[static_cast<size_t>(axis)]; }
  // Rows of one FFN: an expert's, if there are experts.
  int64_t n_ff() const { return size(is_moe ? Axis::kExpertFfn : Axis::kFfn); }
};

// File error where the architecture is not known or a number is missing.
Result<SourceShape> read_shape(const GgufSource& source);

std::string widened_architecture_names();  // "deepseek, deepseek2, ..."

}  // namespace drafthorse
