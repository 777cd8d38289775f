// A run that nobody recorded: a text as texts are on average, for a model of any shape, in the form of a recording.
//
// Routing. To each layer's router, expert e has at token t the value
//     x(t, e) = skew * p(e) + n(t, e),
// p the expert's popularity in this text and n the token's own part, both independent and standard normal; a token uses
// the experts with the greatest values. One number, the skew, gives all else: how fast the experts of a window add up,
// how often a token uses those of tokens before it, and so what a cache of any size and policy hits. What a gate or a
// draft foresees is the same value with noise of its own, g times standard normal: ranked by it, the first ranks are
// right as often as g lets them.
//
// Drafting. Each proposal is right with the same probability, whatever its position.
//
// The defaults were fitted on 17 texts of 128 tokens of the demo pair (16 experts, two per token). The skew: on the
// median number of distinct experts in windows of 2, 4, .. 64 tokens (3.4, 5.3, 7.6, 9.5, 10.6, 11.8; drawn with this
// skew 3.4, 5.3, 7.6, 9.9, 11.9, 13.6), and on the median time that replays of these texts waited for experts, with 14,
// 25 and 44 of 64 slots, at depths 0, 4, 16 and auto. The noise of the gates: on how often their first and second rank
// is right (0.62 and 0.41). Texts that repeat themselves do better.
#pragma once

#include <cstdint>

#include "schedule/routing_trace.h"

namespace drafthorse {

inline constexpr double kDefaultSkew = 0.85;
// Of draft positions reached, those accepted, where nobody has measured it: medians of the demo pair's texts, with its
// Q4_0 copy and with its small dense draft.
inline constexpr double kSameModelAcceptance = 0.99;
inline constexpr double kOtherModelAcceptance = 0.8;

struct TextStatistics {
  double skew = kDefaultSkew;
  double gate_noise = 1.2;    // of the next layer's gate
  double draft_noise = 0.05;  // of a draft that is the target at fewer bits
  double acceptance = 0;
};

struct TypicalText {
  int prompt_tokens = 0;
  int prefill_tokens = 1;    // of the prompt, read at once
  int generated_tokens = 0;  // at least one
  bool drafted = false;
  bool foreseen = false;  // the draft's routers tell of the target's
  uint64_t seed = 0;      // another text
};

// Of `model` as it stands; where `drafted`, it has draft layers. Times are 0.
RoutingTrace typical_text(const TracedModel& model, const TextStatistics& statistics, const TypicalText& text);

}  // namespace drafthorse
