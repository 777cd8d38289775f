#include "draft/model_drafter.h"

#include <algorithm>

namespace drafthorse {

Status ModelDrafter::run(std::span<const int32_t> tokens, int32_t logits_wanted) {
  const ModelConfig& config = pass_.model().config();
  if (config.n_vocab >= target_vocabulary_) return pass_.run(tokens, logits_wanted);
  std::vector<int32_t> read(tokens.begin(), tokens.end());
  for (int32_t& token : read) token = readable(token, config);
  return pass_.run(read, logits_wanted);
}

Result<std::vector<int32_t>> ModelDrafter::prepare(std::span<const int32_t> text, int32_t scored, Sampler& sampler) {
  // All but the last token, which the first draft() runs.
  std::vector<int32_t> choices;
  KvCache& kv = pass_.model().kv();
  const auto known = static_cast<size_t>(kv.length());
  if (text.size() <= known + 1) return choices;
  const std::span<const int32_t> unknown = text.subspan(known, text.size() - known - 1);
  scored = std::min({scored, static_cast<int32_t>(unknown.size()), pass_.model().workspace().shape().max_window});
  RETURN_IF_ERROR(run(unknown, scored));
  committed_ = kv.length();
  const size_t first = text.size() - static_cast<size_t>(scored) - 1;
  for (int32_t i = 0; i < scored; ++i) {
    choices.push_back(sampler.choose_freely(pass_.logits(i), first + static_cast<size_t>(i) + 1));
  }
  return choices;
}

Result<std::vector<int32_t>> ModelDrafter::draft(std::span<const int32_t> text, int32_t depth, Sampler& sampler) {
  std::vector<int32_t> tokens;
  text_length_ = static_cast<int32_t>(text.size());
  drafted_ = 0;
  if (depth == 0) return tokens;
  // A step that failed may have left rows of a draft that nobody accepted.
  KvCache& kv = pass_.model().kv();
  kv.truncate(std::min({kv.length(), committed_, text_length_ - 1}));
  // Catch up with what was committed since: usually one token, two after a whole window was accepted (its last token
  // was proposed but never run), more after steps without drafting.
  RETURN_IF_ERROR(run(text.subspan(static_cast<size_t>(kv.length())), 1));
  committed_ = kv.length();
  std::vector<int32_t> ahead(text.begin(), text.end());
  while (true) {
    const int32_t token = sampler.propose(pass_.logits(0), ahead);
    if (token == kNoToken) break;
    CHECK(token < target_vocabulary_);
    tokens.push_back(token);
    ahead.push_back(token);
    // Nothing follows an end of text.
    if (static_cast<int32_t>(tokens.size()) == depth || sampler.is_end(token)) break;
    RETURN_IF_ERROR(run({&token, 1}, 1));
  }
  drafted_ = static_cast<int32_t>(tokens.size());
  return tokens;
}

void ModelDrafter::accept(int32_t accepted) {
  CHECK(accepted >= 0 && accepted <= drafted_);
  KvCache& kv = pass_.model().kv();
  kv.truncate(std::min(kv.length(), text_length_ + accepted));
  if (drafted_ > 0) committed_ = kv.length();
}

void ModelDrafter::truncate(int32_t length) {
  KvCache& kv = pass_.model().kv();
  kv.truncate(std::min({kv.length(), committed_, length}));
  committed_ = kv.length();
  drafted_ = 0;
}

}  // namespace drafthorse
