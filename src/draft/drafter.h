// Proposes the tokens that the target then verifies. A seam: models, n-grams, the target itself can be drafters.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace drafthorse {

class Drafter {
 public:
  virtual ~Drafter() = default;

  // Takes in a prompt ahead of the first draft(), so that its time is not the first step's. Returns what the drafter
  // would have said after each of the `scored` tokens before the last one, oldest first: compared with the target's
  // choices there it tells how well the two agree before anything is generated. May return none.
  virtual Result<std::vector<int32_t>> prepare(std::span<const int32_t> text, int32_t scored) = 0;

  // Up to `depth` tokens that may follow `text` (all tokens of the sequence so far). Fewer, or none, are allowed.
  virtual Result<std::vector<int32_t>> draft(std::span<const int32_t> text, int32_t depth) = 0;

  // The first `accepted` tokens of the last draft became part of the text; the others are forgotten.
  virtual void accept(int32_t accepted) = 0;

  // Forgets everything: another sequence begins.
  virtual void reset() = 0;
};

}  // namespace drafthorse
