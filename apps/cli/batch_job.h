// Works a batch off: requests from the input to the engine, results from the engine to the file.
//
// Requests are read, and made into tokens, only a little ahead of the engine, so that a job of any length takes the
// same memory. A request that is wrong, or that fails, becomes a record; an error of the whole batch ends the job.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "batch_input.h"
#include "batch_results.h"
#include "engine/batch.h"

namespace drafthorse::cli {

// What a job asks of an engine (seam): drafthorse::Batch's own functions, whose contracts hold. Tests have another.
class BatchEngine {
 public:
  virtual ~BatchEngine() = default;
  virtual Status submit(BatchRequest request) = 0;
  virtual bool idle() const = 0;
  virtual int64_t waiting() const = 0;
  virtual int64_t active() const = 0;
  virtual Status step() = 0;
  virtual std::vector<BatchResult> take_finished() = 0;
};

// A request in the engine's terms, but for its id; refused in `verdict` where that cannot be.
using RequestMaker = std::function<BatchRequest(const ApiRequest& request, Verdict& verdict)>;

struct JobCounts {
  int64_t requests = 0;  // of the input, those that had results included
  int64_t done = 0;      // with a result, whenever
  int64_t failed = 0;    // of these
  int64_t earlier = 0;   // of `done`, from an earlier job
  // Of this job's results that did not fail.
  int64_t answered = 0;
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t accepted_tokens = 0;
  // What this job's requests may generate, as far as it is known that they can be answered: all, and those answered.
  int64_t most_tokens = 0;
  int64_t answered_most_tokens = 0;
};

class BatchJob {
 public:
  // All must outlive it. context: what a request without a limit may generate at most.
  BatchJob(const BatchInput& input, ResultsFile& results, ResultWriter& writer, RequestMaker maker, BatchEngine& engine,
           int64_t context);

  // Until all is done, or an error. after_step: called after each of the engine's steps. What had finished before an
  // error is written; the job can be gone on with from the file.
  Status run(const std::function<void()>& after_step);
  const JobCounts& counts() const { return counts_; }

 private:
  struct InFlight {
    bool chat = false;
    std::optional<uint64_t> seed;
  };

  Status submit_ahead();
  Status submit(size_t index);
  Status write_finished();
  Status fail(size_t index, const RequestError& error);
  int64_t most_tokens(size_t index) const;

  const BatchInput& input_;
  ResultsFile& results_;
  ResultWriter& writer_;
  RequestMaker maker_;
  BatchEngine& engine_;
  int64_t context_;
  size_t next_ = 0;  // of the input's lines
  std::unordered_map<int64_t, InFlight> in_flight_;
  std::deque<size_t> submitted_;  // lengths of the last prompts, at least of those that wait
  size_t ahead_tokens_ = 0;       // their sum
  JobCounts counts_;
};

}  // namespace drafthorse::cli
