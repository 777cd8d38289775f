// Slots for routed experts in a device's memory, as ggml_mul_mat_id takes them: one tensor per matrix, a slot after the
// other. Which expert is in which slot is for others to say (expert/device_slots.h).
//
// Layers whose experts have the same shapes and types share a kind, and a kind its slots: a file that mixes types has
// several kinds. Slots of a tensor lie one type's blocks apart with nothing in between, so that kernels that read a
// little beyond a row's end find numbers there.
#pragma once

#include <ggml.h>

#include <memory>
#include <span>
#include <vector>

#include "backend/device.h"
#include "io/expert_layout.h"
#include "ops/expert_weights.h"

namespace drafthorse {

class ExpertBank {
 public:
  // `device` and `layout` must outlive the bank. Takes no memory yet.
  ExpertBank(Device& device, const ExpertLayout& layout);

  int kinds() const { return static_cast<int>(kinds_.size()); }
  int kind_of(LayerId layer) const { return kind_of_[index(layer)]; }  // -1: a dense layer
  int experts(int kind) const { return kinds_[kind].experts; }         // of all layers of the kind
  uint64_t slot_bytes(int kind) const { return kinds_[kind].slot_bytes; }
  uint64_t all_bytes() const;  // of every expert there is

  // How many slots of each kind `bytes` buy: the same share of each kind's experts, at least one each.
  std::vector<int> slots_for(uint64_t bytes) const;
  // Once, before anything below.
  void set_slots(std::span<const int> slots);
  int slots(int kind) const { return kinds_[kind].slots; }
  uint64_t bytes() const { return memory_.bytes(); }
  Status allocate() { return memory_.allocate("expert slots"); }

  // Queues the copy of an expert into a slot of its layer's kind (Device::copy).
  void copy(LayerId layer, int slot, const ops::ExpertWeights& expert);

  // [columns, rows, slots]
  ggml_tensor* gate(LayerId layer) const { return kinds_[kind_of(layer)].gate; }
  ggml_tensor* up(LayerId layer) const { return kinds_[kind_of(layer)].up; }
  ggml_tensor* down(LayerId layer) const { return kinds_[kind_of(layer)].down; }

 private:
  struct Kind {
    ExpertMatrix shapes[3];  // gate, up, down
    int experts = 0;
    uint64_t slot_bytes = 0;
    int slots = 0;
    ggml_tensor* gate = nullptr;
    ggml_tensor* up = nullptr;
    ggml_tensor* down = nullptr;
  };
  struct ContextDeleter {
    void operator()(ggml_context* context) const { ggml_free(context); }
  };

  Device& device_;
  std::vector<Kind> kinds_;
  std::vector<int> kind_of_;  // by layer
  std::unique_ptr<ggml_context, ContextDeleter> context_;
  DeviceArena memory_;
};

}  // namespace drafthorse
