// Proposes the tokens that the target then verifies. A seam: models, n-grams, the target itself can be drafters.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "model/sampler.h"

namespace drafthorse {

class Drafter {
 public:
  virtual ~Drafter() = default;

  // Takes in a prompt ahead of the first draft(), so that its time is not the first step's. Returns what the drafter
  // would have said after each of the `scored` tokens before the last one, oldest first (Sampler::choose_freely):
  // compared with the target's choices there it tells how well the two agree before anything is generated. May return
  // none. Tokens that truncate() kept are not run again.
  virtual Result<std::vector<int32_t>> prepare(std::span<const int32_t> text, int32_t scored, Sampler& sampler) = 0;

  // Up to `depth` tokens that may follow `text` (all tokens of the sequence so far), chosen with
  // Sampler::propose. Fewer, or none, are allowed.
  virtual Result<std::vector<int32_t>> draft(std::span<const int32_t> text, int32_t depth, Sampler& sampler) = 0;

  // The first `accepted` tokens of the last draft became part of the text; the others are forgotten.
  virtual void accept(int32_t accepted) = 0;

  // Forgets all but the text's first `length` tokens (or fewer, where it knows no more): another text begins like this
  // one. 0: forgets everything.
  virtual void truncate(int32_t length) = 0;
};

}  // namespace drafthorse
