// The histories of all experts of a cache: what was touched when, and used how often, and how likely it is used next.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "expert/eviction.h"
#include "expert/pass_use.h"

namespace drafthorse {

class ExpertHistories {
 public:
  // learns: whether anybody reads ExpertHistory::next_pass, which takes 0.1 us per expert and pass.
  ExpertHistories(std::span<const int> experts_by_layer, bool learns);

  const ExpertHistory& of(ExpertKey key) const { return histories_[index(key.layer)][index(key.expert)]; }
  void touch(ExpertKey key) { histories_[index(key.layer)][index(key.expert)].last_touch = ++tick_; }

  // Of `count` tokens that became part of the text, used[e] used expert e of the layer. of_window[e]: whether any token
  // of the window did, rejected ones included; empty where the tokens are a prompt's or those of many texts. For each
  // layer with experts, then advance().
  void record(LayerId layer, std::span<const int32_t> used, int64_t count, std::span<const char> of_window = {});
  void advance(int64_t count) { tokens_ += count; }
  int64_t tokens() const { return tokens_; }

  // Tokens that passes take nowadays.
  void set_window(double tokens);
  double window() const { return window_; }

  // The share of recent tokens that used the expert.
  double use_rate(ExpertKey key) const { return use_rate_at(of(key), tokens_); }
  // As it was before what is recorded here.
  void set_use_rate(ExpertKey key, double rate);

 private:
  std::vector<std::vector<ExpertHistory>> histories_;  // [layer][expert]
  std::optional<PassUse> pass_use_;
  double window_ = 1;
  double expected_window_ = 1;  // that next_pass is for
  int64_t tick_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace drafthorse
