#include "plan/event_dag.h"

#include <algorithm>
#include <functional>
#include <queue>

#include "base/check.h"

namespace drafthorse {

EventDag::UnitId EventDag::add_unit(std::string name, Order order) {
  units_.push_back({std::move(name), order});
  return static_cast<UnitId>(units_.size()) - 1;
}

EventDag::EventId EventDag::add(UnitId unit, double seconds, int kind, std::vector<EventId> after, int rank) {
  const auto id = static_cast<EventId>(events_.size());
  CHECK(unit >= 0 && unit < static_cast<int>(units_.size()) && seconds >= 0);
  for (const EventId before : after) CHECK(before >= 0 && before < id);
  events_.push_back({unit, seconds, kind, std::move(after), rank});
  return id;
}

namespace {

using Id = EventDag::EventId;
template <typename T>
using LeastFirst = std::priority_queue<T, std::vector<T>, std::greater<>>;

class Scheduler {
 public:
  explicit Scheduler(const EventDag& dag) : dag_(dag), lines_(dag.units().size()) {
    const size_t count = dag.events().size();
    out_.start_s.assign(count, 0);
    out_.end_s.assign(count, 0);
    out_.busy_s.assign(dag.units().size(), 0);
    missing_.assign(count, 0);
    followers_.resize(count);
    held_by_.assign(count, -1);
    for (size_t i = 0; i < count; ++i) {
      const EventDag::Event& event = dag.events()[i];
      missing_[i] = static_cast<int>(event.after.size());
      for (const Id before : event.after) followers_[before].push_back(static_cast<Id>(i));
      lines_[event.unit].order.push_back(static_cast<Id>(i));
      if (event.after.empty()) lines_[event.unit].ready.emplace(event.rank, static_cast<Id>(i));
    }
  }

  Schedule run() {
    double now = 0;
    size_t done = 0;
    while (done < dag_.events().size()) {
      for (size_t unit = 0; unit < lines_.size(); ++unit) start_next(unit, now);
      CHECK(!running_.empty());  // dependencies point backwards, so that nothing waits for itself
      now = running_.top().first;
      while (!running_.empty() && running_.top().first == now) {
        finish(running_.top().second);
        running_.pop();
        ++done;
      }
    }
    out_.makespan_s = now;
    trace_back();
    return std::move(out_);
  }

 private:
  struct Line {
    std::vector<Id> order;
    size_t begun = 0;                      // of order, where that is kept
    LeastFirst<std::pair<int, Id>> ready;  // rank first
    Id last = -1;                          // finished or running
    bool busy = false;
  };

  void start_next(size_t unit, double now) {
    Line& line = lines_[unit];
    if (line.busy) return;
    Id next = -1;
    if (dag_.units()[unit].order == EventDag::Order::kInOrder) {
      if (line.begun == line.order.size() || missing_[line.order[line.begun]] > 0) return;
      next = line.order[line.begun++];
    } else {
      if (line.ready.empty()) return;
      next = line.ready.top().second;
      line.ready.pop();
    }
    const EventDag::Event& event = dag_.events()[next];
    out_.start_s[next] = now;
    out_.end_s[next] = now + event.seconds;
    out_.busy_s[unit] += event.seconds;
    held_by_[next] = line.last;
    for (const Id before : event.after) {
      if (held_by_[next] < 0 || out_.end_s[before] > out_.end_s[held_by_[next]]) held_by_[next] = before;
    }
    line.last = next;
    line.busy = true;
    running_.emplace(out_.end_s[next], next);
  }

  void finish(Id event) {
    lines_[dag_.events()[event].unit].busy = false;
    for (const Id next : followers_[event]) {
      const EventDag::Event& one = dag_.events()[next];
      if (--missing_[next] == 0) lines_[one.unit].ready.emplace(one.rank, next);
    }
  }

  void trace_back() {
    if (out_.end_s.empty()) return;
    auto at = static_cast<Id>(std::max_element(out_.end_s.begin(), out_.end_s.end()) - out_.end_s.begin());
    for (; at >= 0; at = held_by_[at]) out_.critical.push_back(at);
    std::reverse(out_.critical.begin(), out_.critical.end());
  }

  const EventDag& dag_;
  Schedule out_;
  std::vector<Line> lines_;
  std::vector<int> missing_;  // dependencies, by event
  std::vector<std::vector<Id>> followers_;
  std::vector<Id> held_by_;  // what ended when it began; -1: nothing
  LeastFirst<std::pair<double, Id>> running_;
};

}  // namespace

Schedule schedule(const EventDag& dag) { return Scheduler(dag).run(); }

}  // namespace drafthorse
