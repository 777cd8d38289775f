#include "plan/event_dag.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>

namespace drafthorse {
namespace {

using Order = EventDag::Order;

// Seconds are whole numbers, so that sums are exact.
EventDag random_dag(std::mt19937_64& random, int units, int events, const std::function<Order()>& order) {
  EventDag dag;
  for (int i = 0; i < units; ++i) dag.add_unit("unit", order());
  for (int i = 0; i < events; ++i) {
    std::vector<EventDag::EventId> after;
    for (int j = 0; j < i; ++j) {
      if (random() % 4 == 0) after.push_back(j);
    }
    dag.add(static_cast<int>(random() % static_cast<uint64_t>(units)), static_cast<double>(random() % 6), 0, after,
            static_cast<int>(random() % 3));
  }
  return dag;
}

int before_on_unit(const EventDag& dag, int event) {
  for (int i = event - 1; i >= 0; --i) {
    if (dag.events()[i].unit == dag.events()[event].unit) return i;
  }
  return -1;
}

// The longest path that ends with this event, every path walked.
double longest_path(const EventDag& dag, int event) {
  double longest = 0;
  for (const int before : dag.events()[event].after) longest = std::max(longest, longest_path(dag, before));
  if (const int before = before_on_unit(dag, event); before >= 0) {
    longest = std::max(longest, longest_path(dag, before));
  }
  return longest + dag.events()[event].seconds;
}

// The shortest makespan over all orders in which events can be begun.
double best_of_all_orders(const EventDag& dag) {
  const size_t count = dag.events().size();
  double best = 1e18;
  std::vector<double> end(count, -1);
  std::vector<double> free(dag.units().size(), 0);
  std::function<void(size_t, double)> place = [&](size_t placed, double makespan) {
    if (placed == count) {
      best = std::min(best, makespan);
      return;
    }
    for (size_t i = 0; i < count; ++i) {
      if (end[i] >= 0) continue;
      const EventDag::Event& event = dag.events()[i];
      double start = free[event.unit];
      bool ready = true;
      for (const int before : event.after) {
        ready = ready && end[before] >= 0;
        start = std::max(start, end[before]);
      }
      if (!ready) continue;
      const double was_free = free[event.unit];
      free[event.unit] = end[i] = start + event.seconds;
      place(placed + 1, std::max(makespan, end[i]));
      free[event.unit] = was_free;
      end[i] = -1;
    }
  };
  place(0, 0);
  return best;
}

double ready_at(const EventDag& dag, const Schedule& times, int event) {
  double ready = 0;
  for (const int before : dag.events()[event].after) ready = std::max(ready, times.end_s[before]);
  return ready;
}

void expect_valid(const EventDag& dag, const Schedule& times) {
  const int count = static_cast<int>(dag.events().size());
  double last = 0;
  std::vector<double> busy(dag.units().size(), 0);
  for (int i = 0; i < count; ++i) {
    EXPECT_GE(times.start_s[i], ready_at(dag, times, i));
    EXPECT_EQ(times.end_s[i], times.start_s[i] + dag.events()[i].seconds);
    busy[dag.events()[i].unit] += dag.events()[i].seconds;
    last = std::max(last, times.end_s[i]);
    for (int j = 0; j < i; ++j) {
      if (dag.events()[i].unit != dag.events()[j].unit) continue;
      EXPECT_TRUE(times.end_s[j] <= times.start_s[i] || times.end_s[i] <= times.start_s[j]) << i << ' ' << j;
    }
  }
  EXPECT_EQ(times.makespan_s, last);
  EXPECT_EQ(times.busy_s, busy);
  double at = 0;
  for (const int event : times.critical) {
    EXPECT_EQ(times.start_s[event], at);
    at = times.end_s[event];
  }
  EXPECT_EQ(at, last);
}

TEST(EventDag, InOrderIsTheLongestPath) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const int events = 1 + static_cast<int>(random() % 10);
    const EventDag dag = random_dag(random, 1 + static_cast<int>(random() % 3), events, [] { return Order::kInOrder; });
    const Schedule times = schedule(dag);
    expect_valid(dag, times);
    double longest = 0;
    for (int i = 0; i < events; ++i) {
      EXPECT_EQ(times.end_s[i], longest_path(dag, i)) << i;
      longest = std::max(longest, longest_path(dag, i));
    }
    EXPECT_EQ(times.makespan_s, longest);
  }
}

TEST(EventDag, ByNeedNeverIdlesAndTakesTheFirst) {
  int optimal = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const int units = 1 + static_cast<int>(random() % 3);
    const int events = 1 + static_cast<int>(random() % 7);
    const EventDag dag = random_dag(random, units, events, [] { return Order::kByNeed; });
    const Schedule times = schedule(dag);
    expect_valid(dag, times);
    for (int i = 0; i < events; ++i) {
      for (int j = 0; j < events; ++j) {
        if (i == j || dag.events()[i].unit != dag.events()[j].unit || times.start_s[j] <= times.start_s[i]) continue;
        // j could have begun instead of i: only if it comes later.
        if (ready_at(dag, times, j) < times.start_s[i]) {
          EXPECT_LT(std::pair(dag.events()[i].rank, i), std::pair(dag.events()[j].rank, j));
        }
      }
      // Ready and not begun: the unit was at work all the time.
      const double ready = ready_at(dag, times, i);
      double worked = 0;
      for (int j = 0; j < events; ++j) {
        if (j == i || dag.events()[j].unit != dag.events()[i].unit) continue;
        worked += std::max(0.0, std::min(times.end_s[j], times.start_s[i]) - std::max(times.start_s[j], ready));
      }
      EXPECT_EQ(worked, times.start_s[i] - ready) << i;
    }
    const double best = best_of_all_orders(dag);
    EXPECT_GE(times.makespan_s, best);
    EXPECT_LE(times.makespan_s, best * units);
    optimal += times.makespan_s == best ? 1 : 0;
  }
  EXPECT_GT(optimal, 100);
}

TEST(EventDag, OrdersMayMix) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    const EventDag dag = random_dag(random, 3, 1 + static_cast<int>(random() % 20),
                                    [&] { return random() % 2 == 0 ? Order::kByNeed : Order::kInOrder; });
    const Schedule times = schedule(dag);
    expect_valid(dag, times);
    for (int i = 0; i < static_cast<int>(dag.events().size()); ++i) {
      const int before = before_on_unit(dag, i);
      if (before >= 0 && dag.units()[dag.events()[i].unit].order == Order::kInOrder) {
        EXPECT_LE(times.end_s[before], times.start_s[i]);
      }
    }
  }
}

TEST(EventDag, ByNeedPassesByWhatIsNotReady) {
  EventDag dag;
  const int link = dag.add_unit("link", Order::kByNeed);
  const int other = dag.add_unit("other", Order::kInOrder);
  const int slow = dag.add(other, 10, 0, {});
  const int waits = dag.add(link, 1, 0, {slow});
  const int goes = dag.add(link, 4, 0, {});
  const Schedule times = schedule(dag);
  EXPECT_EQ(times.start_s[goes], 0);
  EXPECT_EQ(times.start_s[waits], 10);
  EXPECT_EQ(times.critical, (std::vector<int>{slow, waits}));
  EXPECT_EQ(schedule(EventDag()).makespan_s, 0);
}

}  // namespace
}  // namespace drafthorse
