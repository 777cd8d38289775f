// What a widened file will hold: pure arithmetic on the source's metadata and shapes, no weights read.
//
// A model keeps its function when its vectors are repeated (all divisions exact in real numbers):
//   - the residual stream is r copies of the channel vector, laid end to end: x' = (x, x, ..., x). Its mean square is
//     that of x, so RMSNorm with r copies of its weights gives r copies of the norm's output;
//   - a matrix that reads repeated vectors has its columns repeated and is divided by the number of copies, so
//     each output number is the same sum as before; repeated rows repeat its output;
//   - heads are repeated as a block, KV heads too. Query head h reads KV head h / (heads per KV head), and copy c of
//     head h is head c * n_head + h, which reads copy c of the same KV head. Head size and rope stay;
//   - FFN rows are repeated (elementwise, so the activations are), ffn_down is divided by their number;
//   - the router reads repeated channels and is divided, its outputs are not repeated: the same experts are chosen;
//   - latent attention (deepseek2) repeats its heads too, and the narrow state that queries pass through. The latent
//     state of keys and values and the rotated key stay: they are one row for all heads, the only one that is cached,
//     and are as long in small models as in large ones (512 and 64 in DeepSeek-V2-Lite as in V3, which has 3.5 times
//     the channels and 8 times the heads). So attention's matrices grow with the rest, the cache does not, and attn_k_b
//     and attn_v_b get more slices, not longer rows;
//   - FFNs beside the experts, of shared experts and of leading dense layers, grow as the experts do;
//   - the head is untied from the embeddings, which are repeated but not divided.
// Copies lie end to end, never side by side: neighbours within a block of a quantised type stay different numbers, so
// the block loses no more than it would in the small model.
//
// Exact copies also round alike, so a quantised wide model is as far from its original as the quantised small one. The
// many weights of a large trained model do not: their errors average out. With `noise` they do not here either: the
// copies of a weight differ by random numbers that sum to zero, which changes no sum but makes every copy round on its
// own. That is for weights that stand beside each other in a row. Copies of a whole head (attn_k_b, attn_v_b) stay
// alike: a softmax and attn_output's own noise lie between them and any sum.
//
// architecture.h says which dimension of which tensor is repeated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "ggml.h"
#include "gguf.h"
#include "widen/architecture.h"
#include "widen/gguf_source.h"

namespace drafthorse {

struct WidenOptions {
  int64_t n_embd = 0;  // channels wanted, a multiple of the source's; 0: as many as there are
  int64_t n_ff = 0;    // FFN rows (per expert) wanted, likewise; other FFNs grow by the same factor
  // Of every matrix but the router, which is F32 like all vectors. Rows that no size makes longer and the type's block
  // does not divide are Q8_0, or F16.
  ggml_type type = GGML_TYPE_F16;
  std::optional<ggml_type> rest_type = std::nullopt;  // of attention, embeddings and head, where it differs
  int32_t n_extra_layers = 0;                         // copies of the trained layers whose output projections are zero
  float noise = 0;                                    // see above; relative to the RMS of a row, 0 to 1
  uint32_t seed = 1;                                  // of the noise
};

// One tensor of the widened file: rows, columns and slices of a source tensor, repeated end to end and scaled.
struct PlannedTensor {
  std::string name;
  const SourceTensor* source = nullptr;
  ggml_type type = GGML_TYPE_F32;
  int64_t column_copies = 1;
  int64_t row_copies = 1;
  int64_t slice_copies = 1;
  float scale = 1;  // 0: all zero, for the output projections of extra layers
  float noise = 0;  // on every weight, relative to the RMS of its row; the copies of a weight sum to no noise

  // Whether copies of a row are equal in every byte.
  bool copies_are_equal() const { return noise == 0; }
  int64_t n_columns() const { return source->n_columns * column_copies; }
  int64_t n_rows() const { return source->n_rows * row_copies; }
  int64_t n_slices() const { return source->n_slices * slice_copies; }
  uint64_t slice_bytes() const { return ggml_row_size(type, n_columns()) * static_cast<uint64_t>(n_rows()); }
};

struct WidenPlan {
  std::vector<PlannedTensor> tensors;  // in the order of the file
  SourceShape source;
  int64_t n_layer = 0;
  int64_t n_embd = 0;
  int64_t n_ff = 0;
  int64_t embd_copies = 1;
  int64_t ff_copies = 1;
  uint64_t expert_bytes = 0;  // of one expert of one layer; 0 where experts are not stacked, or there are none

  int64_t copies(Axis axis) const;
};

// Usage error where the sizes are no multiples or the type's block does not divide a row, file error where the source
// is of another architecture or holds something whose meaning is not known here (fused experts, say).
// The plan points into the source.
Result<WidenPlan> plan_widening(const GgufSource& source, const WidenOptions& options);

// Sets the widened file's metadata in an empty context: the source's, with sizes, name and file type changed.
void write_metadata(const GgufSource& source, const WidenPlan& plan, const WidenOptions& options, gguf_context* out);

// The types a file can be written in: "F32", "BF16", "Q4_K" and so on, in upper or lower case.
std::optional<ggml_type> parse_weight_type(std::string_view name);
std::string weight_type_names();  // "F32, F16, ..."

}  // namespace drafthorse
