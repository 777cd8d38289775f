#include "engine/session.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/sampling.h"

namespace drafthorse {

Session::Session(Engine& engine) : engine_(engine), target_(engine.target()) {
  if (engine.drafter() != nullptr && !engine.options().draft_depth) {
    depth_policy_.emplace(std::min(kMaxAutoDepth, target_.model->workspace().shape().max_window - 1));
  }
}

Status Session::prefill(std::span<const int32_t> prompt, const std::function<void(double)>& progress) {
  CHECK(!prompt.empty() && text_.empty());
  if (static_cast<int32_t>(prompt.size()) >= engine_.context()) {
    const bool trained_limit = engine_.context() == target_.model->config().context_trained;
    return usage_error(fmt::format(
        "the prompt has {} tokens and leaves no room in the context of {}: {}", prompt.size(), engine_.context(),
        trained_limit ? "shorten it, the model was trained for no more" : "shorten it or raise --ctx"));
  }
  // An earlier attempt may have been interrupted halfway.
  target_.model->kv().truncate(0);
  if (engine_.drafter() != nullptr) engine_.drafter()->reset();
  const int64_t start = engine_.clock().now_ns();
  if (target_.cache != nullptr) target_.cache->reset_stats();
  // All but the last token: the first step verifies that one like any other.
  const std::span<const int32_t> body = prompt.first(prompt.size() - 1);
  const int32_t scored = depth_policy_ ? std::min({kScoredPositions, static_cast<int32_t>(body.size()),
                                                   target_.model->workspace().shape().max_window})
                                       : 0;
  if (!body.empty()) {
    RETURN_IF_ERROR(target_.pass->run(body, scored, progress));
    target_.pass->record_prompt();
  }
  if (engine_.drafter() != nullptr) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> choices, engine_.drafter()->prepare(prompt, scored));
    if (depth_policy_ && static_cast<int32_t>(choices.size()) == scored && scored > 0) prime_depth_policy(choices);
  }
  if (Trace* trace = engine_.options().trace; trace != nullptr) {
    trace->span(Span::kPrompt, static_cast<int64_t>(prompt.size()), start, engine_.clock().now_ns());
  }
  text_.assign(prompt.begin(), prompt.end());
  stats_.prompt_tokens = static_cast<int64_t>(prompt.size());
  stats_.prefill_s = seconds(engine_.clock().now_ns() - start);
  if (target_.cache != nullptr) {
    stats_.prefill_layers = target_.cache->stats();
    target_.cache->reset_stats();
    // What the prompt left free is filled while decoding leaves the disk idle; before, it would only compete.
    target_.cache->fill();
  }
  return {};
}

// What the prompt tells about drafting: how often the draft says what the target says, and how fast the union of
// experts grows with the window.
void Session::prime_depth_policy(std::span<const int32_t> draft_choices) {
  int32_t agreed = 0;
  for (size_t i = 0; i < draft_choices.size(); ++i) {
    if (greedy_token(target_.pass->logits(static_cast<int32_t>(i))) == draft_choices[i]) ++agreed;
  }
  depth_policy_->prime({agreed, static_cast<int>(draft_choices.size()),
                        target_.pass->distinct_by_window(target_.model->workspace().shape().max_window)});
}

// The depth for the next step: no deeper than what can still be generated and what the context has room for.
int32_t Session::choose_depth() {
  if (engine_.drafter() == nullptr) return 0;
  int64_t room = engine_.context() - static_cast<int64_t>(text_.size()) - 1;
  if (token_limit_ >= 0) room = std::min(room, token_limit_ - stats_.generated_tokens - 1);
  const auto most = static_cast<int32_t>(std::clamp<int64_t>(room, 0, kMaxDraftDepth));
  return depth_policy_ ? depth_policy_->next_depth(most) : std::min(*engine_.options().draft_depth, most);
}

Result<std::vector<int32_t>> Session::decode_step() {
  std::vector<int32_t> added;
  if (token_limit_ >= 0 && stats_.generated_tokens >= token_limit_) stop_ = StopReason::kTokenLimit;
  if (static_cast<int32_t>(text_.size()) >= engine_.context()) stop_ = StopReason::kContextFull;
  if (stop_ != StopReason::kNone) return added;
  const int64_t start = engine_.clock().now_ns();

  // 1. Draft.
  const int32_t depth = choose_depth();
  Trace* const trace = engine_.options().trace;
  if (trace != nullptr && engine_.drafter() != nullptr) trace->depth(depth, explain_depth(), start);
  std::vector<int32_t> drafted;
  if (engine_.drafter() != nullptr) {
    ASSIGN_OR_RETURN(drafted, engine_.drafter()->draft(text_, depth));
  }
  const int64_t draft_ns = engine_.clock().now_ns() - start;

  // 2. Verify: the last token of the text and all drafted ones in one pass.
  const int32_t committed = target_.model->kv().length();
  std::vector<int32_t> window = {text_.back()};
  window.insert(window.end(), drafted.begin(), drafted.end());
  RETURN_IF_ERROR(target_.pass->run(window, static_cast<int32_t>(window.size())));

  if (trace != nullptr) {
    if (!drafted.empty()) {
      trace->span(Span::kDraft, static_cast<int64_t>(drafted.size()), start, start + draft_ns);
    }
    trace->span(Span::kVerify, static_cast<int64_t>(window.size()), start + draft_ns, engine_.clock().now_ns());
  }

  // 3. Accept: as long as the draft said what the target says; the target's own token at the first difference.
  int32_t accepted = 0;
  for (size_t i = 0; i < window.size() && stop_ == StopReason::kNone; ++i) {
    const int32_t token = greedy_token(target_.pass->logits(static_cast<int32_t>(i)));
    if (engine_.tokenizer().is_end(token)) {
      stop_ = StopReason::kEndOfText;
      break;
    }
    text_.push_back(token);
    added.push_back(token);
    if (i == drafted.size() || token != drafted[i]) break;
    ++accepted;
  }
  target_.model->kv().truncate(committed + 1 + accepted);
  target_.pass->record_committed(1 + accepted);
  if (engine_.drafter() != nullptr) engine_.drafter()->accept(accepted);

  stats_.generated_tokens += static_cast<int64_t>(added.size());
  stats_.decode_s += seconds(engine_.clock().now_ns() - start);
  note_step(static_cast<int32_t>(drafted.size()), accepted, draft_ns);
  return added;
}

void Session::note_step(int32_t depth, int32_t accepted, int64_t draft_ns) {
  const PassStats& pass = target_.pass->stats();
  if (stats_.steps == 0) stats_.ttft_s = stats_.prefill_s + stats_.decode_s;
  ++stats_.steps;
  stats_.draft_s += seconds(draft_ns);
  stats_.verify_s += seconds(pass.duration_ns);
  stats_.stall_s += seconds(pass.stall_ns);
  stats_.drafted_tokens += depth;
  stats_.accepted_tokens += accepted;
  const auto deep = static_cast<size_t>(depth);
  if (stats_.depth_histogram.size() <= deep) stats_.depth_histogram.resize(deep + 1);
  ++stats_.depth_histogram[deep];
  if (stats_.reached_by_position.size() < deep) {
    stats_.reached_by_position.resize(deep);
    stats_.accepted_by_position.resize(deep);
  }
  for (int32_t i = 0; i < depth && i <= accepted; ++i) {
    ++stats_.reached_by_position[i];
    if (i < accepted) ++stats_.accepted_by_position[i];
  }
  if (target_.cache != nullptr) stats_.decode_layers = target_.cache->stats();
  if (depth_policy_) {
    depth_policy_->observe({depth, accepted, seconds(draft_ns), seconds(pass.duration_ns), seconds(pass.stall_ns),
                            pass.missing_by_prefix});
  }
}

std::string Session::explain_depth() const {
  if (engine_.drafter() == nullptr) return {};
  if (depth_policy_) return depth_policy_->explain();
  return fmt::format("depth {}: as asked for", *engine_.options().draft_depth);
}

}  // namespace drafthorse
