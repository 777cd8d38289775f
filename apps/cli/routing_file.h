// The file of `run --trace-routing` (routing_json.h), written and read.
#pragma once

#include <fstream>
#include <memory>
#include <string>

#include "base/status.h"
#include "engine/engine.h"
#include "schedule/routing_trace.h"

namespace drafthorse::cli {

// Writes while the run goes on, so that one that is ended from outside leaves what it did until then.
class RoutingFileWriter final : public RoutingSink {
 public:
  // kFile where it cannot be written.
  static Result<std::unique_ptr<RoutingFileWriter>> open(const std::string& path);

  // The line of the model: once the engine is open and before anything is generated.
  void begin(const Engine& engine);
  void begin_text() override;
  void prompt(const TracedPrompt& prompt) override;
  void agreement(const TracedAgreement& agreement) override;
  void cycle(const TracedCycle& cycle) override;

  // Closes the file; kFile where something could not be written.
  Status finish();

 private:
  RoutingFileWriter() = default;

  std::string path_;
  std::ofstream file_;
};

// kFile where it cannot be read or is not what was written here.
Result<RoutingTrace> read_routing_file(const std::string& path);

}  // namespace drafthorse::cli
