// What a model's passes consist of, and how much memory a run touches: the engine's part of a prediction.
#pragma once

#include "engine/engine.h"
#include "plan/compute_time.h"

namespace drafthorse {

// From the index and the model made of it; nothing needs to be loaded.
ModelWork model_work(const GgufIndex& index, const Model& model);

// What an engine that was only prepared would hold at most while it reads a prompt and generates: its ledger, less the
// reserve and what so short a text leaves untouched. Bytes of resident memory.
uint64_t expected_peak_bytes(const Engine& engine, int prompt_tokens, int generated_tokens);

}  // namespace drafthorse
