// Rotary embedding as a file's metadata describe it, for all families alike.
#pragma once

#include <initializer_list>
#include <string_view>

#include "model/config.h"
#include "model/metadata_reader.h"

namespace drafthorse {

// Everything but `pairs`; `dims` defaults to what the caller has put there. `supported` are the types of scaling that
// the family computes: of none, linear, yarn, longrope.
Status read_rope(const MetadataReader& reader, std::initializer_list<std::string_view> supported, ModelConfig& config);

// By what YaRN lengthens the context; 1 where there is none.
float yarn_factor(const RopeConfig& rope);

// 0.1 weight ln(factor) + 1: what YaRN multiplies magnitudes with.
float yarn_magnitude(float factor, float weight = 1);

}  // namespace drafthorse
