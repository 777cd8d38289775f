// What computing takes on a measured machine, without waiting for anything. Pure: machine profile and a model's
// matrices in, seconds out.
//
// Matrix products take their weights times the profile's seconds per weight for so many rows, interpolated between
// those measured; attention, norms and graph nodes take the profile's figures for them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "plan/machine_profile.h"

namespace drafthorse {

// A matrix, or several of one type and use.
struct MatrixWork {
  std::string type;
  double weights = 0;  // elements
};

struct LayerWork {
  std::vector<MatrixWork> dense;   // attention projections, router, dense FFN, shared experts
  std::vector<MatrixWork> expert;  // of one routed expert; empty for a dense layer
  int n_expert = 0;
};

struct ModelWork {
  std::vector<LayerWork> layers;
  MatrixWork head;
  int n_expert_used = 0;
  int n_embd = 0;
  int attention_width = 0;    // n_head * mean of key and value elements per head
  uint64_t expert_bytes = 0;  // read for one routed expert
  uint64_t dense_bytes = 0;   // all that is read before the first token

  int moe_layers() const;
};

// Of one model, its attention reading so many keys.
class ComputeTime {
 public:
  // Both must outlive it.
  ComputeTime(const MachineProfile& machine, const ModelWork& model, double keys)
      : machine_(machine), model_(model), keys_(keys) {}

  // kUsage where the profile lacks a type of the model's; nothing else may be called then.
  Status check() const;

  double stages_s(double tokens) const;  // all layers without their routed experts
  double head_s(double tokens) const;
  double expert_s(double rows) const;  // one routed expert over so many tokens, mean of the layers
  // Of a pass over a window, what reading the weights from memory takes at least.
  double memory_s(double experts) const;
  // A pass over one token with all experts in memory.
  double token_s() const;

 private:
  const KernelProfile* find(const std::string& type) const;
  Status known(const std::string& type) const;
  double matrix_s(const MatrixWork& matrix, double tokens) const;
  double read_s(const MatrixWork& matrix) const;

  const MachineProfile& machine_;
  const ModelWork& model_;
  double keys_;
};

// Bytes of a weight of this type; 0: not measured.
double bytes_per_weight(const MachineProfile& machine, const std::string& type);
// Seconds per weight for that many rows: linear between what was measured, and beyond.
double interpolate(const std::vector<KernelRate>& rates, double tokens);
// Bytes per second with so many of the largest pieces measured under way.
double disk_rate(const MachineProfile& machine, double pieces);

}  // namespace drafthorse
