// A recorded run's routing as JSON, a line each: the model, then each part of a prompt and each cycle. Described in
// docs/simulating.md. Pure.
#pragma once

#include <string>

#include "base/status.h"
#include "schedule/routing_trace.h"

namespace drafthorse::cli {

// Lines with their ends.
std::string routing_line(const TracedModel& model);
std::string routing_line(const TracedPrompt& prompt);
std::string routing_line(const TracedAgreement& agreement);
std::string routing_line(const TracedCycle& cycle);
std::string routing_text_line();  // another text begins

// kFile, saying which line, where `text` (read from `name`) is not such a file. A last line without an end, of a run
// that was killed while writing it, is left out.
Result<RoutingTrace> parse_routing(const std::string& text, const std::string& name);

}  // namespace drafthorse::cli
