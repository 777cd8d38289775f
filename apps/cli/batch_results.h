// The results of a batch: a file of lines in the form of OpenAI's batches, one for each request, in the order in which
// they finished. What is in it is the truth about what has been done.
//
// A line is appended by one write(), so that a process that is killed leaves whole lines, or one torn at the end of the
// file where the disk was full; the latter is cut off when the job is resumed. Written lines are in the hands of the
// operating system: to survive a loss of power they are synchronised every few seconds (kSyncNs) and in the end, not
// each by itself, which would cost more than it saves: what is lost is computed again.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "batch_input.h"
#include "engine/batch.h"

namespace drafthorse::cli {

// Writes results down. Pure but for the time, and names nobody else has drawn.
class ResultWriter {
 public:
  // model: how the lines name it.
  explicit ResultWriter(std::string model);
  const std::string& model() const { return model_; }

  // Valid JSON without an end of line, whatever bytes the text holds. seed: of a text that depends on it.
  std::string answer(const std::string& custom_id, bool chat, const BatchResult& result,
                     const std::optional<uint64_t>& seed);
  // A line without a custom_id is told by its number.
  std::string failure(const BatchInput::Line& line, const RequestError& error);

 private:
  std::string model_;
  std::string job_;
  int64_t count_ = 0;
};

// What must be known of a result to go on.
struct ResultLine {
  std::string custom_id;  // empty: of the line `number`
  int64_t number = 0;
  bool failed = false;
  std::string model;  // empty: a failure
};
// Nothing where no ResultWriter would have written it.
std::optional<ResultLine> parse_result_line(std::string_view text);

enum class ResultsMode {
  kNew,          // there must be none yet
  kResume,       // go on where the last job ended
  kRetryErrors,  // as kResume, but what failed is forgotten
};

class ResultsFile {
 public:
  static constexpr int64_t kSyncNs = 5'000'000'000;

  // "-" is standard output. Takes a lock for as long as it lives. kUsage: there are results already (kNew), or they
  // are not of this input and model; kFile: it cannot be written, or is being written by somebody else.
  static Result<std::unique_ptr<ResultsFile>> open(const std::string& path, ResultsMode mode, const BatchInput& input,
                                                   const std::string& model);
  ~ResultsFile();
  ResultsFile(const ResultsFile&) = delete;
  ResultsFile& operator=(const ResultsFile&) = delete;

  const std::string& name() const { return name_; }
  bool resumable() const { return regular_; }
  // Of input.lines()[index], from an earlier job.
  bool has(size_t index) const { return done_[index]; }
  int64_t found() const { return found_; }
  int64_t found_failed() const { return found_failed_; }

  // Adds an end of line. kRuntime where that cannot be written; what was written of it is taken back.
  Status append(std::string line);
  // Synchronises what has been written.
  Status finish();

 private:
  struct Found {
    int64_t offset = 0;
    int64_t bytes = 0;
    size_t index = 0;
    bool failed = false;
  };

  ResultsFile(std::string name, int descriptor, size_t requests)
      : name_(std::move(name)), descriptor_(descriptor), done_(requests) {}
  Status lock(const std::string& path);
  Status read_found(const BatchInput& input, const std::string& model, std::vector<Found>& lines);
  Status forget_failed(const std::string& path, std::vector<Found>& lines);
  Status cannot_write() const;

  std::string name_;
  int descriptor_;
  bool regular_ = false;
  std::vector<bool> done_;  // by index
  int64_t found_ = 0;
  int64_t found_failed_ = 0;
  SteadyClock clock_;
  int64_t synced_ns_ = clock_.now_ns();
};

}  // namespace drafthorse::cli
