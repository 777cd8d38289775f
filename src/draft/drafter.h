// Proposes the tokens that the target then verifies. A seam: models, n-grams, the target itself can be drafters.
//
// A session may own several and ask another one at every step: each must cope with text that was added without it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/config.h"
#include "model/sampler.h"

namespace drafthorse {

// Two files of one vocabulary may pad it to different sizes: a token that the draft does not have is read as another.
// (A draft's input decides how good it is, never what the text is.)
inline int32_t readable(int32_t token, const ModelConfig& draft) { return token < draft.n_vocab ? token : 0; }

class Drafter {
 public:
  virtual ~Drafter() = default;

  // As --drafter names it.
  virtual std::string_view name() const = 0;

  // Takes in a prompt ahead of the first draft(), so that its time is not the first step's. Returns what the drafter
  // would have said after each of the `scored` tokens before the last one, oldest first (Sampler::choose_freely):
  // compared with the target's choices there it tells how well the two agree before anything is generated. kNoToken
  // where it would have said nothing. May return none. Tokens that truncate() kept are not run again. The target has
  // run all of `text` but its last token.
  virtual Result<std::vector<int32_t>> prepare(std::span<const int32_t> text, int32_t scored, Sampler& sampler) = 0;

  // How many tokens, `depth` at most, draft() may propose after `text`. By the text alone, and cheap.
  virtual int32_t reach(std::span<const int32_t> text, int32_t depth) = 0;

  // What draft() would say, where that costs nothing to know; else empty. Held against the text afterwards, it tells
  // how good the drafter is without anybody verifying it.
  virtual std::vector<int32_t> foresight(std::span<const int32_t>, int32_t) { return {}; }

  // Up to `depth` tokens that may follow `text` (all tokens of the sequence so far), chosen with
  // Sampler::propose or put up with Sampler::propose_token. Fewer, or none, are allowed. Leaves the target's KV cache
  // as long as it was, also on error; what lies beyond its end may be overwritten.
  virtual Result<std::vector<int32_t>> draft(std::span<const int32_t> text, int32_t depth, Sampler& sampler) = 0;

  // The first `accepted` tokens of the last draft became part of the text; the others are forgotten.
  virtual void accept(int32_t accepted) = 0;

  // Forgets all but the text's first `length` tokens (or fewer, where it knows no more): another text begins like this
  // one. 0: forgets everything.
  virtual void truncate(int32_t length) = 0;
};

}  // namespace drafthorse
