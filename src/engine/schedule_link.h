// Ties an engine's two passes to the scheduler of the target's experts: the draft's states become scores for the
// target's layers, the target's passes tell the truth about them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "forward/pass_observer.h"
#include "model/fitted_routers.h"
#include "model/model.h"
#include "schedule/routing_recorder.h"
#include "schedule/scheduler.h"

namespace drafthorse {

struct LoadedModel;

// The parts of scheduling by name; empty parts come from the policy.
struct ScheduleOptions {
  std::string policy;
  std::string predictor;
  std::string prefetch;
  std::string eviction;
  std::optional<int> cutoff_layers;  // default: by SP-MoE's formula
  bool batched_reads = true;
  RoutingSink* record = nullptr;  // is handed the routing; must outlive the engine
};

// Where routers fitted to the pair may lie, and what pair that is.
struct FittedSource {
  std::string path;        // empty: there are none
  bool asked_for = false;  // it must be there, and fit
  const GgufIndex* target = nullptr;
  const GgufIndex* draft = nullptr;
};

// The names filled in and checked: kUsage, saying what there is.
Result<ScheduleOptions> resolve(ScheduleOptions options);

class ScheduleLink {
 public:
  // draft: nullptr where no other model drafts. Sets the probes that the predictor wants and the models can serve: to
  // be called once the models are made and before their memory is booked.
  // Fitted routers are opened only where they are of use; load() reads them.
  static Result<std::unique_ptr<ScheduleLink>> create(const ScheduleOptions& options, Model& target, Model* draft,
                                                      const FittedSource& fitted);

  uint64_t fitted_bytes() const { return fitted_ != nullptr ? fitted_->bytes() : 0; }
  Status load() { return fitted_ != nullptr ? fitted_->load() : Status(); }

  // Once the target's cache and the passes are there; all must outlive the link.
  void start(LoadedModel& target, LoadedModel* draft, double bytes_per_s, const Clock& clock);

  // The draft model is about to go; from now on nothing is heard of it.
  void release_draft();

  // A cycle; each may be called anew after a failure. Without experts to schedule they do nothing.
  void begin_cycle(int depth);
  void begin_verify(int tokens);
  void end_cycle(int committed);
  // What the prompt told the depth policy, for the record.
  void note_agreement(const TracedAgreement& agreement);

  ExpertScheduler* scheduler() const { return scheduler_.get(); }  // nullptr for a dense target
  const ScheduleOptions& options() const { return options_; }
  // Scores that the predictor wants and nobody can give, in words; empty: none.
  const std::string& missing_scores() const { return missing_; }
  // Why fitted routers that were found are not used; empty: they are, or there are none.
  const std::string& unused_fitted() const { return unused_fitted_; }

 private:
  // One probe: whose scores, of which of the target's layers.
  struct Score {
    ScoreSource source{};
    LayerId layer{};
  };
  class DraftObserver final : public PassObserver {
   public:
    explicit DraftObserver(ScheduleLink& link) : link_(link) {}
    void staged(LayerId layer, int32_t count) override;
    int32_t token = -1;  // of the window, that the draft's present pass ends in

   private:
    ScheduleLink& link_;
  };
  class VerifyObserver final : public PassObserver {
   public:
    explicit VerifyObserver(ScheduleLink& link) : link_(link) {}
    void staged(LayerId layer, int32_t count) override;
    void routed(LayerId layer, std::span<const ExpertId> used) override;
    void demanded(LayerId layer) override;
    void worked() override;
    void committed(std::span<const std::vector<int32_t>> uses, int32_t count) override;

   private:
    ScheduleLink& link_;
  };
  enum class Phase { kIdle, kDrafting, kVerifying };

  explicit ScheduleLink(const ScheduleOptions& options)
      : options_(options), draft_observer_(*this), verify_observer_(*this) {}
  Status probe_next_gates(Model& target);
  Status probe_draft(const Model& target, Model& draft);
  Status open_fitted(const Model& target, const Model& draft, const FittedSource& source);
  std::string describe_missing(const Model* draft) const;
  bool wants(ScoreSource source) const;
  bool asks_for(ScoreSource source) const;  // for the predictor or for the record
  void tell(const TokenScores& scores, LayerId at);

  ScheduleOptions options_;
  RoutingShapes shapes_;
  std::unique_ptr<Predictor> predictor_;  // until the scheduler has it
  std::vector<ScoreSource> wanted_;
  std::string missing_;
  std::unique_ptr<FittedRouters> fitted_;  // nullptr: none are used
  std::string unused_fitted_;
  std::vector<Score> draft_scores_;              // by probe of the draft
  std::vector<Score> target_scores_;             // by probe of the target
  std::vector<std::vector<LayerId>> router_of_;  // by draft layer: layers of the target that its own router speaks for
  Model* target_ = nullptr;
  Model* draft_ = nullptr;
  std::unique_ptr<ExpertScheduler> scheduler_;
  std::unique_ptr<RoutingRecorder> recorder_;  // nullptr: nothing is recorded
  Phase phase_ = Phase::kIdle;
  DraftObserver draft_observer_;
  VerifyObserver verify_observer_;
  std::vector<float> ranking_;  // of the token spoken of
};

}  // namespace drafthorse
