// A compact picture of where experts came from, layer by layer.
#pragma once

#include <string>
#include <vector>

#include "expert/cache.h"

namespace drafthorse::cli {

// One bar a layer: what was there, what was on its way, what had to be waited for. Neighbouring layers share a bar
// where there are many. Empty where nothing was demanded.
std::string hits_picture(const std::vector<LayerCacheStats>& layers);

}  // namespace drafthorse::cli
