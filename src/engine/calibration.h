// Fits routers to a pair of models: both read the same texts, and for each of the target's layers with experts a linear
// map is found from what the corresponding layer of the draft feeds its FFN to what the target's router says
// (model/fitted_routers.h). With them a draft of another width than the target's tells which experts will be needed.
//
// Positions are taken in blocks. Eight in ten are fitted to; one chooses lambda, and is then fitted to as well; the
// last is only judged by. An engine opened with EngineOptions::calibration_positions has booked the memory for it; of
// draft layers that do not fit into it together, each group has the texts read anew.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "model/fitted_routers.h"

namespace drafthorse {

// Tokens that both models read in one go.
inline constexpr int32_t kCalibrationWindow = 2048;
inline constexpr int32_t kLeastCalibrationPositions = 512;

// Enough for the width of the draft: more brings little (docs/calibrating.md).
int32_t default_calibration_positions(int32_t draft_width);

// Held beside the models while so many of the draft's layers are fitted at a time.
uint64_t calibration_bytes(const ModelConfig& target, const ModelConfig& draft, int32_t positions, int layers_at_once);

// What following a predictor would have found, of positions that nothing was fitted to. k: experts a token uses.
struct PredictionQuality {
  double recall = 0;       // of the experts used, the share among the first k predicted: their precision as well
  double wide_recall = 0;  // among the first 2 k
  double wide_weight = 0;  // likewise, each expert counted by its weight in the token's sum
};

struct LayerCalibration {
  LayerId layer{};        // of the target
  LayerId draft_layer{};  // whose states speak for it
  double lambda = 0;
  PredictionQuality fitted;
  PredictionQuality frequency;             // the experts used most often where was fitted
  std::optional<PredictionQuality> cross;  // the target's own router, where widths allow it
  double last_token = 0;                   // recall of the experts that the token before used
};

struct CalibrationResult {
  std::vector<FittedRouter> routers;
  std::vector<LayerCalibration> layers;
  int64_t fitted_positions = 0;
  int64_t judged_positions = 0;
};

// texts: each of at most calibration_window() tokens of both vocabularies, kLeastCalibrationPositions in all. What was
// read of a session before is forgotten. kInterrupted, or what a pass fails with.
Result<CalibrationResult> calibrate(Engine& engine, std::span<const std::vector<int32_t>> texts,
                                    const LoadProgress& progress);

int32_t calibration_window(const Engine& engine);

}  // namespace drafthorse
