// The kinds of predictors, each in a file of its own; made by make_predictor().
#pragma once

#include <memory>

#include "predict/predictor.h"

namespace drafthorse {

std::unique_ptr<Predictor> make_score_predictor(std::string_view name, ScoreSource source, const RoutingShapes& shapes);
std::unique_ptr<Predictor> make_frequency_predictor(const RoutingShapes& shapes);
std::unique_ptr<Predictor> make_trace_predictor(const RoutingShapes& shapes);
std::unique_ptr<Predictor> make_combined_predictor(const RoutingShapes& shapes);

}  // namespace drafthorse
