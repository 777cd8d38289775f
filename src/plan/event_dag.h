// A schedule of events on units: what a pipeline of loads, transfers and computations takes. Pure, deterministic.
//
// An event takes one unit (the link, the processor, the device, ..) for its seconds, after all events it depends on. A
// unit does one event at a time and never interrupts it. Which comes next:
//   kInOrder  the one added first of those left, waited for if need be: a stream, or a program's own order
//   kByNeed   of those that are ready the one of the lowest rank, of these the one added first; the unit idles only
//             while none is ready (list scheduling)
// With units in order the makespan is the longest path through dependencies and orders; no schedule that keeps the
// orders is shorter.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace drafthorse {

class EventDag {
 public:
  enum class Order { kInOrder, kByNeed };
  using UnitId = int;
  using EventId = int;

  UnitId add_unit(std::string name, Order order);
  // kind: the caller's, for sums. `after` are events added before.
  EventId add(UnitId unit, double seconds, int kind, std::vector<EventId> after, int rank = 0);

  struct Unit {
    std::string name;
    Order order = Order::kInOrder;
  };
  struct Event {
    UnitId unit = 0;
    double seconds = 0;
    int kind = 0;
    std::vector<EventId> after;
    int rank = 0;
  };
  const std::vector<Unit>& units() const { return units_; }
  const std::vector<Event>& events() const { return events_; }

 private:
  std::vector<Unit> units_;
  std::vector<Event> events_;
};

struct Schedule {
  double makespan_s = 0;
  std::vector<double> start_s;              // by event
  std::vector<double> end_s;                // by event
  std::vector<double> busy_s;               // by unit
  std::vector<EventDag::EventId> critical;  // in time order: each begins when the one before ends, the last ends last
};

Schedule schedule(const EventDag& dag);

}  // namespace drafthorse
