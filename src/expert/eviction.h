// Which resident expert to give up when a slot is needed: policies as scores.
//
// The cache keeps a history per expert (resident or not); a policy turns a history into the worth of keeping the
// expert. The least worth goes. Policies hold no state, so they replay and compare exactly.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "predict/forecast.h"

namespace drafthorse {

// What has been seen of one expert.
struct ExpertHistory {
  int64_t last_touch = -1;  // tick of its last demand or load, -1: never
  double use_rate = 0;      // share of recent tokens that used it, as of token `rate_token`
  int64_t rate_token = 0;   // committed tokens when use_rate was last brought up to date
  double next_pass = -1;    // how likely the next pass is to use it (pass_use.h), -1: nobody has said
};

// Weight of the newest token in use_rate: half of the memory is gone after about 17 tokens.
inline constexpr double kUseRateGain = 0.04;

// The share of recent tokens that used the expert, decayed to when `tokens` are committed.
double use_rate_at(const ExpertHistory& history, int64_t tokens);

// Of `count` tokens committed after the first `tokens`, `used` used the expert. Only committed tokens count: what a
// rejected draft token touched says nothing about the text.
void record_uses(ExpertHistory& history, int64_t tokens, int64_t count, int64_t used);

// Whether a pass over so many tokens uses an expert that a token uses at this rate.
double used_by_window(double rate, double window);

struct EvictionContext {
  LayerId layer{};  // the layer that is being computed, or was last
  int n_layers = 1;
  int64_t tokens = 0;                           // committed so far
  const Forecast* forecast = nullptr;           // of the present window; nullptr: none
  double window = 1;                            // tokens that a pass over all layers takes; next_pass has it already
  LayerId incoming{};                           // layer of the expert that wants the slot
  std::span<const int> held_by_layer = {};      // slots that each layer's experts occupy; empty: not counted
  std::span<const double> share_by_layer = {};  // slots that each layer should have; empty: not divided
  // Of each layer's slots those whose expert is not there for a demand still to come: who stays. Empty: not counted.
  std::span<const int> kept_by_layer = {};
  double mean_kept = 0;  // of the layers with experts
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual std::string_view name() const = 0;
  // Higher is worth more. Must be a function of its arguments alone and never NaN.
  virtual double worth(ExpertKey key, const ExpertHistory& history, const EvictionContext& context) const = 0;
  virtual bool reads_next_pass() const { return false; }  // ExpertHistory::next_pass; else nobody need work it out
};

// lru: the least recently touched goes. Layers are visited in a circle, so with few slots per layer this gives up
//      exactly what comes next.
// lfu: the least used by recent tokens goes, with a half-life.
// lru-layer: each layer has its share of the slots, and the least recently touched of the layer that reads goes
//      (Mixtral-Offloading, 2312.17238; AdapMoE's shares differ from layer to layer).
// stale-first: what this pass has left behind goes before what it is about to come to, the least recently touched
// first. activation: the least used by recent tokens goes, later layers before earlier ones (MoE-Infinity, 2401.14361).
// next-use: the one whose next use is expected last goes: layers until its layer comes up again, plus a whole circle
//      for each token it is expected to sit out.
// draft-guided: as next-use, by passes instead of tokens, knowing what the present window is predicted to need, and
//      with uses that are far off discounted.
// circle: the one whose layer comes up last goes, of a layer the one just used: for passes that use nearly every
// expert.
// spread: one of the layer that keeps the most above the mean goes, of equal layers the one that comes up last, of a
//      layer the least likely to be used: for the same passes, so that something is to be read at any time of them.
std::unique_ptr<EvictionPolicy> make_eviction_policy(std::string_view name);  // nullptr for an unknown name
std::vector<std::string> eviction_policy_names();
inline constexpr std::string_view kDefaultEviction = "next-use";

}  // namespace drafthorse
