// One sequence being generated: its text so far, and the step that extends it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "engine/draft_trial.h"
#include "engine/engine.h"
#include "engine/generation.h"
#include "engine/stats.h"
#include "model/sampler.h"
#include "plan/drafter_policy.h"

namespace drafthorse {

class Session {
 public:
  // One session at a time: the first prefill() takes the engine's KV caches over. Samples as the engine's options say.
  explicit Session(Engine& engine);
  // Samples otherwise. Room in memory for what the options need was reserved by the engine's own.
  Session(Engine& engine, std::unique_ptr<Sampler> sampler);

  // Makes `prompt` (not empty) the text and runs what is new: of what an earlier prefill() and its steps left, the
  // beginning that both have in common is kept and the rest forgotten. Counting and statistics begin anew.
  // kUsage when it leaves no room in the context. progress: 0 to 1. After an error or an interruption it may be called
  // again; decode_step() likewise.
  Status prefill(std::span<const int32_t> prompt, const std::function<void(double)>& progress = {});

  // At most this many tokens are generated after each prefill(). Default: until the text ends or the context is full.
  void set_token_limit(int64_t tokens) { token_limit_ = tokens; }
  // Generation stops where the generated text holds one of these. Set before prefill().
  void set_stop_texts(std::vector<std::string> stops) { stop_texts_ = std::move(stops); }

  // One round of draft, verify, accept. Returns the tokens it added to the text: at least one unless stopped.
  // An end-of-text token is not part of the text. A stop text is (the tokens it ends in), but not of take_text().
  Result<std::vector<int32_t>> decode_step();

  // The bytes generated since the last call, less what may yet turn out to be the beginning of a stop text. After an
  // interruption or an error take_held_text() has the latter; when generation stops by itself it comes with the rest.
  std::string take_text() { return generation_.take_text(); }
  std::string take_held_text() { return generation_.stop_text.take_rest(); }

  StopReason stop_reason() const { return generation_.stop; }
  std::span<const int32_t> text() const { return generation_.tokens; }
  const SessionStats& stats() const { return stats_; }
  // Who drafts how much, and why, in words; empty without a drafter.
  std::string explain_depth() const;

 private:
  int32_t common_length(std::span<const int32_t> prompt) const;
  Status prepare_drafters(std::span<const int32_t> prompt, int32_t scored);
  DraftChoice choose_draft();
  std::string explain_draft(const DraftChoice& choice) const;
  Status draft(const DraftChoice& choice, std::vector<int32_t>& drafted);
  void look_back(const DraftChoice& choice, size_t length);
  void reset_layer_stats();
  void note_step(int32_t drafter, int32_t depth, int32_t accepted, int64_t draft_ns);
  int64_t tokens_left() const;
  void begin_trial(bool goes_on);
  void judge_draft(const DraftChoice& choice, int32_t committed);

  Engine& engine_;
  LoadedModel& target_;
  std::unique_ptr<Sampler> sampler_;
  std::optional<DrafterPolicy> drafter_policy_;  // none where drafter and depth are fixed
  std::vector<int> rooms_;                       // by drafter: how deep it could draft in that step
  std::vector<std::vector<int32_t>> foreseen_;   // by drafter: what it would have said in the step under way
  std::optional<DraftTrial> draft_trial_;        // where the draft model may be given up, once there is a text
  Generation generation_;
  int64_t token_limit_ = -1;
  std::vector<std::string> stop_texts_;
  SessionStats stats_;
};

}  // namespace drafthorse
