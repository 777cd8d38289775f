#include "draft/target_kv_drafter.h"

#include <algorithm>

namespace drafthorse {

Status TargetKvDrafter::run(int32_t token) {
  token = readable(token, pass_.model().config());
  return kind_ == Kind::kResident ? pass_.run_among_residents(token) : pass_.run({&token, 1}, 1);
}

Result<std::vector<int32_t>> TargetKvDrafter::prepare(std::span<const int32_t> text, int32_t scored, Sampler& sampler) {
  std::vector<int32_t> choices;
  if (kind_ == Kind::kResident) return choices;
  KvCache& kv = pass_.model().kv();
  scored = std::min({scored, kv.length(), pass_.model().workspace().shape().max_window});
  if (scored == 0) return choices;
  // The rows it writes here are the target's: they are put back.
  const int32_t length = kv.length();
  const int32_t first = length - scored;
  const std::vector<std::byte> rows = kv.copy_rows(first, scored);
  kv.truncate(first);
  std::vector<int32_t> window(text.begin() + first, text.begin() + length);
  for (int32_t& token : window) token = readable(token, pass_.model().config());
  const Status status = pass_.run(window, scored);
  kv.restore_rows(first, rows);
  kv.truncate(first);
  kv.extend(scored);
  RETURN_IF_ERROR(status);
  for (int32_t i = 0; i < scored; ++i) {
    choices.push_back(sampler.choose_freely(pass_.logits(i), static_cast<size_t>(first + i) + 1));
  }
  return choices;
}

Result<std::vector<int32_t>> TargetKvDrafter::draft(std::span<const int32_t> text, int32_t depth, Sampler& sampler) {
  std::vector<int32_t> drafted;
  KvCache& kv = pass_.model().kv();
  const int32_t committed = kv.length();
  CHECK(committed + 1 == static_cast<int32_t>(text.size()));
  const Status status = propose(text, depth, sampler, drafted);
  kv.truncate(committed);
  RETURN_IF_ERROR(status);
  return drafted;
}

Status TargetKvDrafter::propose(std::span<const int32_t> text, int32_t depth, Sampler& sampler,
                                std::vector<int32_t>& drafted) {
  std::vector<int32_t> ahead(text.begin(), text.end());
  while (static_cast<int32_t>(drafted.size()) < depth) {
    RETURN_IF_ERROR(run(ahead.back()));
    const int32_t token = sampler.propose(pass_.logits(0), ahead);
    if (token == kNoToken) break;
    CHECK(token < target_vocabulary_);
    drafted.push_back(token);
    ahead.push_back(token);
    if (sampler.is_end(token)) break;
  }
  return {};
}

}  // namespace drafthorse
