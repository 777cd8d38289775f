// One sequence being generated: its text so far, and the step that extends it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "engine/engine.h"
#include "engine/stats.h"
#include "plan/depth_policy.h"

namespace drafthorse {

enum class StopReason { kNone, kEndOfText, kTokenLimit, kContextFull };

class Session {
 public:
  // One session at a time: prefill() takes the engine's KV caches over.
  explicit Session(Engine& engine);

  // Runs the prompt (not empty). kUsage when it leaves no room in the context. progress: 0 to 1. After an error or an
  // interruption it may be called again; decode_step() likewise.
  Status prefill(std::span<const int32_t> prompt, const std::function<void(double)>& progress = {});

  // At most this many tokens are generated in all. Default: until the text ends or the context is full.
  void set_token_limit(int64_t tokens) { token_limit_ = tokens; }

  // One round of draft, verify, accept. Returns the tokens it added to the text: at least one unless stopped.
  // An end-of-text token is not part of the text.
  Result<std::vector<int32_t>> decode_step();

  StopReason stop_reason() const { return stop_; }
  std::span<const int32_t> text() const { return text_; }
  const SessionStats& stats() const { return stats_; }
  // Why this depth, in words; empty without a draft.
  std::string explain_depth() const;

 private:
  void prime_depth_policy(std::span<const int32_t> draft_choices);
  int32_t choose_depth();
  void note_step(int32_t depth, int32_t accepted, int64_t draft_ns);

  Engine& engine_;
  LoadedModel& target_;
  std::optional<DepthPolicy> depth_policy_;  // none where the depth is fixed
  std::vector<int32_t> text_;                // prompt and generated; all but the last token are in the KV cache
  int64_t token_limit_ = -1;
  StopReason stop_ = StopReason::kNone;
  SessionStats stats_;
};

}  // namespace drafthorse
