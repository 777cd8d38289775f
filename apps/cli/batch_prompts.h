// Requests in the engine's terms: templates applied, texts as tokens, and how long they are going to be.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "batch_input.h"
#include "batch_job.h"
#include "batch_results.h"
#include "engine/engine.h"
#include "model/chat_template.h"

namespace drafthorse::cli {

// The tokens are those that `drafthorse run` would make of the text, with --chat of a message. `engine` must outlive
// the maker. system: for chats that bring no message of that role; empty: none.
RequestMaker request_maker(const Engine& engine, ChatTemplate chat_template, std::string system);

// What is still to be done.
struct JobSize {
  int64_t requests = 0;                     // that are valid
  int32_t typical_tokens = 0;               // of one, prompt and all that it may generate, from a sample
  int32_t typical_prompt_tokens = 0;        // of these
  std::optional<SamplingOptions> sampling;  // of the sample's first, as most are likely to sample
};
JobSize measure_job(const BatchInput& input, const ResultsFile& results, const RequestMaker& maker, int32_t context);

}  // namespace drafthorse::cli
