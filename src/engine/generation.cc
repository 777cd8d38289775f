#include "engine/generation.h"

namespace drafthorse {

bool Generation::append(int32_t token, const Tokenizer& tokenizer) {
  if (tokenizer.is_end(token)) {
    stop = StopReason::kEndOfText;
    return false;
  }
  tokens.push_back(token);
  if (stop_text.push(tokenizer.piece(token))) stop = StopReason::kStopText;
  return stop == StopReason::kNone;
}

std::string Generation::take_text() {
  const bool over = stop != StopReason::kNone && stop != StopReason::kStopText;
  return over ? stop_text.take_rest() : stop_text.take();
}

Status no_token_left(const SamplingOptions& options) {
  if (options.grammar.empty()) {
    return runtime_error("the model gives no numbers for what follows: its file may be damaged");
  }
  return runtime_error("the grammar allows none of the model's tokens here: it cannot be completed");
}

}  // namespace drafthorse
