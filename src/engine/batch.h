// Many requests at once, for throughput: every iteration is one pass of the target over all of them, for which each
// expert is read once.
//
//   admit    waiting requests, in the order of submission, as long as there are sequences and memory for their whole
//            text (prompt and what they may generate): nobody is put off again
//   draft    tokens for all that are generating, all sequences in one pass of the draft per position
//   verify   one pass over the windows of all that are generating and the next part of the prompts of those that are
//            not yet: experts of a layer one by one, those in memory while others and the next layer's are read
//   accept   per sequence as many as are the target's own; who is done leaves room at once
//
// The text of a request is what a Session would generate for it alone, whatever shares the iteration with it
// (SpecMoEOff, arXiv 2508.21706, section 3: verification by chunks, here with windows of any length per sequence).
//
// One thread uses a Batch. The engine must have been opened with EngineOptions::batch.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/engine.h"
#include "engine/session.h"
#include "plan/batch_depth.h"

namespace drafthorse {

struct BatchRequest {
  int64_t id = 0;               // the caller's; comes back with the result
  std::vector<int32_t> prompt;  // not empty
  SamplingOptions sampling;     // its rejection must be false: texts would depend on what was drafted
  int64_t token_limit = -1;     // -1: until the text ends or the context is full
  std::vector<std::string> stop_texts;
};

struct BatchResult {
  int64_t id = 0;
  Status status;     // of this request alone; the text is what was generated before it failed
  std::string text;  // without the stop text; not necessarily whole UTF-8
  StopReason stop = StopReason::kNone;
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t accepted_tokens = 0;  // of these, proposed by a drafter
};

// One iteration, for the statistics and the timeline.
struct BatchIteration {
  int32_t depth = 0;              // tokens drafted per sequence, at most
  int32_t generating = 0;         // sequences verified
  int64_t window_tokens = 0;      // that the target verified
  int64_t prompt_tokens = 0;      // that rode along
  int64_t prompt_token_keys = 0;  // sum over them of the positions that each sees
  int64_t asked_tokens = 0;       // of the drafter
  int64_t caught_up_tokens = 0;   // that it had to read first
  int64_t drafted_tokens = 0;
  int64_t accepted_tokens = 0;
  int64_t generated_tokens = 0;  // became part of texts
  int64_t cached_positions = 0;  // of all sequences verified, before the iteration
  double draft_s = 0;
  double pass_s = 0;
  double attention_s = 0;   // of pass_s: stages up to the routers, attention included
  double experts_s = 0;     // of pass_s: computing experts
  double stall_s = 0;       // of pass_s: waiting for experts with nothing to compute
  double head_s = 0;        // logits and choices
  uint64_t bytes_read = 0;  // of experts; on a device, copied to it

  void add(const BatchIteration& other);  // all but the depth
};

struct BatchStats {
  int64_t iterations = 0;
  int64_t most_sequences = 0;  // at once
  BatchIteration sum;          // over all iterations; its depth is of no meaning
  double busy_s = 0;           // in step()
};

class Batch {
 public:
  explicit Batch(Engine& engine);
  ~Batch();

  // Puts a request into the queue. kUsage, naming what is wrong, where it can never run: the prompt leaves no room in
  // the context, or its sampling options make no sense. Cheap; any number may wait.
  Status submit(BatchRequest request);

  bool idle() const;  // nobody waits or generates
  int64_t waiting() const;
  int64_t active() const;

  // One iteration. Requests that end in it, well or badly, are in take_finished() afterwards. An error is the whole
  // batch's: a read that stays broken (those under way may be tried again by the next step()), or kInterrupted.
  Status step();
  std::vector<BatchResult> take_finished();

  const BatchStats& stats() const { return stats_; }
  const BatchIteration& last() const { return last_; }  // the last iteration
  // Why this depth and this many sequences, in words.
  std::string explain() const;

 private:
  struct Sequence;
  struct Parts;

  void admit();
  uint64_t bytes_needed(const BatchRequest& request) const;
  Status choose_sampler(Sequence& sequence);
  Sampler& sampler_of(Sequence& sequence);
  bool generates(const Sequence& sequence) const;
  int64_t likely_left(const Sequence& sequence) const;
  int32_t choose_depth();
  BatchState batch_state(int64_t prompt_tokens, int32_t most_depth) const;
  int64_t prompt_keys(int64_t tokens) const;
  void learn();
  Status draft(int32_t depth);
  void forget_drafts();
  std::vector<BatchRun> lay_out();
  Status verify(std::span<const BatchRun> runs);
  void accept();
  void decide(Sequence& sequence, size_t place, std::span<const float> logits);
  void settle();
  void finish(Sequence& sequence, Status status);
  void note(int64_t start_ns);

  Engine& engine_;
  std::unique_ptr<Parts> parts_;
  BatchStats stats_;
  BatchIteration last_;
};

}  // namespace drafthorse
