// The statistics file: one JSON object. Its schema is documented in docs/statistics.md.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "engine/engine.h"
#include "engine/session.h"

namespace drafthorse::cli {

nlohmann::ordered_json stats_json(Engine& engine, const Session& session, const std::string& stop);

}  // namespace drafthorse::cli
