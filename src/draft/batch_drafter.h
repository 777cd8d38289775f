// Proposes tokens for many sequences at once. A seam, as Drafter (drafter.h) is for one.
//
// Sequences are numbered as in the target's KV cache. One that stops is released, and its number given to another text.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "draft/drafter.h"
#include "draft/ngram_drafter.h"
#include "forward/forward_pass.h"
#include "model/sampler.h"

namespace drafthorse {

struct DraftRequest {
  int32_t sequence = 0;
  std::span<const int32_t> text;  // all tokens so far; the target has run all but the last
  int32_t depth = 0;              // tokens to propose at most
  // The sequence's sampler, ready to choose for its text: others may share it.
  std::function<Sampler&()> sampler;
  std::vector<int32_t> drafted;  // out
};

class BatchDrafter {
 public:
  virtual ~BatchDrafter() = default;
  virtual std::string_view name() const = 0;  // as --drafter names it

  // Fills in what is drafted; fewer tokens than asked for, or none, are allowed. A sequence not named is left alone.
  // Leaves the target's KV cache as long as it was, also on error.
  virtual Status draft(std::span<DraftRequest> requests) = 0;
  // Tokens of a text so long, beside its last one, that must be read before the sequence can be drafted for.
  virtual int32_t behind(int32_t sequence, int32_t length) const = 0;
  // The text of this sequence now is `length` tokens long, of which the drafter may have seen others beyond.
  virtual void commit(int32_t sequence, int32_t length) = 0;
  virtual void release(int32_t sequence) = 0;
};

// A model in passes over all sequences, a position at a time: on a KV cache of its own, which first catches up with
// what became text, or on the target's (the same model at fewer bits), whose rows beyond the text it overwrites.
class ModelBatchDrafter final : public BatchDrafter {
 public:
  ModelBatchDrafter(ForwardPass& pass, int32_t target_vocabulary);

  std::string_view name() const override { return shares_kv_ ? "shared-kv" : "model"; }
  Status draft(std::span<DraftRequest> requests) override;
  int32_t behind(int32_t sequence, int32_t length) const override;
  void commit(int32_t sequence, int32_t length) override;
  void release(int32_t sequence) override;

 private:
  struct Ahead;  // a sequence while it is drafted
  Status catch_up(std::span<Ahead> all);
  Status propose(std::span<Ahead> all);
  Status run(std::span<Ahead*> now);

  ForwardPass& pass_;
  int32_t target_vocabulary_;
  bool shares_kv_;
};

// An NgramDrafter per sequence.
class NgramBatchDrafter final : public BatchDrafter {
 public:
  NgramBatchDrafter(int32_t sequences, int32_t context)
      : context_(context), drafters_(static_cast<size_t>(sequences)) {}
  static uint64_t sequence_bytes(int32_t context) { return NgramDrafter::bytes(context); }

  std::string_view name() const override { return "ngram"; }
  Status draft(std::span<DraftRequest> requests) override;
  int32_t behind(int32_t, int32_t) const override { return 0; }
  void commit(int32_t, int32_t) override {}
  void release(int32_t sequence) override { drafters_[static_cast<size_t>(sequence)].reset(); }

 private:
  int32_t context_;
  std::vector<std::unique_ptr<NgramDrafter>> drafters_;  // by sequence; none until it is asked
};

}  // namespace drafthorse
