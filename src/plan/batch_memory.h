// How a batch's memory is divided between keys and values of its sequences and expert slots. Pure.
//
// Every iteration reads the experts that are not resident once, whatever the number of sequences: more sequences make
// more tokens of the same bytes, until computing takes longer than reading. So sequences come first, as many as are
// asked for; two layers' experts, of which one computes while the other is read, are all that reading needs; and what
// is left keeps experts from being read again.
#pragma once

#include <cstdint>

namespace drafthorse {

struct BatchMemoryNeeds {
  uint64_t spare_bytes = 0;  // that are left of the budget, for both
  uint64_t slot_bytes = 0;   // 0: a dense model
  int total_experts = 0;
  int least_slots = 0;  // that must be left
  int experts_per_layer = 0;
  uint64_t typical_bytes = 0;  // of a sequence
  uint64_t longest_bytes = 0;  // of one whose text fills the context: room for one is always made
  int64_t sequences = 1;       // that are wanted at once
};

struct BatchMemory {
  uint64_t sequence_bytes = 0;  // of all sequences together
  int slots = 0;
};

// spare_bytes must have room for longest_bytes and least_slots.
BatchMemory divide_batch_memory(const BatchMemoryNeeds& needs);

}  // namespace drafthorse
