// A line of a batch's requests, or of its results.
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/utf8.h"
#include "cli/batch_request.h"
#include "cli/batch_results.h"
#include "fuzz/target.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace drafthorse;
  const std::string text = fuzz::text_of(data, size);
  const cli::RequestLine line = cli::parse_request_line(text, {});
  CHECK(is_utf8(line.custom_id));
  CHECK(line.request.has_value() == line.error.message.empty());
  cli::ResultWriter writer("model.gguf");
  std::string written;
  if (line.request) {
    CHECK(!line.custom_id.empty());
    CHECK(check_sampling(line.request->sampling).ok());
    CHECK(line.request->chat != line.request->messages.empty());
    BatchResult result;
    result.text = text;  // any bytes
    written = writer.answer(line.custom_id, line.request->chat, result, line.request->sampling.seed);
  } else {
    written = writer.failure({.number = 1, .custom_id = line.custom_id}, line.error);
  }
  CHECK(is_utf8(written) && written.find('\n') == std::string::npos);
  const std::optional<cli::ResultLine> found = cli::parse_result_line(written);
  CHECK(found && found->custom_id == line.custom_id && found->failed != line.request.has_value());
  static_cast<void>(cli::parse_result_line(text));
  return 0;
}
