// What a device did in a run, for people and as JSON.
#pragma once

#include <nlohmann/json.hpp>

#include "console.h"
#include "engine/session.h"

namespace drafthorse::cli {

// What experts on a device came to, over `generated` tokens, in a line: nothing where no device computes.
std::string device_summary(const Engine& engine, const DeviceLayerStats& total, int64_t generated);

// Nothing where no device computes.
void print_device_summary(Console& console, const Engine& engine, const SessionStats& stats);
void print_device_stats(Console& console, const Engine& engine, const SessionStats& stats);

// Of an engine that was only prepared.
std::string device_memory_text(const Engine& engine);
nlohmann::ordered_json device_plan_json(const Engine& engine);

// null where no device computes.
nlohmann::ordered_json device_json(const Engine& engine, const DeviceLayerStats& total);
nlohmann::ordered_json device_json(const Engine& engine, const SessionStats& stats);

}  // namespace drafthorse::cli
