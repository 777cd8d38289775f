// Reads extents of files into memory: in pieces, by priority, with short reads continued and failed ones retried.
//
// A state machine without threads of its own: whoever owns it calls start() and poll(). A job is a list of extents
// that belong together (an expert's matrices).
//
//   start -> waiting -> in flight -> done          all its pieces are there
//                                 -> failed        a piece failed kReadAttempts times, or the file ended early
//            cancel: pieces not submitted are dropped; done(cancelled) comes once those in flight are back, and only
//            then may the destination be used for something else
//
// Demands go ahead of all else. What is not a demand has at most `background_bytes` in flight at a time, so that a
// demand never waits behind more than that; and none of it is submitted while more than kDemandTail bytes of demands
// are in flight, which it would only delay.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "io/expert_layout.h"
#include "io/read_queue.h"

namespace drafthorse {

// The largest single read: small enough that a demand never waits long behind one, large enough for full bandwidth.
inline constexpr uint32_t kReadPieceBytes = 1024 * 1024;
inline constexpr int kReadAttempts = 3;
inline constexpr uint64_t kBackgroundBytesInFlight = 8 * 1024 * 1024;
// About bandwidth times latency: with less in flight the device would begin to idle.
inline constexpr uint64_t kDemandTail = 2 * 1024 * 1024;

// The extent widened to whole kDirectAlignment blocks. The file's end may lie inside the last one.
struct AlignedExtent {
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t payload = 0;  // offset of the extent's first byte from begin

  uint64_t bytes() const { return end - begin; }
};
AlignedExtent widen(const FileExtent& extent);

// destination: kDirectAlignment-aligned, room for widen(extent).bytes(); the payload lands at + widen(extent).payload.
struct ExtentRead {
  FileExtent extent;
  std::byte* destination = nullptr;
};

enum class ReadPriority { kDemand, kPrefetch, kFill };
inline constexpr int kReadPriorities = 3;

class ExtentReader {
 public:
  using JobId = uint64_t;
  struct Finished {
    JobId job = 0;
    bool cancelled = false;
    Status status;  // of a job that was not cancelled
  };

  // `files` and `queue` must outlive the reader. The queue must be the reader's alone while jobs are unfinished.
  ExtentReader(const FileSet& files, ReadQueue& queue, uint64_t background_bytes = kBackgroundBytesInFlight);

  JobId start(std::span<const ExtentRead> reads, ReadPriority priority);
  void promote(JobId job, ReadPriority priority);  // to a higher priority; no effect on what is in flight
  void cancel(JobId job);
  bool waits(JobId job) const;  // for some of its pieces to be submitted

  bool idle() const { return jobs_.empty(); }
  void set_background_limit(uint64_t bytes) { background_limit_ = bytes; }
  // false: one job's reads at a time, the next only when they are all back. For measuring what batches are worth.
  void set_batched(bool batched) { batched_ = batched; }

  // Takes in completions, submits what may go next, appends jobs that finished. With wait, blocks until at least one
  // read completes (not necessarily a job), unless nothing is in flight.
  void poll(bool wait, std::vector<Finished>& finished);

  uint64_t bytes_read() const { return bytes_read_; }  // delivered so far, padding to blocks included
  uint64_t retries() const { return retries_; }
  uint64_t background_bytes_in_flight() const { return background_in_flight_; }
  uint64_t waiting_bytes(ReadPriority priority) const;  // not submitted yet

 private:
  struct Piece {
    JobId job = 0;
    int file = 0;
    uint64_t offset = 0;
    uint32_t bytes = 0;         // to read
    uint32_t needed_bytes = 0;  // of these, what must arrive: less than bytes at the end of the file
    std::byte* destination = nullptr;
    int attempts = 0;
    bool background = false;  // counted in background_in_flight_ while in flight
  };
  struct Job {
    ReadPriority priority = ReadPriority::kDemand;
    int waiting = 0;    // pieces in pending_
    int in_flight = 0;  // pieces at the queue
    bool cancelled = false;
    Status status;
  };

  void submit_pending();
  bool another_job_in_flight(JobId id) const;
  void complete(const ReadCompletion& completion);
  void retry_or_fail(Piece piece, const Status& reason);
  void drop_waiting(JobId id, Job& job);
  void finish_if_done(JobId id);

  const FileSet& files_;
  ReadQueue& queue_;
  uint64_t background_limit_;
  std::array<std::deque<Piece>, kReadPriorities> pending_;
  std::vector<Piece> in_flight_;  // by tag
  std::vector<uint32_t> free_tags_;
  std::unordered_map<JobId, Job> jobs_;
  std::vector<Finished> finished_;
  JobId next_job_ = 1;
  bool batched_ = true;
  uint64_t background_in_flight_ = 0;
  uint64_t demand_in_flight_ = 0;
  uint64_t bytes_read_ = 0;
  uint64_t retries_ = 0;
};

// Reads everything before it returns, through a queue that is otherwise idle: for loading what stays resident.
// progress(bytes so far, bytes in all) after each piece; where it returns false the rest is given up: kInterrupted,
// once nothing is in flight any more.
Status read_all(std::span<const ExtentRead> reads, const FileSet& files, ReadQueue& queue,
                const std::function<bool(uint64_t, uint64_t)>& progress = {});

}  // namespace drafthorse
