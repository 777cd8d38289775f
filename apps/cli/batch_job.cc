#include "batch_job.h"

#include <algorithm>
#include <utility>

namespace drafthorse::cli {
namespace {

// Enough that no engine runs dry within an iteration: as many wait as are active, and never fewer than these, unless
// their prompts are long.
constexpr int64_t kLeastAhead = 64;
constexpr size_t kMostAheadTokens = 1 << 20;

}  // namespace

BatchJob::BatchJob(const BatchInput& input, ResultsFile& results, ResultWriter& writer, RequestMaker maker,
                   BatchEngine& engine, int64_t context)
    : input_(input), results_(results), writer_(writer), maker_(std::move(maker)), engine_(engine), context_(context) {
  for (size_t i = 0; i < input.lines().size(); ++i) {
    if (!results.has(i)) counts_.most_tokens += most_tokens(i);
  }
  counts_.requests = static_cast<int64_t>(input.lines().size());
  counts_.done = counts_.earlier = results.found();
  counts_.failed = results.found_failed();
}

Status BatchJob::run(const std::function<void()>& after_step) {
  while (true) {
    RETURN_IF_ERROR(submit_ahead());
    if (engine_.idle()) return write_finished();
    const Status step = engine_.step();
    RETURN_IF_ERROR(write_finished());
    RETURN_IF_ERROR(step);
    after_step();
  }
}

Status BatchJob::submit_ahead() {
  while (next_ < input_.lines().size()) {
    const int64_t waiting = engine_.waiting();
    for (; static_cast<int64_t>(submitted_.size()) > waiting; submitted_.pop_front()) {
      ahead_tokens_ -= submitted_.front();
    }
    const bool enough = waiting >= std::max(kLeastAhead, engine_.active()) || ahead_tokens_ >= kMostAheadTokens;
    if (enough) break;
    if (!results_.has(next_)) RETURN_IF_ERROR(submit(next_));
    ++next_;
  }
  return {};
}

Status BatchJob::submit(size_t index) {
  ASSIGN_OR_RETURN(const RequestLine line, input_.read(index));
  if (!line.request) return fail(index, line.error);
  Verdict verdict;
  BatchRequest request = maker_(*line.request, verdict);
  if (!verdict.ok()) return fail(index, *verdict.error());
  request.id = static_cast<int64_t>(index);
  const size_t tokens = request.prompt.size();
  const SamplingOptions& sampling = line.request->sampling;
  const InFlight in_flight{line.request->chat, sampling.random() ? std::optional(sampling.seed) : std::nullopt};
  const Status status = engine_.submit(std::move(request));
  if (status.kind() == StatusKind::kUsage) return fail(index, {400, status.message(), "", "invalid_value"});
  RETURN_IF_ERROR(status);
  in_flight_[static_cast<int64_t>(index)] = in_flight;
  submitted_.push_back(tokens);
  ahead_tokens_ += tokens;
  return {};
}

Status BatchJob::write_finished() {
  for (const BatchResult& result : engine_.take_finished()) {
    const auto index = static_cast<size_t>(result.id);
    const auto found = in_flight_.find(result.id);
    CHECK(found != in_flight_.end());  // each comes back once
    const InFlight in_flight = found->second;
    in_flight_.erase(found);
    // What was interrupted is not done.
    if (result.status.kind() == StatusKind::kInterrupted) continue;
    if (!result.status.ok()) {
      const bool its_own = result.status.kind() == StatusKind::kUsage;
      RETURN_IF_ERROR(fail(index, {its_own ? 400 : 500, result.status.message(), "", ""}));
      continue;
    }
    RETURN_IF_ERROR(
        results_.append(writer_.answer(input_.lines()[index].custom_id, in_flight.chat, result, in_flight.seed)));
    ++counts_.done;
    ++counts_.answered;
    counts_.answered_most_tokens += most_tokens(index);
    counts_.prompt_tokens += result.prompt_tokens;
    counts_.generated_tokens += result.generated_tokens;
    counts_.accepted_tokens += result.accepted_tokens;
  }
  return {};
}

int64_t BatchJob::most_tokens(size_t index) const {
  const BatchInput::Line& line = input_.lines()[index];
  if (!line.valid) return 0;
  return line.token_limit < 0 ? context_ : std::min(line.token_limit, context_);
}

Status BatchJob::fail(size_t index, const RequestError& error) {
  RETURN_IF_ERROR(results_.append(writer_.failure(input_.lines()[index], error)));
  ++counts_.done;
  ++counts_.failed;
  counts_.most_tokens -= most_tokens(index);
  return {};
}

}  // namespace drafthorse::cli
