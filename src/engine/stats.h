// What a session did and what it cost. Times in seconds on the engine's clock.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "expert/cache.h"
#include "forward/device_experts.h"
#include "schedule/scheduler.h"

namespace drafthorse {

// What one drafter drafted while decoding.
struct DrafterStats {
  std::string name;
  int64_t steps = 0;  // that it drafted for
  int64_t drafted_tokens = 0;
  int64_t accepted_tokens = 0;
  double draft_s = 0;
};

// The draft model was given up for expert slots.
struct DraftRelease {
  int64_t after_tokens = 0;  // generated
  int slots_before = 0;
  int slots = 0;
  double gain = 1;  // expected, in speed
};

struct SessionStats {
  int64_t prompt_tokens = 0;
  int64_t prompt_tokens_kept = 0;  // of them, known from before: not run again
  int64_t generated_tokens = 0;    // in the text; an end-of-text token is not
  double prefill_s = 0;            // target and draft
  double ttft_s = 0;               // from the start of prefill to the first token
  double decode_s = 0;             // all steps after prefill
  double draft_s = 0;              // of decode_s
  double verify_s = 0;             // of decode_s
  double stall_s = 0;              // of verify_s: waiting for experts with nothing to compute
  int64_t steps = 0;               // verifications
  int64_t drafted_tokens = 0;
  int64_t accepted_tokens = 0;               // of the drafted
  std::vector<int64_t> depth_histogram;      // steps by depth
  std::vector<int64_t> reached_by_position;  // draft positions whose predecessors were all accepted
  std::vector<int64_t> accepted_by_position;
  std::vector<DrafterStats> drafters;               // all there are
  std::vector<LayerCacheStats> prefill_layers;      // by layer, prefill only
  std::vector<LayerCacheStats> decode_layers;       // by layer, decoding only
  std::vector<LayerForecastStats> forecast_layers;  // by layer, decoding only
  std::vector<DeviceLayerStats> prefill_device;     // on a device: by layer, prefill only
  std::vector<DeviceLayerStats> decode_device;      // and decoding only
  // On a device: generated tokens whose choice was so close that another order of sums may choose otherwise.
  int64_t near_ties = 0;
  std::optional<DraftRelease> draft_release;

  double decode_tokens_per_s() const { return decode_s > 0 ? static_cast<double>(generated_tokens) / decode_s : 0; }
  double prefill_tokens_per_s() const {
    return prefill_s > 0 ? static_cast<double>(prompt_tokens - prompt_tokens_kept) / prefill_s : 0;
  }
  double acceptance() const {
    return drafted_tokens > 0 ? static_cast<double>(accepted_tokens) / static_cast<double>(drafted_tokens) : 0;
  }
  double tokens_per_verification() const {
    return steps > 0 ? static_cast<double>(generated_tokens) / static_cast<double>(steps) : 0;
  }
  LayerCacheStats decode_total() const;
  // Bytes read from storage while decoding, read-ahead included, per generated token.
  double bytes_read_per_token() const;
  // Experts resident or already on their way when demanded, of all demanded, while decoding.
  double hit_rate() const;
};

}  // namespace drafthorse
