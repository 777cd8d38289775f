#include "expert/histories.h"

#include <cmath>

#include "base/check.h"

namespace drafthorse {

ExpertHistories::ExpertHistories(std::span<const int> experts_by_layer, bool learns) {
  for (const int experts : experts_by_layer) histories_.emplace_back(static_cast<size_t>(experts));
  if (learns) pass_use_.emplace(experts_by_layer);
}

void ExpertHistories::record(LayerId layer, std::span<const int32_t> used, int64_t count,
                             std::span<const char> of_window) {
  std::vector<ExpertHistory>& histories = histories_[index(layer)];
  CHECK(count > 0 && used.size() == histories.size());
  for (size_t e = 0; e < used.size(); ++e) record_uses(histories[e], tokens_, count, used[e]);
  if (!pass_use_) return;
  pass_use_->record(layer, used, count, of_window, window_);
  pass_use_->expect(layer, window_, histories);
}

void ExpertHistories::set_window(double tokens) {
  // The mean of a session's windows moves a little with each of them: that need not be followed to the last digit.
  constexpr double kSame = 0.1;
  window_ = tokens;
  if (!pass_use_ || std::abs(tokens - expected_window_) <= kSame * expected_window_) return;
  expected_window_ = tokens;
  for (size_t i = 0; i < histories_.size(); ++i) {
    pass_use_->expect(LayerId{static_cast<int32_t>(i)}, tokens, histories_[i]);
  }
}

void ExpertHistories::set_use_rate(ExpertKey key, double rate) {
  ExpertHistory& history = histories_[index(key.layer)][index(key.expert)];
  history.use_rate = rate;
  history.rate_token = tokens_;
  if (pass_use_) pass_use_->set_rate(key, rate);
}

}  // namespace drafthorse
