#include "plan/drafter_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"

namespace drafthorse {
namespace {

constexpr double kChangeGain = 1.03;  // another drafter must promise this much to be taken
constexpr double kLookShare = 0.015;  // of the time, to be spent on looking
// Of a drafter nobody knows: a second point of the compute line that costs little where drafting is of no use.
constexpr int kFirstDepth = 2;

}  // namespace

DrafterPolicy::DrafterPolicy(std::vector<PolicyDrafter> drafters, int max_depth)
    : drafters_(std::move(drafters)), tried_(drafters_.size()), last_look_(drafters_.size(), -1) {
  CHECK(!drafters_.empty());
  for (const PolicyDrafter& one : drafters_) policies_.emplace_back(max_depth, one.itself);
}

void DrafterPolicy::hindsight(int drafter, int reached, int agreed) {
  CHECK(agreed <= reached);
  policies_[drafter].observe_agreement(reached, agreed);
  tried_[drafter] = true;
}

DraftChoice DrafterPolicy::best(std::span<const int> rooms) {
  DraftChoice best;
  double best_rate = 0;
  for (int i = 0; i < static_cast<int>(policies_.size()); ++i) {
    const int depth = policies_[i].settle(rooms[i]);
    const double rate = policies_[i].rate(depth) * (i == current_.drafter ? kChangeGain : 1);
    if (depth == 0 || rate <= best_rate) continue;
    best = {i, depth};
    best_rate = rate;
  }
  return best;
}

// Whom nobody knows yet, if there is such a drafter.
DraftChoice DrafterPolicy::first_try(std::span<const int> rooms) {
  for (int i = 0; i < static_cast<int>(policies_.size()); ++i) {
    if (tried_[i] || policies_[i].primed() || rooms[i] == 0) continue;
    // Of the target itself the costs are known.
    if (drafters_[i].itself && policies_[i].settle(rooms[i]) == 0) continue;
    return {i, std::min({kFirstDepth, rooms[i], policies_[i].max_depth()})};
  }
  return {};
}

// The one that has waited longest; depth 0 where there is nothing to look at.
DraftChoice DrafterPolicy::look(std::span<const int> rooms, const DraftChoice& best) {
  DraftChoice look;
  for (int i = 0; i < static_cast<int>(policies_.size()); ++i) {
    const bool is_best = best.depth > 0 && i == best.drafter;
    const int settled = is_best ? best.depth : policies_[i].settle(rooms[i]);
    const int depth = is_best || settled == 0 ? policies_[i].look_depth(rooms[i]) : settled;
    if (depth == 0 || (is_best && depth <= best.depth)) continue;
    if (look.depth == 0 || last_look_[i] < last_look_[look.drafter]) look = {i, depth};
  }
  return look;
}

DraftChoice DrafterPolicy::next(std::span<const int> rooms) {
  CHECK(rooms.size() == policies_.size());
  const DraftChoice seems_best = best(rooms);
  if (seems_best.depth > 0) current_ = seems_best;
  best_rate_ = policies_[seems_best.drafter].rate(seems_best.depth);
  under_way_ = seems_best;
  looking_ = false;
  if (cycles_ == 0) {
    under_way_.depth = 0;
    return under_way_;
  }
  DraftChoice other = first_try(rooms);
  if (other.depth == 0 && debt_s_ == 0) other = look(rooms, seems_best);
  if (other.depth > 0) {
    looking_ = other.depth != seems_best.depth || other.drafter != seems_best.drafter;
    under_way_ = other;
    last_look_[other.drafter] = cycles_;
  }
  return under_way_;
}

DraftChoice DrafterPolicy::try_out(int drafter, std::span<const int> rooms) {
  CHECK(rooms.size() == policies_.size());
  const int depth = std::max(kFirstDepth, policies_[drafter].settle(rooms[drafter]));
  under_way_ = {drafter, std::min({depth, rooms[drafter], policies_[drafter].max_depth()})};
  looking_ = true;
  last_look_[drafter] = cycles_;
  return under_way_;
}

void DrafterPolicy::observe(const CycleObservation& cycle) {
  ++cycles_;
  for (int i = 0; i < static_cast<int>(policies_.size()); ++i) {
    const bool asked = i == under_way_.drafter && under_way_.depth > 0;
    if (asked) tried_[i] = true;
    if (asked && cycle.depth > 0) {
      policies_[i].observe(cycle);
    } else {
      policies_[i].observe_verification(cycle);
    }
  }
  const double took = cycle.draft_s + cycle.verify_s;
  if (looking_)
    debt_s_ += std::max(0.0, took - (cycle.accepted + 1) / best_rate_);
  else
    debt_s_ = std::max(0.0, debt_s_ - kLookShare * took);
}

double DrafterPolicy::seconds_per_token(std::span<const int> rooms) const {
  return seconds_per_token_without(-1, rooms, 1);
}

double DrafterPolicy::seconds_per_token_without(int drafter, std::span<const int> rooms, double missing_share) const {
  CHECK(rooms.size() == policies_.size());
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < static_cast<int>(policies_.size()); ++i) {
    least = std::min(least, policies_[i].seconds_per_token(i == drafter ? 0 : rooms[i], missing_share));
  }
  return least;
}

std::string DrafterPolicy::explain() const {
  int best = 0;
  for (int i = 1; i < static_cast<int>(policies_.size()); ++i) {
    const auto gain = [&](int one) { return policies_[one].rate(policies_[one].best_depth()); };
    if (gain(i) > gain(best)) best = i;
  }
  return fmt::format("{}, {}", drafters_[best].name, policies_[best].explain());
}

}  // namespace drafthorse
