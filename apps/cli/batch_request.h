// One line of a batch's input, as OpenAI's batches have it: {"custom_id", "method", "url", "body"}. Pure.
//
// docs/batch.md says which fields of a body are used, ignored and refused: what would change the text and is not
// computed here is refused, whatever else it may be.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "json_fields.h"
#include "model/chat_template.h"
#include "model/sampler.h"

namespace drafthorse::cli {

// Of a line, so that reading one takes a bounded amount of memory.
inline constexpr size_t kLongestRequestLine = 8 << 20;
inline constexpr size_t kMostJsonValues = 1 << 18;

// What a request has that does not say otherwise.
struct RequestDefaults {
  SamplingOptions sampling;      // without its seed
  std::optional<uint64_t> seed;  // nothing: each request one of its own, see own_seed()
  int64_t token_limit = -1;
  std::vector<std::string> stops;
};

struct ApiRequest {
  bool chat = false;
  std::vector<ChatMessage> messages;                       // of a chat
  std::variant<std::string, std::vector<int32_t>> prompt;  // otherwise; tokens as they are
  SamplingOptions sampling;                                // checked
  int64_t token_limit = -1;                                // -1: none
  std::vector<std::string> stops;
};

struct RequestLine {
  std::string custom_id;              // empty: the line has none that can be read
  std::optional<ApiRequest> request;  // nothing: error says why
  RequestError error;
};

RequestLine parse_request_line(std::string_view line, const RequestDefaults& defaults);

// Of a request without a seed: the same whenever the job is run, different between requests. Fits into 32 bits.
uint64_t own_seed(std::string_view custom_id);

}  // namespace drafthorse::cli
