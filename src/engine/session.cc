#include "engine/session.h"

#include <fmt/format.h>

#include <algorithm>

namespace drafthorse {

Session::Session(Engine& engine) : Session(engine, engine.create_sampler()) {}

Session::Session(Engine& engine, std::unique_ptr<Sampler> sampler)
    : engine_(engine), target_(engine.target()), sampler_(std::move(sampler)) {
  if (engine.drafter() != nullptr && !engine.options().draft_depth) {
    depth_policy_.emplace(std::min(kMaxAutoDepth, target_.model->workspace().shape().max_window - 1));
  }
}

// Tokens at the beginning of `prompt` whose keys and values are there. The last one of a prompt is always run anew:
// what follows it is asked for.
int32_t Session::common_length(std::span<const int32_t> prompt) const {
  const size_t known = std::min(text_.size(), static_cast<size_t>(target_.model->kv().length()));
  const size_t most = std::min(known, prompt.size() - 1);
  const auto differs = std::mismatch(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(most), text_.begin());
  return static_cast<int32_t>(differs.first - prompt.begin());
}

Status Session::prefill(std::span<const int32_t> prompt, const std::function<void(double)>& progress) {
  CHECK(!prompt.empty());
  if (static_cast<int32_t>(prompt.size()) >= engine_.context()) {
    const bool trained_limit = engine_.context() == target_.model->config().context_trained;
    return usage_error(fmt::format(
        "the prompt has {} tokens and leaves no room in the context of {}: {}", prompt.size(), engine_.context(),
        trained_limit ? "shorten it, the model was trained for no more" : "shorten it or raise --ctx"));
  }
  engine_.schedule().end_cycle(0);
  const int32_t common = common_length(prompt);
  target_.model->kv().truncate(common);
  if (engine_.drafter() != nullptr) engine_.drafter()->truncate(common);
  // Should the prompt fail halfway, this much is known.
  text_.assign(prompt.begin(), prompt.begin() + common);
  stop_ = StopReason::kNone;
  stop_text_ = StopText(stop_texts_);
  stats_ = {};
  const int64_t start = engine_.clock().now_ns();
  if (target_.cache != nullptr) target_.cache->reset_stats();
  // All but the last token: the first step verifies that one like any other.
  const auto kept = static_cast<size_t>(common);
  const std::span<const int32_t> body = prompt.subspan(kept, prompt.size() - 1 - kept);
  const int32_t scored = depth_policy_ && !primed_ ? std::min({kScoredPositions, static_cast<int32_t>(body.size()),
                                                               target_.model->workspace().shape().max_window})
                                                   : 0;
  if (!body.empty()) {
    RETURN_IF_ERROR(target_.pass->run(body, scored, progress));
    target_.pass->record_prompt();
  }
  if (engine_.drafter() != nullptr) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> choices, engine_.drafter()->prepare(prompt, scored, *sampler_));
    if (static_cast<int32_t>(choices.size()) == scored && scored > 0) prime_depth_policy(choices, prompt.size());
  }
  if (Trace* trace = engine_.options().trace; trace != nullptr) {
    trace->span(Span::kPrompt, static_cast<int64_t>(prompt.size()), start, engine_.clock().now_ns());
  }
  text_.assign(prompt.begin(), prompt.end());
  sampler_->begin(prompt.size());
  stats_.prompt_tokens = static_cast<int64_t>(prompt.size());
  stats_.prompt_tokens_kept = common;
  stats_.prefill_s = seconds(engine_.clock().now_ns() - start);
  if (target_.cache != nullptr) {
    stats_.prefill_layers = target_.cache->stats();
    target_.cache->reset_stats();
    engine_.schedule().scheduler()->reset_stats();
    // What the prompt left free is filled while decoding leaves the disk idle; before, it would only compete.
    target_.cache->fill();
  }
  return {};
}

// What the prompt tells about drafting: how often the draft says what the target says, and how fast the union of
// experts grows with the window.
void Session::prime_depth_policy(std::span<const int32_t> draft_choices, size_t prompt_tokens) {
  int32_t agreed = 0;
  const size_t first = prompt_tokens - draft_choices.size();
  for (size_t i = 0; i < draft_choices.size(); ++i) {
    const std::span<const float> logits = target_.pass->logits(static_cast<int32_t>(i));
    if (sampler_->choose_freely(logits, first + i) == draft_choices[i]) ++agreed;
  }
  primed_ = true;
  depth_policy_->prime({agreed, static_cast<int>(draft_choices.size()),
                        target_.pass->distinct_by_window(target_.model->workspace().shape().max_window)});
}

// Adds a chosen token to the text. False: the text ends with it, or it ends the text.
bool Session::append(int32_t token) {
  if (engine_.tokenizer().is_end(token)) {
    stop_ = StopReason::kEndOfText;
    return false;
  }
  text_.push_back(token);
  if (stop_text_.push(engine_.tokenizer().piece(token))) stop_ = StopReason::kStopText;
  return stop_ == StopReason::kNone;
}

std::string Session::take_text() {
  const bool over = stop_ != StopReason::kNone && stop_ != StopReason::kStopText;
  return over ? stop_text_.take_rest() : stop_text_.take();
}

Status Session::no_token_left() const {
  if (sampler_->options().grammar.empty()) {
    return runtime_error("the model gives no numbers for what follows: its file may be damaged");
  }
  return runtime_error("the grammar allows none of the model's tokens here: it cannot be completed");
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
  engine_.schedule().begin_cycle(depth);
  std::vector<int32_t> drafted;
  if (engine_.drafter() != nullptr) {
    ASSIGN_OR_RETURN(drafted, engine_.drafter()->draft(text_, depth, *sampler_));
  }
  const int64_t draft_ns = engine_.clock().now_ns() - start;

  // 2. Verify: the last token of the text and all drafted ones in one pass.
  const int32_t committed = target_.model->kv().length();
  std::vector<int32_t> window = {text_.back()};
  window.insert(window.end(), drafted.begin(), drafted.end());
  engine_.schedule().begin_verify(static_cast<int>(window.size()));
  RETURN_IF_ERROR(target_.pass->run(window, static_cast<int32_t>(window.size())));

  if (trace != nullptr) {
    if (!drafted.empty()) {
      trace->span(Span::kDraft, static_cast<int64_t>(drafted.size()), start, start + draft_ns);
    }
    trace->span(Span::kVerify, static_cast<int64_t>(window.size()), start + draft_ns, engine_.clock().now_ns());
  }

  // 3. Accept: as long as the draft said what the target says; the target's own token at the first difference.
  int32_t accepted = 0;
  for (size_t i = 0; i < window.size(); ++i) {
    const int32_t proposed = i < drafted.size() ? drafted[i] : kNoToken;
    const int32_t token = sampler_->decide(target_.pass->logits(static_cast<int32_t>(i)), text_, proposed);
    if (token == kNoToken) break;
    const bool goes_on = append(token);
    if (stop_ != StopReason::kEndOfText) added.push_back(token);
    if (!goes_on || i == drafted.size() || token != drafted[i]) break;
    ++accepted;
  }
  target_.model->kv().truncate(committed + 1 + accepted);
  target_.pass->record_committed(1 + accepted);
  engine_.schedule().end_cycle(1 + accepted);
  if (engine_.drafter() != nullptr) engine_.drafter()->accept(accepted);

  stats_.generated_tokens += static_cast<int64_t>(added.size());
  stats_.decode_s += seconds(engine_.clock().now_ns() - start);
  note_step(static_cast<int32_t>(drafted.size()), accepted, draft_ns);
  if (added.empty() && stop_ == StopReason::kNone) return no_token_left();
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
  if (target_.cache != nullptr) {
    stats_.decode_layers = target_.cache->stats();
    stats_.forecast_layers = engine_.schedule().scheduler()->stats();
  }
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
