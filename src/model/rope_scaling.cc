#include "model/rope_scaling.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace drafthorse {

float yarn_factor(const RopeConfig& rope) { return rope.extrapolation == 0 ? 1.0F : 1 / rope.frequency_scale; }

float yarn_magnitude(float factor, float weight) { return 0.1F * weight * std::log(factor) + 1; }

Status read_rope(const MetadataReader& reader, std::initializer_list<std::string_view> supported, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  ASSIGN_OR_RETURN(rope.dims, reader.dimension_or("rope.dimension_count", rope.dims));
  ASSIGN_OR_RETURN(rope.base, reader.number_or("rope.freq_base", 10000));
  ASSIGN_OR_RETURN(rope.original_context,
                   reader.dimension_or("rope.scaling.original_context_length", config.context_trained));
  if (rope.original_context == 0) rope.original_context = config.context_trained;
  // What lies in the file without a type is linear.
  ASSIGN_OR_RETURN(const std::string type, reader.text_or("rope.scaling.type", "linear"));
  if (std::find(supported.begin(), supported.end(), type) == supported.end()) {
    return reader.error(fmt::format("rotary scaling '{}' is not supported for architecture '{}' (supported: {})", type,
                                    config.architecture, fmt::join(std::vector(supported), ", ")));
  }
  if (type != "none") {
    ASSIGN_OR_RETURN(const float old_factor, reader.number_or("rope.scale_linear", 0));
    ASSIGN_OR_RETURN(const float factor, reader.number_or("rope.scaling.factor", old_factor));
    rope.frequency_scale = factor == 0 ? 1 : 1 / factor;
  }
  ASSIGN_OR_RETURN(rope.magnitude, reader.number_or("rope.scaling.attn_factor", 1));
  if (!(rope.base > 0) || !(rope.frequency_scale > 0) || !std::isfinite(rope.frequency_scale)) {
    return reader.error("rotary base and scale must be positive");
  }
  if (type == "yarn") {
    rope.extrapolation = 1;
    if (yarn_factor(rope) < 1) return reader.error("a YaRN factor below 1 is not supported");
    // With that ggml multiplies magnitudes by yarn_magnitude(factor), which is YaRN's own.
  }
  return {};
}

}  // namespace drafthorse
