// timeline_of_trace() of bench_runs.h, timeline_of_batch_trace() of bench_batch_runs.h.
#include <algorithm>
#include <cmath>
#include <map>

#include "bench_batch_runs.h"
#include "bench_runs.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Event {
  char phase = 0;
  std::string name;
  std::string why;
  double start_ms = 0;
  double length_ms = 0;
  int64_t id = 0;
};

std::optional<std::vector<Event>> read_events(const std::string& text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("traceEvents") || !json["traceEvents"].is_array()) return std::nullopt;
  std::vector<Event> events;
  for (const Json& one : json["traceEvents"]) {
    if (!one.is_object() || !one.contains("ph") || !one["ph"].is_string()) return std::nullopt;
    Event event;
    event.phase = one["ph"].get<std::string>().empty() ? '\0' : one["ph"].get<std::string>()[0];
    event.name = one.value("name", "");
    event.start_ms = one.value("ts", 0.0) / 1000;
    event.length_ms = one.value("dur", 0.0) / 1000;
    event.id = one.value("id", int64_t{0});
    if (one.contains("args") && one["args"].is_object() && one["args"].contains("why")) {
      event.why = one["args"]["why"].get<std::string>();
    }
    events.push_back(std::move(event));
  }
  return events;
}

// Overlapping ones become one; cut to 0 .. length.
TimeSpans within(TimeSpans spans, double from, double length) {
  std::sort(spans.begin(), spans.end());
  TimeSpans out;
  for (const auto& [start, span_length] : spans) {
    const double begin = std::max(start - from, 0.0);
    const double end = std::min(start + span_length - from, length);
    if (end <= begin) continue;
    if (!out.empty() && begin <= out.back().first + out.back().second) {
      out.back().second = std::max(out.back().second, end - out.back().first);
    } else {
      out.emplace_back(begin, end - begin);
    }
  }
  // Microseconds are exact enough, and short.
  for (auto& [begin, span_length] : out) {
    begin = std::round(begin * 1e3) / 1e3;
    span_length = std::round(span_length * 1e3) / 1e3;
  }
  return out;
}

Status no_trace() { return file_error("a run left no trace that can be read"); }

Result<std::vector<Event>> events_of(const std::string& text) {
  try {
    if (std::optional<std::vector<Event>> events = read_events(text)) return std::move(*events);
  } catch (const Json::exception&) {  // a member of another type
  }
  return no_trace();
}

double end_of(const std::pair<double, double>& span) { return span.first + span.second; }

// What of `spans` is not in `others`. Both as within() makes them.
TimeSpans without(const TimeSpans& spans, const TimeSpans& others) {
  TimeSpans out;
  for (const auto& span : spans) {
    double at = span.first;
    for (const auto& other : others) {
      if (end_of(other) <= at || other.first >= end_of(span)) continue;
      if (other.first > at) out.emplace_back(at, other.first - at);
      at = end_of(other);
    }
    if (at < end_of(span)) out.emplace_back(at, end_of(span) - at);
  }
  return out;
}

}  // namespace

Result<BenchTimeline> timeline_of_trace(const std::string& trace_text, RunKey key, double length_ms) {
  ASSIGN_OR_RETURN(const std::vector<Event> events, events_of(trace_text));
  TimeSpans draft, verify, stall, demand, ahead;
  std::map<int64_t, Event> reads;
  double begin = -1;
  double end = 0;
  for (const Event& event : events) {
    const std::pair<double, double> span = {event.start_ms, event.length_ms};
    if (event.phase == 'X' && event.name == "draft") draft.push_back(span);
    if (event.phase == 'X' && event.name == "verify") verify.push_back(span);
    if (event.phase == 'X' && event.name == "stall") stall.push_back(span);
    if (event.phase == 'b') reads[event.id] = event;
    if (event.phase == 'e' && reads.contains(event.id)) {
      const Event& read = reads[event.id];
      (read.why == "demand" ? demand : ahead).emplace_back(read.start_ms, event.start_ms - read.start_ms);
    }
    if (event.phase == 'X' && (event.name == "verify" || event.name == "draft")) {
      begin = begin < 0 ? event.start_ms : std::min(begin, event.start_ms);
      end = std::max(end, event.start_ms + event.length_ms);
    }
  }
  if (begin < 0 || end <= begin) return no_trace();
  const double length = std::min(length_ms, end - begin);
  double from = begin + (end - begin - length) / 2;
  // A verification's or a draft's beginning is where an eye starts reading.
  double snapped = begin;
  for (const TimeSpans* spans : {&draft, &verify}) {
    for (const auto& [start, span_length] : *spans) {
      if (start <= from) snapped = std::max(snapped, start);
    }
  }
  from = snapped;
  BenchTimeline out;
  out.key = std::move(key);
  out.length_ms = length;
  out.draft = within(draft, from, length);
  out.verify = within(verify, from, length);
  out.stall = within(stall, from, length);
  out.demand_reads = within(demand, from, length);
  out.ahead_reads = within(ahead, from, length);
  return out;
}

Result<BatchTimeline> timeline_of_batch_trace(const std::string& trace_text, BatchRunKey key, size_t first,
                                              size_t count) {
  ASSIGN_OR_RETURN(const std::vector<Event> events, events_of(trace_text));
  TimeSpans draft, verify, attention, head, stall, reads;
  std::map<int64_t, double> under_way;  // by id: when it began
  for (const Event& event : events) {
    const std::pair<double, double> span = {event.start_ms, event.length_ms};
    if (event.phase == 'b') under_way[event.id] = event.start_ms;
    if (event.phase == 'e' && under_way.contains(event.id)) {
      reads.emplace_back(under_way[event.id], event.start_ms - under_way[event.id]);
      under_way.erase(event.id);
    }
    if (event.phase != 'X') continue;
    if (event.name == "draft") draft.push_back(span);
    if (event.name == "verify") verify.push_back(span);
    if (event.name == "attention") attention.push_back(span);
    if (event.name == "head") head.push_back(span);
    if (event.name == "stall") stall.push_back(span);
  }
  std::sort(verify.begin(), verify.end());
  if (count == 0 || first + count > verify.size()) return no_trace();
  // An iteration begins with its draft, where there is one, and ends with its choices.
  const auto begin_of = [&](size_t iteration) {
    const double after = iteration == 0 ? -1 : end_of(verify[iteration - 1]);
    double begin = verify[iteration].first;
    for (const auto& span : draft) {
      if (span.first >= after && span.first < begin) begin = span.first;
    }
    return begin;
  };
  const size_t last = first + count - 1;
  const double from = begin_of(first);
  double end = end_of(verify[last]);
  const double next = last + 1 < verify.size() ? begin_of(last + 1) : end;
  for (const auto& span : head) {
    if (span.first >= end && (last + 1 == verify.size() || span.first < next)) end = std::max(end, end_of(span));
  }
  BatchTimeline out;
  out.key = std::move(key);
  out.length_ms = end - from;
  if (!(out.length_ms > 0)) return no_trace();
  for (size_t i = first; i <= last; ++i) out.begins_ms.push_back(begin_of(i) - from);
  out.reads = within(reads, from, out.length_ms);
  out.draft = within(draft, from, out.length_ms);
  out.attention = within(attention, from, out.length_ms);
  out.head = within(head, from, out.length_ms);
  out.stall = within(stall, from, out.length_ms);
  out.experts = without(without(within(verify, from, out.length_ms), out.attention), out.stall);
  return out;
}

}  // namespace drafthorse::cli
