#include "io/extent_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/units.h"

namespace drafthorse {

AlignedExtent widen(const FileExtent& extent) {
  const uint64_t begin = align_down(extent.offset, kDirectAlignment);
  return {begin, align_up(extent.offset + extent.bytes, kDirectAlignment), extent.offset - begin};
}

ExtentReader::ExtentReader(const FileSet& files, ReadQueue& queue, uint64_t background_bytes)
    : files_(files), queue_(queue), background_limit_(background_bytes), in_flight_(queue.capacity()) {
  for (size_t tag = queue.capacity(); tag-- > 0;) free_tags_.push_back(static_cast<uint32_t>(tag));
}

ExtentReader::JobId ExtentReader::start(std::span<const ExtentRead> reads, ReadPriority priority) {
  const JobId id = next_job_++;
  Job& job = jobs_[id];
  job.priority = priority;
  for (const ExtentRead& read : reads) {
    const AlignedExtent aligned = widen(read.extent);
    const uint64_t payload_end = read.extent.offset + read.extent.bytes;
    for (uint64_t offset = aligned.begin; offset < aligned.end; offset += kReadPieceBytes) {
      const uint64_t end = std::min(offset + kReadPieceBytes, aligned.end);
      Piece piece;
      piece.job = id;
      piece.file = read.extent.file;
      piece.offset = offset;
      piece.bytes = static_cast<uint32_t>(end - offset);
      piece.needed_bytes = static_cast<uint32_t>(std::min(end, payload_end) - offset);
      piece.destination = read.destination + (offset - aligned.begin);
      pending_[static_cast<size_t>(priority)].push_back(piece);
      ++job.waiting;
    }
  }
  CHECK(job.waiting > 0);
  submit_pending();
  return id;
}

void ExtentReader::promote(JobId id, ReadPriority priority) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end() || found->second.priority <= priority) return;
  auto& from = pending_[static_cast<size_t>(found->second.priority)];
  auto& to = pending_[static_cast<size_t>(priority)];
  for (const Piece& piece : from) {
    if (piece.job == id) to.push_back(piece);
  }
  std::erase_if(from, [id](const Piece& piece) { return piece.job == id; });
  found->second.priority = priority;
  submit_pending();
}

void ExtentReader::drop_waiting(JobId id, Job& job) {
  std::erase_if(pending_[static_cast<size_t>(job.priority)], [id](const Piece& piece) { return piece.job == id; });
  job.waiting = 0;
}

void ExtentReader::cancel(JobId id) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) return;
  found->second.cancelled = true;
  drop_waiting(id, found->second);
  finish_if_done(id);
}

bool ExtentReader::waits(JobId id) const {
  const auto found = jobs_.find(id);
  return found != jobs_.end() && found->second.waiting > 0;
}

void ExtentReader::finish_if_done(JobId id) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end() || found->second.waiting > 0 || found->second.in_flight > 0) return;
  finished_.push_back({id, found->second.cancelled, std::move(found->second.status)});
  jobs_.erase(found);
}

bool ExtentReader::another_job_in_flight(JobId id) const {
  return std::any_of(jobs_.begin(), jobs_.end(),
                     [id](const auto& one) { return one.first != id && one.second.in_flight > 0; });
}

uint64_t ExtentReader::waiting_bytes(ReadPriority priority) const {
  uint64_t bytes = 0;
  for (const Piece& piece : pending_[static_cast<size_t>(priority)]) bytes += piece.bytes;
  return bytes;
}

void ExtentReader::submit_pending() {
  std::vector<ReadRequest> batch;
  bool held_back = false;
  for (size_t level = 0; level < pending_.size() && !held_back; ++level) {
    const bool background = level != static_cast<size_t>(ReadPriority::kDemand);
    auto& waiting = pending_[level];
    while (!waiting.empty() && !free_tags_.empty()) {
      Piece piece = waiting.front();
      // A limit below a single piece lets one through. What does not fit holds back all of less priority.
      const bool fits = demand_in_flight_ <= kDemandTail &&
                        (background_in_flight_ == 0 || background_in_flight_ + piece.bytes <= background_limit_);
      held_back = (background && !fits) || (!batched_ && another_job_in_flight(piece.job));
      if (held_back) break;
      waiting.pop_front();
      piece.background = background;
      (background ? background_in_flight_ : demand_in_flight_) += piece.bytes;
      Job& job = jobs_.at(piece.job);
      --job.waiting;
      ++job.in_flight;
      const uint32_t tag = free_tags_.back();
      free_tags_.pop_back();
      in_flight_[tag] = piece;
      batch.push_back({piece.file, piece.offset, piece.bytes, piece.destination, tag});
    }
  }
  if (!batch.empty()) queue_.submit(batch);
}

void ExtentReader::retry_or_fail(Piece piece, const Status& reason) {
  Job& job = jobs_.at(piece.job);
  if (!job.status.ok() || job.cancelled) return;  // the job is lost already
  if (reason.kind() != StatusKind::kFile && ++piece.attempts < kReadAttempts) {
    ++retries_;
    ++job.waiting;
    pending_[static_cast<size_t>(job.priority)].push_front(piece);
    return;
  }
  job.status = reason;
  drop_waiting(piece.job, job);
}

void ExtentReader::complete(const ReadCompletion& completion) {
  const auto tag = static_cast<uint32_t>(completion.tag);
  Piece piece = in_flight_[tag];
  free_tags_.push_back(tag);
  (piece.background ? background_in_flight_ : demand_in_flight_) -= piece.bytes;
  Job& job = jobs_.at(piece.job);
  --job.in_flight;
  if (completion.error != 0) {
    retry_or_fail(piece, runtime_error(fmt::format("{}: reading {} at offset {} failed: {} (errno {})",
                                                   files_.path(piece.file), format_size(piece.bytes), piece.offset,
                                                   std::strerror(completion.error), completion.error)));
  } else {
    bytes_read_ += completion.bytes;
    if (completion.bytes < piece.needed_bytes) {
      // Continue from the last whole block, so that the rest can be read directly too.
      const auto advance = static_cast<uint32_t>(align_down(completion.bytes, kDirectAlignment));
      // Less than a block is an interrupted read, or, if it stays so, the end of the file.
      const bool at_end = completion.bytes == 0 || (advance == 0 && piece.attempts + 1 >= kReadAttempts);
      if (at_end) {
        retry_or_fail(piece, file_error(fmt::format("{}: the file ends at or before offset {}, inside a tensor; it was "
                                                    "truncated or changed while in use",
                                                    files_.path(piece.file), piece.offset + completion.bytes)));
      } else if (advance == 0) {
        retry_or_fail(piece, runtime_error("short read"));
      } else {
        piece.offset += advance;
        piece.bytes -= advance;
        piece.needed_bytes -= advance;
        piece.destination += advance;
        if (job.status.ok() && !job.cancelled) {
          ++job.waiting;
          pending_[static_cast<size_t>(job.priority)].push_front(piece);
        }
      }
    }
  }
  finish_if_done(piece.job);
}

void ExtentReader::poll(bool wait, std::vector<Finished>& finished) {
  std::array<ReadCompletion, 32> completions;
  submit_pending();
  // Jobs that finished without the queue (cancelled while waiting) are news enough.
  size_t count = queue_.reap(completions, wait && finished_.empty());
  while (count > 0) {
    for (size_t i = 0; i < count; ++i) complete(completions[i]);
    submit_pending();
    count = count == completions.size() ? queue_.reap(completions, false) : 0;
  }
  for (Finished& one : finished_) finished.push_back(std::move(one));
  finished_.clear();
}

Status read_all(std::span<const ExtentRead> reads, const FileSet& files, ReadQueue& queue,
                const std::function<bool(uint64_t, uint64_t)>& progress) {
  ExtentReader reader(files, queue);
  uint64_t total = 0;
  std::vector<ExtentReader::JobId> jobs;
  for (const ExtentRead& read : reads) {
    if (read.extent.bytes == 0) continue;
    total += widen(read.extent).bytes();
    jobs.push_back(reader.start({&read, 1}, ReadPriority::kDemand));
  }
  std::vector<ExtentReader::Finished> finished;
  Status first_failure;
  bool given_up = false;
  while (!reader.idle()) {
    reader.poll(true, finished);
    for (ExtentReader::Finished& one : finished) {
      if (first_failure.ok() && !one.status.ok()) first_failure = std::move(one.status);
      std::erase(jobs, one.job);
    }
    finished.clear();
    if (!progress || given_up || progress(std::min(reader.bytes_read(), total), total)) continue;
    given_up = true;
    if (first_failure.ok()) first_failure = interrupted_error();
    for (const ExtentReader::JobId job : jobs) reader.cancel(job);
  }
  return first_failure;
}

}  // namespace drafthorse
