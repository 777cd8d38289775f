// Texts for two models to be calibrated on.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"

namespace drafthorse {

enum class Writer {
  kDraft,   // quick: it is in memory, and its states are needed on what it drafts
  kTarget,  // slow where it is read from a disk
};

// A few beginnings of our own: code and prose, questions and letters, in some languages.
std::span<const std::string_view> own_openings();

// Writes on from each opening in turn, sampling, until there are `positions` tokens, and joins what was written to
// texts of calibration_window() tokens.
Result<std::vector<std::vector<int32_t>>> write_texts(Engine& engine, std::span<const std::string> openings,
                                                      Writer writer, int32_t positions, const LoadProgress& progress);

// A text of others' cut to such texts, up to `positions` tokens.
std::vector<std::vector<int32_t>> cut_text(const Engine& engine, std::string_view text, int32_t positions);

}  // namespace drafthorse
