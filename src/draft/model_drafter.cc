#include "draft/model_drafter.h"

#include <algorithm>

#include "model/sampling.h"

namespace drafthorse {

Result<std::vector<int32_t>> ModelDrafter::prepare(std::span<const int32_t> text, int32_t scored) {
  // All but the last token, which the first draft() runs.
  std::vector<int32_t> choices;
  const auto known = static_cast<size_t>(pass_.model().kv().length());
  if (text.size() <= known + 1) return choices;
  const std::span<const int32_t> unknown = text.subspan(known, text.size() - known - 1);
  scored = std::min({scored, static_cast<int32_t>(unknown.size()), pass_.model().workspace().shape().max_window});
  RETURN_IF_ERROR(pass_.run(unknown, scored));
  for (int32_t i = 0; i < scored; ++i) choices.push_back(greedy_token(pass_.logits(i)));
  return choices;
}

Result<std::vector<int32_t>> ModelDrafter::draft(std::span<const int32_t> text, int32_t depth) {
  std::vector<int32_t> tokens;
  text_length_ = static_cast<int32_t>(text.size());
  drafted_ = 0;
  if (depth == 0) return tokens;
  // Catch up with what was committed since: usually one token, two after a whole window was accepted (its last token
  // was proposed but never run), more after steps without drafting.
  const auto known = static_cast<size_t>(pass_.model().kv().length());
  CHECK(known < text.size());
  RETURN_IF_ERROR(pass_.run(text.subspan(known), 1));
  tokens.push_back(greedy_token(pass_.logits(0)));
  while (static_cast<int32_t>(tokens.size()) < depth) {
    RETURN_IF_ERROR(pass_.run({&tokens.back(), 1}, 1));
    tokens.push_back(greedy_token(pass_.logits(0)));
  }
  drafted_ = depth;
  return tokens;
}

void ModelDrafter::accept(int32_t accepted) {
  CHECK(accepted >= 0 && accepted <= drafted_);
  KvCache& kv = pass_.model().kv();
  kv.truncate(std::min(kv.length(), text_length_ + accepted));
}

}  // namespace drafthorse
