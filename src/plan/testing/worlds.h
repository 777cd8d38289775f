// Worlds in which drafting costs and brings what one says, to try policies in.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "plan/drafter_policy.h"

namespace drafthorse::worlds {

inline constexpr int kMaxDepth = 16;
inline constexpr int kPassage = 32;
inline constexpr int kNever = 1 << 30;

// What a cycle costs and brings with one drafter, as it really is. Seconds; one token without drafting takes about 1.
struct World {
  double acceptance = 0.8;       // of the first drafted token
  double acceptance_factor = 1;  // of each further one over the one before
  double draft = 0.1;            // per token
  double base = 0.9;             // compute of a window of n: base + slope * n
  double slope = 0.1;
  double missing = 0;           // experts the first token of a window misses
  double missing_factor = 0.9;  // of each further one over the one before
  double stall = 0;             // per missing expert
  double speaks = 1;            // share of passages (kPassage tokens) where the drafter has something to say

  double position_acceptance(int i) const { return acceptance * std::pow(acceptance_factor, i); }
  double added_missing(int i) const { return missing * std::pow(missing_factor, i); }
  double missing_of(int window) const {
    double total = 0;
    for (int i = 0; i < window; ++i) total += added_missing(i);
    return total;
  }
  double seconds(int depth) const { return depth * draft + base + slope * (depth + 1) + stall * missing_of(depth + 1); }
  double tokens(int depth) const {
    double total = 1;
    double reached = 1;
    for (int i = 0; i < depth; ++i) total += reached *= position_acceptance(i);
    return total;
  }
};

using Choose = std::function<DraftChoice(const std::vector<int>& rooms)>;
using Observe = std::function<void(const CycleObservation&)>;

// One text: whether a draft gets a position right is the text's, so that all depths are compared on the same luck.
// Worlds by drafter, before and after the change; they differ in what drafting costs and brings alone.
class Text {
 public:
  Text(std::vector<World> before, std::vector<World> after, int change_at, int length, uint64_t seed)
      : before_(std::move(before)), after_(std::move(after)), change_at_(change_at), length_(length), random_(seed) {
    std::uniform_real_distribution<double> uniform;
    for (size_t drafter = 0; drafter < before_.size(); ++drafter) {
      for (int i = 0; i < length + kMaxDepth + 1; ++i) luck_.emplace_back(uniform(random_));
    }
    for (size_t i = 0; i < luck_.size(); ++i) speaks_.push_back(before_.size() == 1 ? 0 : uniform(random_));
  }
  Text(World before, World after, int change_at, int length, uint64_t seed)
      : Text(std::vector{before}, std::vector{after}, change_at, length, seed) {}

  // Tokens per second of going through all of it. Times are the world's; what `observe` sees of them is noisy.
  double rate(const Choose& choose, const Observe& observe) {
    double seconds = 0;
    int done = 0;
    drafted_by.assign(before_.size(), 0);
    while (done < length_) {
      const std::vector<World>& all = done < change_at_ ? before_ : after_;
      std::vector<int> rooms;
      for (size_t i = 0; i < all.size(); ++i)
        rooms.push_back(at(speaks_, i, done / kPassage * kPassage) < all[i].speaks ? kMaxDepth : 0);
      const DraftChoice choice = choose(rooms);
      const auto drafter = static_cast<size_t>(choice.drafter);
      const World& world = all[drafter];
      const int depth = std::min(choice.depth, rooms[drafter]);
      if (depth > 0) ++drafted_by[drafter];
      int accepted = 0;
      while (accepted < depth && at(luck_, drafter, done + accepted) < world.position_acceptance(accepted)) ++accepted;
      seconds += world.seconds(depth);
      done += accepted + 1;
      std::vector<int64_t> missing;
      int64_t total = 0;
      for (int i = 0; i <= depth && world.missing > 0; ++i) {
        total += std::poisson_distribution<int64_t>(world.added_missing(i))(random_);
        missing.push_back(total);
      }
      const double stall = noisy(world.stall * static_cast<double>(total));
      observe({depth, accepted, noisy(depth * world.draft), noisy(world.base + world.slope * (depth + 1)) + stall,
               stall, missing});
    }
    return done / seconds;
  }
  // Always the same drafter and depth, where it has something to say.
  double rate(int fixed_depth, int drafter = 0) {
    return rate(
        [&](const std::vector<int>&) {
          return DraftChoice{drafter, fixed_depth};
        },
        [](const CycleObservation&) {});
  }
  double rate(DrafterPolicy& policy) {
    return rate([&](const std::vector<int>& rooms) { return policy.next(rooms); },
                [&](const CycleObservation& cycle) { policy.observe(cycle); });
  }
  // The depth one would fix for a drafter knowing both worlds.
  int best_fixed_depth(int drafter = 0) const {
    const double share = std::min(1.0, static_cast<double>(change_at_) / length_);
    const auto seconds_per_token = [&](int depth) {
      const auto of = [&](const World& world) { return world.seconds(depth) / world.tokens(depth); };
      return share * of(before_[drafter]) + (1 - share) * of(after_[drafter]);
    };
    int best = 0;
    for (int depth = 1; depth <= kMaxDepth; ++depth) {
      if (seconds_per_token(depth) < seconds_per_token(best)) best = depth;
    }
    return best;
  }

  std::vector<int> drafted_by;  // cycles of the last rate(), by drafter

 private:
  double noisy(double seconds) { return seconds * std::exp(std::normal_distribution<double>(0, 0.05)(random_)); }
  double at(const std::vector<double>& numbers, size_t drafter, int position) const {
    return numbers[drafter * static_cast<size_t>(length_ + kMaxDepth + 1) + static_cast<size_t>(position)];
  }

  std::vector<World> before_;
  std::vector<World> after_;
  int change_at_;
  int length_;
  std::mt19937_64 random_;
  std::vector<double> luck_;
  std::vector<double> speaks_;
};

}  // namespace drafthorse::worlds
