// A router applied to a layer's FFN input beside the layer's own: where another layer, or another model, would send it.
#pragma once

#include <ggml.h>

#include "base/ids.h"

namespace drafthorse {

// What a norm multiplies by and adds, each [n_embd]; bias: nullptr where the family has none.
struct NormWeights {
  ggml_tensor* weight = nullptr;
  ggml_tensor* bias = nullptr;
};

// All tensors must hold their numbers when a pass runs, where the model that is probed computes.
struct RouterProbe {
  LayerId at{};                   // the layer whose FFN input is looked at
  ggml_tensor* router = nullptr;  // [n_embd, experts]
  ggml_tensor* offset = nullptr;  // [experts], added to what the router says; nullptr: nothing
  // Both or none: the input is taken back from this model's norm and given the other's.
  NormWeights norm = {};
  NormWeights other_norm = {};
};

}  // namespace drafthorse
