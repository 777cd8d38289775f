// How many slots each layer should have so that the fewest experts are missed. Pure. AdapMoE's question (2408.10284),
// which it answers by dynamic programming; where each further slot of a layer saves no more than the one before (the
// experts of a layer sorted by use), giving every slot to whoever gains most is as good as any division.
#pragma once

#include <vector>

namespace drafthorse {

// use_rates[layer]: of each expert, the share of tokens that use it. Every layer with experts gets at least `least`.
std::vector<double> share_slots(const std::vector<std::vector<double>>& use_rates, int slots, int least);

}  // namespace drafthorse
