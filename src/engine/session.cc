#include "engine/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace drafthorse {
namespace {

// Of the logits' deviation: where the best two are closer, kernels that sum in another order may rank them otherwise.
// Quantised models' logits differ by up to 1 % of it between devices (README.md).
constexpr double kNearTie = 0.05;

bool is_near_tie(std::span<const float> logits) {
  double sum = 0;
  double squares = 0;
  float first = -INFINITY;
  float second = -INFINITY;
  for (const float value : logits) {
    sum += value;
    squares += double{value} * value;
    if (value > first) {
      second = std::exchange(first, value);
    } else if (value > second) {
      second = value;
    }
  }
  const auto count = static_cast<double>(logits.size());
  const double deviation = std::sqrt(std::max(0.0, squares / count - sum / count * sum / count));
  return double{first} - double{second} < kNearTie * deviation;
}

}  // namespace

Session::Session(Engine& engine) : Session(engine, engine.create_sampler()) {}

Session::Session(Engine& engine, std::unique_ptr<Sampler> sampler)
    : engine_(engine), target_(engine.target()), sampler_(std::move(sampler)) {
  std::vector<PolicyDrafter> drafters;
  for (const auto& drafter : engine.drafters()) {
    drafters.push_back({std::string(drafter->name()), drafter->name() == "resident"});
  }
  if (!drafters.empty() && !engine.options().draft_depth) {
    drafter_policy_.emplace(std::move(drafters), target_.model->workspace().shape().max_window - 1);
  }
}

// Tokens at the beginning of `prompt` whose keys and values are there. The last one of a prompt is always run anew:
// what follows it is asked for.
int32_t Session::common_length(std::span<const int32_t> prompt) const {
  const size_t known = std::min(generation_.tokens.size(), static_cast<size_t>(target_.model->kv().length()));
  const size_t most = std::min(known, prompt.size() - 1);
  const auto differs =
      std::mismatch(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(most), generation_.tokens.begin());
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
  for (const auto& drafter : engine_.drafters()) drafter->truncate(common);
  // Should the prompt fail halfway, this much is known.
  generation_.tokens.assign(prompt.begin(), prompt.begin() + common);
  generation_.stop = StopReason::kNone;
  generation_.stop_text = StopText(stop_texts_);
  stats_ = {};
  for (const auto& drafter : engine_.drafters()) stats_.drafters.push_back({.name = std::string(drafter->name())});
  const int64_t start = engine_.clock().now_ns();
  reset_layer_stats();
  // All but the last token: the first step verifies that one like any other.
  const auto kept = static_cast<size_t>(common);
  const std::span<const int32_t> body = prompt.subspan(kept, prompt.size() - 1 - kept);
  // In fixed mode what is asked of a prompt must not depend on who drafts: it would cut the prompt otherwise.
  const int32_t scored = drafter_policy_ && drafter_policy_->cycles() == 0 && !engine_.fixed_placement()
                             ? std::min({kScoredPositions, static_cast<int32_t>(body.size()),
                                         target_.model->workspace().shape().max_window})
                             : 0;
  if (!body.empty()) {
    RETURN_IF_ERROR(target_.pass->run(body, scored, progress));
    target_.pass->record_prompt();
  }
  RETURN_IF_ERROR(prepare_drafters(prompt, scored));
  if (Trace* trace = engine_.options().trace; trace != nullptr) {
    trace->span(Span::kPrompt, static_cast<int64_t>(prompt.size()), start, engine_.clock().now_ns());
  }
  generation_.tokens.assign(prompt.begin(), prompt.end());
  sampler_->begin(prompt.size());
  begin_trial(common > 0);
  stats_.prompt_tokens = static_cast<int64_t>(prompt.size());
  stats_.prompt_tokens_kept = common;
  stats_.prefill_s = seconds(engine_.clock().now_ns() - start);
  if (target_.cache != nullptr) {
    stats_.prefill_layers = target_.cache->stats();
    if (target_.device_experts != nullptr) stats_.prefill_device = target_.device_experts->stats();
    reset_layer_stats();
    engine_.schedule().scheduler()->reset_stats();
    // What the prompt left free is filled while decoding leaves the disk idle; before, it would only compete.
    target_.cache->fill();
  }
  return {};
}

// goes_on: the text has grown, what was seen of the draft still holds.
void Session::begin_trial(bool goes_on) {
  const DraftWorth seen = draft_trial_ && goes_on ? draft_trial_->worth() : DraftWorth();
  draft_trial_.reset();
  if (!drafter_policy_ || !engine_.can_release_draft()) return;
  draft_trial_.emplace(*target_.cache, engine_.options().schedule.eviction, engine_.slots_without_draft(), seen);
}

void Session::reset_layer_stats() {
  if (target_.cache != nullptr) target_.cache->reset_stats();
  if (target_.device_experts != nullptr) target_.device_experts->reset_stats();
}

// The drafters read the prompt, which tells about drafting: how often each says what the target says, and how fast the
// union of experts grows with the window.
Status Session::prepare_drafters(std::span<const int32_t> prompt, int32_t scored) {
  const size_t first = prompt.size() - 1 - static_cast<size_t>(scored);
  std::vector<int32_t> target_choices;
  for (int32_t i = 0; i < scored; ++i) {
    target_choices.push_back(sampler_->choose_freely(target_.pass->logits(i), first + static_cast<size_t>(i) + 1));
  }
  for (int32_t drafter = 0; const auto& one : engine_.drafters()) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> choices, one->prepare(prompt, scored, *sampler_));
    PromptObservation seen;
    for (size_t i = 0; i < choices.size() && choices.size() == target_choices.size(); ++i) {
      if (choices[i] == kNoToken) continue;
      ++seen.positions;
      if (choices[i] == target_choices[i]) ++seen.agreed;
    }
    if (seen.positions > 0 && !drafter_policy_->policy(drafter).primed()) {
      seen.distinct_by_window = target_.pass->distinct_by_window(target_.model->workspace().shape().max_window);
      if (drafter == 0 && engine_.draft().model != nullptr) {
        engine_.schedule().note_agreement({seen.agreed, seen.positions, seen.distinct_by_window});
      }
      drafter_policy_->prime(drafter, std::move(seen));
    }
    ++drafter;
  }
  return {};
}

// That can still be generated: the context has room for no more, or no more are wanted.
int64_t Session::tokens_left() const {
  const int64_t room = engine_.context() - static_cast<int64_t>(generation_.tokens.size());
  return token_limit_ >= 0 ? std::min(room, token_limit_ - stats_.generated_tokens) : room;
}

// Who drafts for the next step, and how deep: no deeper than what can still be generated and the context has room for.
DraftChoice Session::choose_draft() {
  if (engine_.drafters().empty()) return {};
  const auto most = static_cast<int32_t>(std::clamp<int64_t>(tokens_left() - 1, 0, kMaxDraftDepth));
  if (!drafter_policy_) return {0, std::min(*engine_.options().draft_depth, most)};
  rooms_.clear();
  foreseen_.clear();
  for (const auto& drafter : engine_.drafters()) {
    rooms_.push_back(drafter->reach(generation_.tokens, most));
    foreseen_.push_back(drafter->foresight(generation_.tokens, most));
  }
  const DraftChoice choice = drafter_policy_->next(rooms_);
  if (draft_trial_ && draft_trial_->wants_look(*drafter_policy_) && rooms_[0] > 0) {
    return drafter_policy_->try_out(0, rooms_);
  }
  return choice;
}

Status Session::draft(const DraftChoice& choice, std::vector<int32_t>& drafted) {
  if (choice.depth == 0) return {};
  ASSIGN_OR_RETURN(drafted, engine_.drafters()[static_cast<size_t>(choice.drafter)]->draft(generation_.tokens,
                                                                                           choice.depth, *sampler_));
  return {};
}

Result<std::vector<int32_t>> Session::decode_step() {
  std::vector<int32_t> added;
  if (token_limit_ >= 0 && stats_.generated_tokens >= token_limit_) generation_.stop = StopReason::kTokenLimit;
  if (static_cast<int32_t>(generation_.tokens.size()) >= engine_.context()) generation_.stop = StopReason::kContextFull;
  if (generation_.stop != StopReason::kNone) return added;
  const int64_t start = engine_.clock().now_ns();

  // 1. Draft.
  const DraftChoice choice = choose_draft();
  Trace* const trace = engine_.options().trace;
  if (trace != nullptr && !engine_.drafters().empty()) trace->depth(choice.depth, explain_draft(choice), start);
  // Only a draft model's passes tell what the target will ask for; it is the first drafter where there is one.
  engine_.schedule().begin_cycle(engine_.draft().model != nullptr && choice.drafter == 0 ? choice.depth : 0);
  std::vector<int32_t> drafted;
  RETURN_IF_ERROR(draft(choice, drafted));
  const int64_t draft_ns = engine_.clock().now_ns() - start;

  // 2. Verify: the last token of the text and all drafted ones in one pass.
  const int32_t committed = target_.model->kv().length();
  std::vector<int32_t> window = {generation_.tokens.back()};
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
  const size_t length = generation_.tokens.size();
  int32_t accepted = 0;
  for (size_t i = 0; i < window.size(); ++i) {
    const int32_t proposed = i < drafted.size() ? drafted[i] : kNoToken;
    const int32_t token = sampler_->decide(target_.pass->logits(static_cast<int32_t>(i)), generation_.tokens, proposed);
    if (token == kNoToken) break;
    if (engine_.device() != nullptr && is_near_tie(target_.pass->logits(static_cast<int32_t>(i)))) ++stats_.near_ties;
    const bool goes_on = generation_.append(token, engine_.tokenizer());
    if (generation_.stop != StopReason::kEndOfText) added.push_back(token);
    if (!goes_on || i == drafted.size() || token != drafted[i]) break;
    ++accepted;
  }
  target_.model->kv().truncate(committed + 1 + accepted);
  target_.pass->record_committed(1 + accepted);
  engine_.schedule().end_cycle(1 + accepted);
  if (choice.depth > 0) engine_.drafters()[static_cast<size_t>(choice.drafter)]->accept(accepted);

  stats_.generated_tokens += static_cast<int64_t>(added.size());
  if (drafter_policy_) look_back(choice, length);
  note_step(choice.drafter, static_cast<int32_t>(drafted.size()), accepted, draft_ns);
  judge_draft(choice, 1 + accepted);
  stats_.decode_s += seconds(engine_.clock().now_ns() - start);
  if (stats_.steps == 1) stats_.ttft_s = stats_.prefill_s + stats_.decode_s;
  if (added.empty() && generation_.stop == StopReason::kNone) return no_token_left(sampler_->options());
  return added;
}

// A draft that costs more than it brings makes room for experts.
void Session::judge_draft(const DraftChoice& choice, int32_t committed) {
  if (!draft_trial_ || !engine_.can_release_draft() || generation_.stop != StopReason::kNone) return;
  draft_trial_->note_step(*target_.pass, committed, *drafter_policy_, rooms_, choice);
  if (!draft_trial_->should_go()) return;
  // Memory that is touched first is made first: for a few tokens it is not worth that.
  constexpr double kMakingMemory = 1e9;  // bytes per second
  const uint64_t more = ExpertCache::slot_bytes(target_.model->layout()) *
                        static_cast<uint64_t>(engine_.slots_without_draft() - engine_.memory_plan().slots);
  if (draft_trial_->saved_s() * static_cast<double>(tokens_left()) < static_cast<double>(more) / kMakingMemory) return;
  stats_.draft_release = {stats_.generated_tokens, engine_.memory_plan().slots, engine_.slots_without_draft(),
                          draft_trial_->gain()};
  draft_trial_.reset();
  engine_.release_draft();
}

// The step is done and the text was `length` tokens long before: how good were drafters whose draft was not verified?
void Session::look_back(const DraftChoice& choice, size_t length) {
  const std::span<const int32_t> added = std::span(generation_.tokens).subspan(length);
  for (size_t i = 0; i < foreseen_.size(); ++i) {
    if (choice.depth > 0 && static_cast<size_t>(choice.drafter) == i) continue;
    const auto reached = static_cast<std::ptrdiff_t>(std::min(foreseen_[i].size(), added.size()));
    const auto differs = std::mismatch(added.begin(), added.begin() + reached, foreseen_[i].begin());
    if (reached > 0) {
      drafter_policy_->hindsight(static_cast<int>(i), static_cast<int>(reached),
                                 static_cast<int>(differs.first - added.begin()));
    }
  }
}

void Session::note_step(int32_t drafter, int32_t depth, int32_t accepted, int64_t draft_ns) {
  const PassStats& pass = target_.pass->stats();
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
  if (depth > 0) {
    DrafterStats& by = stats_.drafters[static_cast<size_t>(drafter)];
    ++by.steps;
    by.drafted_tokens += depth;
    by.accepted_tokens += accepted;
    by.draft_s += seconds(draft_ns);
  }
  if (target_.cache != nullptr) {
    stats_.decode_layers = target_.cache->stats();
    if (target_.device_experts != nullptr) stats_.decode_device = target_.device_experts->stats();
    stats_.forecast_layers = engine_.schedule().scheduler()->stats();
  }
  if (drafter_policy_) {
    drafter_policy_->observe({depth, accepted, seconds(draft_ns), seconds(pass.duration_ns), seconds(pass.stall_ns),
                              pass.missing_by_prefix});
  }
}

std::string Session::explain_draft(const DraftChoice& choice) const {
  const std::string_view name = engine_.drafters()[static_cast<size_t>(choice.drafter)]->name();
  if (!drafter_policy_ || choice.depth == 0) return explain_depth();
  return fmt::format("{} drafts; {}", name, explain_depth());
}

std::string Session::explain_depth() const {
  if (engine_.drafters().empty()) return {};
  if (stats_.draft_release) {
    const int more = stats_.draft_release->slots - stats_.draft_release->slots_before;
    return fmt::format("the draft made room for {} more expert{} after {} tokens, {:.2f}x its speed was expected; {}",
                       more, more == 1 ? "" : "s", stats_.draft_release->after_tokens, stats_.draft_release->gain,
                       drafter_policy_->explain());
  }
  if (drafter_policy_) return drafter_policy_->explain();
  return fmt::format("{}, depth {}: as asked for", engine_.drafters()[0]->name(), *engine_.options().draft_depth);
}

}  // namespace drafthorse
