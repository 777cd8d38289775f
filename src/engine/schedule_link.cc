#include "engine/schedule_link.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "engine/engine.h"
#include "schedule/policy.h"

namespace drafthorse {
namespace {

Status check_name(std::string_view what, const std::string& name, const std::vector<std::string>& names) {
  if (std::find(names.begin(), names.end(), name) != names.end()) return {};
  return usage_error(fmt::format("'{}' is no {}; choose from {}", name, what, fmt::join(names, ", ")));
}

}  // namespace

Result<ScheduleOptions> resolve(ScheduleOptions options) {
  if (options.policy.empty()) options.policy = kDefaultPolicy;
  const std::optional<SchedulePolicy> policy = find_schedule_policy(options.policy);
  if (!policy) return check_name("policy", options.policy, schedule_policy_names());
  const auto fill = [](std::string& part, std::string_view from) {
    if (part.empty()) part = from;
  };
  fill(options.predictor, policy->predictor);
  fill(options.prefetch, policy->prefetch);
  fill(options.eviction, policy->eviction);
  RETURN_IF_ERROR(check_name("predictor", options.predictor, predictor_names()));
  RETURN_IF_ERROR(check_name("way to prefetch", options.prefetch, prefetch_policy_names()));
  RETURN_IF_ERROR(check_name("eviction policy", options.eviction, eviction_policy_names()));
  if (options.cutoff_layers && *options.cutoff_layers < 0) return usage_error("a cutoff layer cannot be negative");
  return options;
}

Result<std::unique_ptr<ScheduleLink>> ScheduleLink::create(const ScheduleOptions& options, Model& target, Model* draft,
                                                           const FittedSource& fitted) {
  std::unique_ptr<ScheduleLink> link(new ScheduleLink(options));
  link->target_ = &target;
  link->draft_ = draft;
  if (!target.config().is_moe()) return link;
  link->shapes_.experts_by_layer = target.layout().experts_by_layer();
  link->shapes_.n_expert_used = target.config().n_expert_used;
  link->predictor_ = make_predictor(options.predictor, link->shapes_);
  CHECK(link->predictor_ != nullptr);
  link->wanted_ = link->predictor_->wants();
  RETURN_IF_ERROR(link->probe_next_gates(target));
  if (draft != nullptr) {
    RETURN_IF_ERROR(link->open_fitted(target, *draft, fitted));
    RETURN_IF_ERROR(link->probe_draft(target, *draft));
  }
  const auto is_wanted = [&](const Score& score) { return link->wants(score.source); };
  const bool served = std::any_of(link->draft_scores_.begin(), link->draft_scores_.end(), is_wanted) ||
                      std::any_of(link->target_scores_.begin(), link->target_scores_.end(), is_wanted) ||
                      (link->wants(ScoreSource::kDraftRouter) && !link->router_of_.empty());
  if (!link->wanted_.empty() && !served) {
    link->missing_ = link->describe_missing(draft);
  }
  return link;
}

std::string ScheduleLink::describe_missing(const Model* draft) const {
  const char* needed = draft == nullptr                   ? "a draft model (-d)"
                       : wants(ScoreSource::kFitted)      ? "routers fitted to this pair (drafthorse calibrate)"
                       : wants(ScoreSource::kDraftRouter) ? "a draft with as many experts as the target"
                                                          : "a draft of the target's width";
  return fmt::format("the predictor '{}' needs {}: it will predict nothing", options_.predictor, needed);
}

Status ScheduleLink::open_fitted(const Model& target, const Model& draft, const FittedSource& source) {
  if (source.path.empty()) return {};
  if (!asks_for(ScoreSource::kFitted)) {
    if (source.asked_for) {
      unused_fitted_ = fmt::format("the predictor '{}' has no use for fitted routers", options_.predictor);
    }
    return {};
  }
  std::error_code unreadable;  // counts as being there: opening it says what is wrong
  if (!source.asked_for && !std::filesystem::exists(source.path, unreadable) && !unreadable) return {};
  ASSIGN_OR_RETURN(
      fitted_, FittedRouters::open(source.path, {*source.target, target.config()}, {*source.draft, draft.config()}));
  if (fitted_->why_stale().empty()) return {};
  if (source.asked_for) return file_error(fitted_->why_stale());
  unused_fitted_ = fitted_->why_stale();
  fitted_.reset();
  return {};
}

bool ScheduleLink::wants(ScoreSource source) const {
  return std::find(wanted_.begin(), wanted_.end(), source) != wanted_.end();
}

// A record serves all policies, so it holds whatever one of them may use.
bool ScheduleLink::asks_for(ScoreSource source) const {
  const bool recorded = source == ScoreSource::kCrossModel || source == ScoreSource::kDraftRouter ||
                        source == ScoreSource::kFitted || source == ScoreSource::kNextGate;
  return wants(source) || (options_.record != nullptr && recorded);
}

void ScheduleLink::tell(const TokenScores& scores, LayerId at) {
  if (recorder_ != nullptr) recorder_->scored(scores, at);
  if (wants(scores.source)) scheduler_->scored(scores);
}

Status ScheduleLink::probe_next_gates(Model& target) {
  if (!asks_for(ScoreSource::kNextGate)) return {};
  std::vector<RouterProbe> probes;
  for (int32_t i = 0; i + 1 < target.config().n_layer; ++i) {
    const LayerId next{i + 1};
    if (!target.is_moe_layer(next)) continue;
    probes.push_back({.at = LayerId{i}, .router = target.router(next)});
    target_scores_.push_back({ScoreSource::kNextGate, next});
  }
  return target.set_probes(std::move(probes));
}

Status ScheduleLink::probe_draft(const Model& target, Model& draft) {
  const int layers = target.config().n_layer;
  const int draft_layers = draft.config().n_layer;
  std::vector<RouterProbe> probes;
  const bool same_width = draft.config().n_embd == target.config().n_embd;
  const bool same_experts = draft.config().n_expert == target.config().n_expert;
  if (asks_for(ScoreSource::kDraftRouter) && same_experts) router_of_.resize(static_cast<size_t>(draft_layers));
  for (int32_t i = 0; i < layers; ++i) {
    const LayerId layer{i};
    if (!target.is_moe_layer(layer)) continue;
    const LayerId at = corresponding_layer(layer, layers, draft_layers);
    if (!router_of_.empty() && draft.is_moe_layer(at)) router_of_[index(at)].push_back(layer);
    if (fitted_ != nullptr) {
      probes.push_back({.at = at, .router = fitted_->router(layer), .offset = fitted_->offset(layer)});
      draft_scores_.push_back({ScoreSource::kFitted, layer});
    }
    if (!same_width) continue;
    if (asks_for(ScoreSource::kCrossModel)) {
      probes.push_back({.at = at, .router = target.router(layer)});
      draft_scores_.push_back({ScoreSource::kCrossModel, layer});
    }
    if (asks_for(ScoreSource::kCrossModelNorm)) {
      probes.push_back({at, target.router(layer), nullptr, draft.ffn_norm(at), target.ffn_norm(layer)});
      draft_scores_.push_back({ScoreSource::kCrossModelNorm, layer});
    }
  }
  return draft.set_probes(std::move(probes));
}

void ScheduleLink::start(LoadedModel& target, LoadedModel* draft, double bytes_per_s, const Clock& clock) {
  if (target.cache == nullptr) return;
  const int draft_layers = draft != nullptr ? draft->model->config().n_layer : 0;
  const ExpertScheduler::Options options = {shapes_, draft_layers, bytes_per_s,
                                            find_schedule_policy(options_.policy)->adaptive_shares};
  scheduler_ = std::make_unique<ExpertScheduler>(*target.fastest_tier(), std::move(predictor_),
                                                 make_prefetch_policy(options_.prefetch, {options_.cutoff_layers}),
                                                 options, clock);
  target.cache->set_batched(options_.batched_reads);
  if (options_.record != nullptr) {
    recorder_ = std::make_unique<RoutingRecorder>(*target.cache, shapes_, *options_.record, clock);
  }
  target.pass->set_observer(&verify_observer_);
  if (draft != nullptr) draft->pass->set_observer(&draft_observer_);
}

void ScheduleLink::release_draft() {
  draft_ = nullptr;
  draft_scores_.clear();
  router_of_.clear();
  fitted_.reset();
}

void ScheduleLink::begin_cycle(int depth) {
  if (scheduler_ == nullptr) return;
  phase_ = Phase::kDrafting;
  draft_observer_.token = -1;
  if (recorder_ != nullptr) recorder_->begin_cycle(depth);
  scheduler_->begin_cycle(depth);
}

void ScheduleLink::begin_verify(int tokens) {
  if (scheduler_ == nullptr) return;
  phase_ = Phase::kVerifying;
  if (recorder_ != nullptr) recorder_->begin_verify(tokens);
  scheduler_->begin_verify(tokens);
}

void ScheduleLink::end_cycle(int committed) {
  if (scheduler_ == nullptr) return;
  phase_ = Phase::kIdle;
  scheduler_->end_cycle(committed);
  if (recorder_ != nullptr) recorder_->end_cycle(committed);
}

void ScheduleLink::note_agreement(const TracedAgreement& agreement) {
  if (recorder_ != nullptr) recorder_->agreement(agreement);
}

void ScheduleLink::DraftObserver::staged(LayerId layer, int32_t count) {
  if (link_.phase_ != Phase::kDrafting) return;
  // Each pass of the draft ends in one more token of the window; the first may have to catch up with more.
  if (index(layer) == 0) ++token;
  for (size_t i = 0; i < link_.draft_scores_.size(); ++i) {
    if (link_.draft_->probes()[i].at != layer) continue;
    const Score& score = link_.draft_scores_[i];
    link_.target_->ranking_scores(score.layer, link_.draft_->probe_logits(i, count - 1), link_.ranking_);
    link_.tell({score.source, token, score.layer, link_.ranking_}, layer);
  }
  if (!link_.router_of_.empty()) {
    const auto experts = static_cast<size_t>(link_.draft_->config().n_expert);
    const std::span<const float> logits(
        link_.draft_->workspace().router_logits + static_cast<size_t>(count - 1) * experts, experts);
    // As the draft itself ranks them.
    if (!link_.router_of_[index(layer)].empty()) link_.draft_->ranking_scores(layer, logits, link_.ranking_);
    for (const LayerId of : link_.router_of_[index(layer)]) {
      link_.tell({ScoreSource::kDraftRouter, token, of, link_.ranking_}, layer);
    }
  }
  link_.scheduler_->draft_worked();
}

void ScheduleLink::VerifyObserver::staged(LayerId layer, int32_t count) {
  if (link_.phase_ != Phase::kVerifying) return;
  for (size_t i = 0; i < link_.target_scores_.size(); ++i) {
    if (link_.target_->probes()[i].at != layer) continue;
    const Score& score = link_.target_scores_[i];
    for (int32_t t = 0; t < count; ++t) {
      link_.target_->ranking_scores(score.layer, link_.target_->probe_logits(i, t), link_.ranking_);
      link_.tell({score.source, t, score.layer, link_.ranking_}, layer);
    }
  }
}

void ScheduleLink::VerifyObserver::routed(LayerId layer, std::span<const ExpertId> used) {
  if (link_.phase_ != Phase::kVerifying) return;
  if (link_.recorder_ != nullptr) link_.recorder_->routed(layer, used);
  link_.scheduler_->routed(layer, used);
}

void ScheduleLink::VerifyObserver::demanded(LayerId layer) {
  if (link_.phase_ == Phase::kVerifying) link_.scheduler_->demanded(layer);
}

void ScheduleLink::VerifyObserver::worked() {
  if (link_.phase_ != Phase::kVerifying) return;
  link_.scheduler_->worked();
  if (link_.recorder_ != nullptr) link_.recorder_->worked();
}

// Outside of a cycle it is a prompt. What a cycle commits is told by its end.
void ScheduleLink::VerifyObserver::committed(std::span<const std::vector<int32_t>> uses, int32_t count) {
  if (link_.phase_ == Phase::kIdle && link_.recorder_ != nullptr) link_.recorder_->prompt(uses, count);
}

}  // namespace drafthorse
