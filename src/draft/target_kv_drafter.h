// Drafts on the target's own KV cache: reads the rows of the committed text, writes its own beyond them, and gives
// them up again before the target verifies (whose pass overwrites them). No cache of its own, no prompt to read, no
// catching up.
//
//   shared-kv: the same model at fewer bits, whose keys and values mean what the target's mean
//   resident:  the target itself, each token routed among the experts that are in memory, so that nothing is read
#pragma once

#include "draft/drafter.h"
#include "forward/forward_pass.h"

namespace drafthorse {

class TargetKvDrafter final : public Drafter {
 public:
  enum class Kind { kSharedKv, kResident };

  // `pass` runs a model whose kv() is the target's cache: for kResident the target. It must outlive the drafter.
  TargetKvDrafter(Kind kind, ForwardPass& pass, int32_t target_vocabulary)
      : kind_(kind), pass_(pass), target_vocabulary_(target_vocabulary) {}

  std::string_view name() const override { return kind_ == Kind::kSharedKv ? "shared-kv" : "resident"; }
  // shared-kv scores; resident does not, since each position would cost a pass of the target.
  Result<std::vector<int32_t>> prepare(std::span<const int32_t> text, int32_t scored, Sampler& sampler) override;
  int32_t reach(std::span<const int32_t>, int32_t depth) override { return depth; }
  Result<std::vector<int32_t>> draft(std::span<const int32_t> text, int32_t depth, Sampler& sampler) override;
  void accept(int32_t) override {}
  void truncate(int32_t) override {}

 private:
  Status propose(std::span<const int32_t> text, int32_t depth, Sampler& sampler, std::vector<int32_t>& drafted);
  Status run(int32_t token);

  Kind kind_;
  ForwardPass& pass_;
  int32_t target_vocabulary_;
};

}  // namespace drafthorse
