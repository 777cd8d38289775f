// Linear maps from one set of inputs to many outputs by ridge regression, each with an offset: how a draft's states are
// brought to a target's routers where their widths differ.
//
// Samples are summed up as they come (moments), so memory does not grow with their number: 8 bytes times inputs times
// (inputs + outputs). Inputs are standardised before they are held back, so that lambda means the same for channels of
// any size: with all of them independent, a weight shrinks by 1 / (1 + lambda). One thread uses a fit; its work is
// spread over a pool.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/worker_pool.h"

namespace drafthorse {

struct LinearMap {
  std::vector<float> weights;  // [inputs, outputs]: an output's weights are neighbours
  std::vector<float> offsets;  // [outputs]
};

// y = weights . x + offsets. y: [outputs]
void apply(const LinearMap& map, std::span<const float> x, std::span<float> y);

class RidgeFit {
 public:
  RidgeFit(int inputs, int outputs);
  ~RidgeFit();
  RidgeFit(RidgeFit&&) noexcept;
  RidgeFit& operator=(RidgeFit&&) noexcept;

  // What a fit of this shape holds, and what solve() takes beside it.
  static uint64_t bytes(int inputs, int outputs);
  static uint64_t solving_bytes(int inputs, int outputs);

  // x: [inputs, n], y: [outputs, n]. A sample with a number in it that is none is left out.
  void add(std::span<const float> x, std::span<const float> y, WorkerPool& pool);
  int64_t samples() const;

  // lambda > 0; at least one sample. An input that never changed gets no weight.
  LinearMap solve(double lambda) const;

 private:
  struct Moments;
  std::unique_ptr<Moments> moments_;
};

}  // namespace drafthorse
