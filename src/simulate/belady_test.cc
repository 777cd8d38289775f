#include "simulate/belady.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace drafthorse {
namespace {

Demand demand(int layer, std::vector<int> experts, double before_s = 0, double experts_s = 0) {
  Demand out{LayerId{layer}, {}, before_s, experts_s, 0};
  for (const int expert : experts) out.experts.push_back(ExpertId{expert});
  return out;
}

TEST(Belady, KeepsWhatComesSoonest) {
  // a b a c a b with two slots: a and b are there at first, c is read and not kept.
  const std::vector<Demand> demands = {demand(0, {0}), demand(0, {1}), demand(0, {0}),
                                       demand(0, {2}), demand(0, {0}), demand(0, {1})};
  EXPECT_EQ(belady(demands, 2, 1).misses, 1);
  EXPECT_EQ(belady(demands, 3, 1).misses, 0);
  EXPECT_EQ(belady(demands, 1, 1).misses, 3);  // a stays
}

TEST(Belady, TimeIsTheLinkOrTheComputing) {
  const std::vector<Demand> demands = {demand(0, {0}, 1, 2), demand(0, {1}, 1, 2), demand(0, {2}, 1, 2)};
  // One slot holds the first; the two others take 10 s each from the beginning.
  EXPECT_DOUBLE_EQ(belady(demands, 1, 10).seconds, 20);
  // They are read while the first is computed.
  EXPECT_DOUBLE_EQ(belady(demands, 1, 1).seconds, 9);
}

// Every choice of what to keep, bypassing included.
int fewest_misses(const std::vector<int>& wanted, size_t at, std::set<int> kept, size_t slots,
                  std::map<std::pair<size_t, std::set<int>>, int>& known) {
  if (at == wanted.size()) return 0;
  const auto place = known.find({at, kept});
  if (place != known.end()) return place->second;
  const bool miss = !kept.contains(wanted[at]);
  std::set<int> all = kept;
  all.insert(wanted[at]);
  int best = fewest_misses(wanted, at + 1, kept, slots, known);
  if (all.size() <= slots) best = std::min(best, fewest_misses(wanted, at + 1, all, slots, known));
  for (const int gone : all) {
    std::set<int> rest = all;
    rest.erase(gone);
    if (rest.size() <= slots) best = std::min(best, fewest_misses(wanted, at + 1, rest, slots, known));
  }
  return known[{at, kept}] = best + (miss ? 1 : 0);
}

TEST(Belady, NobodyDoesBetter) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const int experts = 3 + static_cast<int>(random() % 3);
    const size_t slots = 1 + random() % 3;
    std::vector<int> wanted;
    std::vector<Demand> demands;
    for (int i = 0; i < 10; ++i) {
      wanted.push_back(static_cast<int>(random() % static_cast<unsigned>(experts)));
      demands.push_back(demand(0, {wanted.back()}));
    }
    // The best beginning of all.
    int best = 1000;
    std::map<std::pair<size_t, std::set<int>>, int> known;
    for (unsigned mask = 0; mask < 1U << experts; ++mask) {
      std::set<int> kept;
      for (int e = 0; e < experts; ++e) {
        if ((mask >> e) & 1U) kept.insert(e);
      }
      if (kept.size() <= slots) best = std::min(best, fewest_misses(wanted, 0, kept, slots, known));
    }
    EXPECT_EQ(belady(demands, static_cast<int>(slots), 1).misses, best) << "round " << round;
  }
}

}  // namespace
}  // namespace drafthorse
