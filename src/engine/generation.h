// A text being generated: its tokens, and what ends it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/stop_text.h"
#include "model/sampler.h"
#include "model/tokenizer.h"

namespace drafthorse {

enum class StopReason { kNone, kEndOfText, kTokenLimit, kContextFull, kStopText };

struct Generation {
  std::vector<int32_t> tokens;  // prompt and generated; all but the last are in the KV cache
  StopText stop_text{{}};
  StopReason stop = StopReason::kNone;

  // Adds a chosen token. False: the text ends with it, or it ends the text. An end-of-text token is not part of it.
  bool append(int32_t token, const Tokenizer& tokenizer);
  // The bytes generated since the last call, less what may yet turn out to be the beginning of a stop text.
  std::string take_text();
};

// Why nothing could be chosen.
Status no_token_left(const SamplingOptions& options);

}  // namespace drafthorse
