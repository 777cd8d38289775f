#include "plan/pipeline.h"

#include <algorithm>
#include <cmath>
#include <deque>

#include "base/check.h"

namespace drafthorse {
namespace {

using Id = EventDag::EventId;

constexpr int kIterations = 4;       // the last is taken: buffers are then as they always are
constexpr int kMostGroups = 16;      // of a layer's experts, events at most
constexpr double kLeastLoad = 1e-6;  // experts of a layer; less is nothing

// One layer's experts: those that memory has, which are computed first, then the others in equal groups.
struct Groups {
  double resident_s = 0;  // of computing what memory has, for one micro-batch
  int count = 0;          // of groups that are loaded
  double load_s = 0;      // of one
  double load_bytes = 0;
  double compute_s = 0;  // of one, for one micro-batch
  double loaded = 0;     // experts of one
  int foreseen = 0;      // groups that are loaded before the layer's router has spoken
};

// The number of successes of `tries` that is exceeded with a probability of 1 - u at most.
double binomial_quantile(int tries, double success, double u) {
  if (success >= 1) return tries;
  // So that the probability below is no power that vanishes.
  if (success > 0.5) return tries - binomial_quantile(tries, 1 - success, 1 - u);
  double probability = std::pow(1 - success, tries);
  double below = probability;
  int count = 0;
  for (; below < u && count < tries; ++count) {
    probability *= success / (1 - success) * (tries - count) / (count + 1);
    below += probability;
  }
  return count;
}

// How many experts each of `layers` loads in one pass: whole ones, and not the same number everywhere. Where few are
// missing, the layer that has to wait for two loses more than one that has all of them gains. Binomial, with the mean
// and the variance that `loads` has, each layer at another quantile; the quantiles are as even as sequences can be
// (multiples of the golden ratio and of the plastic number), so that nothing is left to chance.
std::vector<double> loads_by_layer(const ExpertLoads& loads, int layers, int experts) {
  std::vector<double> counts(static_cast<size_t>(layers), 0.0);
  if (loads.all <= kLeastLoad) return counts;
  const double most = experts;
  const double success = std::clamp(1 - loads.variance / loads.all, loads.all / most, 1.0);
  double surplus = -loads.all * layers;
  for (double& count : counts) {
    const auto i = static_cast<double>(&count - counts.data());
    double whole = 0;
    const auto tries = static_cast<int>(loads.all / success + std::modf(0.25 + i * 0.7548776662466927, &whole));
    count = binomial_quantile(tries, success, std::modf(0.5 + i * 0.6180339887498949, &whole));
    surplus += count;
  }
  // What came out too many or too few, one by one; the rest, less than one expert, by all.
  for (int i = 0; i < layers && std::abs(surplus) >= 0.5; ++i) {
    double& count = counts[static_cast<size_t>(i)];
    const double change = surplus > 0 ? -std::min(1.0, count) : std::min(1.0, most - count);
    count += change;
    surplus += change;
  }
  const double total = loads.all * layers + surplus;
  if (total <= 0) return std::vector<double>(counts.size(), loads.all);
  for (double& count : counts) count *= loads.all * layers / total;
  return counts;
}

class Builder {
 public:
  Builder(const ModelCost& cost, const Platform& platform, const Iteration& iteration)
      : cost_(cost), platform_(platform), iteration_(iteration) {
    CHECK(platform.link_bytes_per_s > 0 && iteration.micro_batches > 0);
    link_ = dag_.add_unit("link", EventDag::Order::kByNeed);
    if (platform.device) {
      back_ = dag_.add_unit("link back", EventDag::Order::kByNeed);
      processor_ = dag_.add_unit("processor", EventDag::Order::kByNeed);
      main_ = dag_.add_unit("device", EventDag::Order::kByNeed);
    } else {
      main_ = processor_ = dag_.add_unit("processor", EventDag::Order::kInOrder);
    }
    prepare();
  }

  IterationPrediction predict(bool with_timeline) {
    Id before = -1;  // end of the iteration before
    for (int i = 0; i < kIterations; ++i) before = add_iteration(before);
    const Schedule times = schedule(dag_);
    IterationPrediction out;
    const double begin = times.end_s[iteration_ends_[kIterations - 2]];
    const double end = times.end_s[iteration_ends_.back()];
    out.seconds = end - begin;
    out.target_s = times.end_s[heads_.back()] - times.end_s[draft_ends_.back()];
    for (const Id id : times.critical) {
      const double part = std::min(end, times.end_s[id]) - std::max(begin, times.start_s[id]);
      if (part > 0) out.critical[kind(id)] += part;
    }
    for (size_t i = 0; i < dag_.events().size(); ++i) {
      const auto id = static_cast<Id>(i);
      const double part = std::min(end, times.end_s[id]) - std::max(begin, times.start_s[id]);
      if (part <= 0) continue;
      out.busy[kind(id)] += part;
      if (!with_timeline) continue;
      out.timeline.push_back({std::max(begin, times.start_s[id]) - begin, std::min(end, times.end_s[id]) - begin,
                              dag_.units()[dag_.events()[id].unit].name, static_cast<Component>(kind(id)),
                              notes_[i].layer, notes_[i].micro_batch});
    }
    std::stable_sort(out.timeline.begin(), out.timeline.end(),
                     [](const TimelineEvent& a, const TimelineEvent& b) { return a.start_s < b.start_s; });
    out.limit =
        static_cast<Component>(std::max_element(out.critical.begin(), out.critical.end()) - out.critical.begin());
    for (const Groups& groups : groups_) out.loaded_bytes += groups.count * groups.load_bytes;
    return out;
  }

 private:
  struct Note {
    int layer = -1;
    int micro_batch = -1;
  };

  size_t kind(Id id) const { return static_cast<size_t>(dag_.events()[id].kind); }

  Id add(EventDag::UnitId unit, double seconds, Component component, std::vector<Id> after, int layer = -1,
         int micro_batch = -1) {
    after.erase(std::remove(after.begin(), after.end(), -1), after.end());
    notes_.push_back({layer, micro_batch});
    // What attention waits for is short and goes first: experts and loads have time.
    const int rank = component == Component::kExperts || component == Component::kLoad ? 1 : 0;
    return dag_.add(unit, seconds, static_cast<int>(component), std::move(after), rank);
  }

  // Seconds and groups of each layer, for one micro-batch.
  void prepare() {
    const PassWork work = iteration_.pass + iteration_.prompt;
    const double tokens = work.tokens / iteration_.micro_batches;
    const int moe_layers = cost_.moe_layers();
    const double used = experts_used(cost_.popularity, work.tokens);
    const ExpertRows rows(cost_.popularity, tokens);
    const ExpertLoads loads = expert_loads(cost_.popularity, work.tokens, iteration_.resident_experts);
    const std::vector<double> counts = loads_by_layer(loads, moe_layers, static_cast<int>(cost_.popularity.size()));
    auto count = counts.begin();
    for (const LayerCost& layer : cost_.layers) {
      Groups groups;
      if (layer.experts > 0) {
        const double compute_s = rows.seconds(layer.expert);
        const double loaded = *count++;
        groups.resident_s = std::max(0.0, 1 - loads.all / used) * compute_s;
        if (loaded > kLeastLoad) {
          groups.count = std::clamp(static_cast<int>(std::lround(loaded)), 1, kMostGroups);
          groups.loaded = loaded / groups.count;
          groups.foreseen = static_cast<int>(std::lround(groups.count * loads.foreseen / loads.all));
          groups.load_bytes = groups.loaded * cost_.expert_bytes;
          groups.load_s = groups.load_bytes / platform_.link_bytes_per_s;
          groups.compute_s = groups.loaded / used * compute_s;
        }
      }
      groups_.push_back(groups);
      dense_s_.push_back(layer.dense.at(tokens));
    }
    const PassWork& attended = platform_.device ? iteration_.pass : work;
    attention_s_ = cost_.attention.seconds(attended.token_keys / iteration_.micro_batches,
                                           attended.keys / iteration_.micro_batches);
    if (platform_.device) {
      prompt_attention_s_ = platform_.prompt_attention.seconds(iteration_.prompt.token_keys / iteration_.micro_batches,
                                                               iteration_.prompt.keys / iteration_.micro_batches);
    }
    head_s_ = cost_.head.at(work.heads);
    if (platform_.device || iteration_.pipeline == Pipeline::kOnDemand) return;
    // What is computed while the processor serves reads takes longer.
    double load_s = 0;
    double compute_s = head_s_;
    for (size_t i = 0; i < groups_.size(); ++i) {
      load_s += groups_[i].count * groups_[i].load_s;
      compute_s += dense_s_[i] + attention_s_ + groups_[i].resident_s + groups_[i].count * groups_[i].compute_s;
    }
    if (compute_s <= 0) return;
    load_s = slow_down_loads(load_s, compute_s);
    const double beside = std::min(1.0, load_s / compute_s);
    const double factor = 1 + (platform_.compute_slowdown_while_loading - 1) * beside;
    for (size_t i = 0; i < groups_.size(); ++i) {
      groups_[i].compute_s *= factor;
      groups_[i].resident_s *= factor;
      dense_s_[i] *= factor;
    }
    attention_s_ *= factor;
    head_s_ *= factor;
  }

  // Loads of so many seconds beside so many of computing: what they take then, in all. Their groups take as much
  // longer.
  double slow_down_loads(double load_s, double compute_s) {
    const double beside = platform_.link_bytes_per_s_while_computing / platform_.link_bytes_per_s;
    if (!(beside > 0) || beside >= 1 || load_s <= 0) return load_s;
    const double slowed = std::min(load_s / beside, load_s + (1 - beside) * compute_s);
    for (Groups& groups : groups_) groups.load_s *= slowed / load_s;
    return slowed;
  }

  bool on_demand() const { return iteration_.pipeline == Pipeline::kOnDemand; }

  // A load begins when the buffer has room: when enough of those before it have been computed.
  Id add_load(int layer, Id known) {
    const Groups& groups = groups_[layer];
    std::vector<Id> after = {known};
    buffered_ += groups.loaded;
    while (buffered_ > std::max(iteration_.buffer_experts, groups.loaded) + kLeastLoad && !in_buffer_.empty()) {
      after.push_back(in_buffer_.front().computed);
      buffered_ -= in_buffer_.front().experts;
      in_buffer_.pop_front();
    }
    return add(link_, groups.load_s, Component::kLoad, std::move(after), layer);
  }

  // Experts of a layer for all micro-batches, after what each waits for. Returns what each ends with.
  std::vector<Id> add_experts(int layer, std::vector<Id> ends) {
    const Groups& groups = groups_[layer];
    if (cost_.layers[static_cast<size_t>(layer)].experts == 0) return ends;
    const Id routed = ends.back();
    const bool all_first = on_demand() || groups.loaded * groups.count <= iteration_.buffer_experts;
    std::vector<Id> loads(static_cast<size_t>(groups.count), -1);
    // Those that are foreseen are on their way first, and computed before the others.
    const auto known_from = [&](int g) { return on_demand() || g >= groups.foreseen ? routed : -1; };
    if (all_first) {
      for (int g = 0; g < groups.count; ++g) loads[static_cast<size_t>(g)] = add_load(layer, known_from(g));
    }
    // On demand nothing is computed until everything is there.
    if (on_demand() && !loads.empty()) std::fill(loads.begin(), loads.end(), loads.back());
    const Id residents_from = on_demand() && !loads.empty() ? loads.back() : -1;
    if (all_first) {
      // One micro-batch after the other, so that the first one's next attention can begin.
      std::vector<Id> last(loads.size(), -1);
      for (size_t m = 0; m < ends.size(); ++m) {
        ends[m] = add_residents(layer, m, ends[m], residents_from);
        for (size_t g = 0; g < loads.size(); ++g) last[g] = ends[m] = add_group(layer, m, ends[m], loads[g]);
      }
      for (const Id computed : last) in_buffer_.push_back({computed, groups.loaded});
      return ends;
    }
    for (size_t m = 0; m < ends.size(); ++m) ends[m] = add_residents(layer, m, ends[m], -1);
    for (int g = 0; g < groups.count; ++g) {
      const Id load = add_load(layer, known_from(g));
      for (size_t m = 0; m < ends.size(); ++m) ends[m] = add_group(layer, m, ends[m], load);
      in_buffer_.push_back({ends.back(), groups.loaded});
    }
    return ends;
  }

  Id add_residents(int layer, size_t micro_batch, Id before, Id from) {
    const double seconds = groups_[layer].resident_s;
    return add(main_, seconds, Component::kExperts, {before, from}, layer, static_cast<int>(micro_batch));
  }

  Id add_group(int layer, size_t micro_batch, Id before, Id load) {
    return add(main_, groups_[layer].compute_s, Component::kExperts, {before, load}, layer,
               static_cast<int>(micro_batch));
  }

  Id add_iteration(Id before) {
    const std::vector<Id> drafted = add_draft(before);
    std::vector<Id> ends(static_cast<size_t>(iteration_.micro_batches), drafted.front());
    for (size_t layer = 0; layer < groups_.size(); ++layer) {
      const int number = static_cast<int>(layer);
      if (platform_.device)
        add_attention_beside_device(number, drafted, ends);
      else
        add_attention(number, ends);
      ends = add_experts(number, ends);
    }
    const Id head = add(main_, head_s_, Component::kOther, ends);
    heads_.push_back(head);
    const Id end = add(processor_, iteration_.other_s, Component::kOther, {head});
    iteration_ends_.push_back(end);
    return end;
  }

  // On the device and beside it.
  std::vector<Id> add_draft(Id before) {
    std::vector<Id> drafted = {add(main_, iteration_.draft.device_s, Component::kDraft, {before})};
    if (platform_.device) {
      drafted.push_back(add(processor_, iteration_.draft.processor_s, Component::kDraft, {before}));
    }
    draft_ends_.push_back(iteration_.draft.processor_s > iteration_.draft.device_s ? drafted.back() : drafted.front());
    return drafted;
  }

  void add_attention(int layer, std::vector<Id>& ends) {
    for (size_t m = 0; m < ends.size(); ++m) {
      const int micro_batch = static_cast<int>(m);
      ends[m] = add(main_, attention_s_, Component::kAttention, {ends[m]}, layer, micro_batch);
      ends[m] = add(main_, dense_s_[layer], Component::kDense, {ends[m]}, layer, micro_batch);
    }
  }

  void add_attention_beside_device(int layer, const std::vector<Id>& drafted, std::vector<Id>& ends) {
    const double tokens = iteration_.pass.tokens / iteration_.micro_batches;
    const double out_s = tokens * platform_.activation_bytes_out / platform_.link_bytes_per_s;
    const double in_s = tokens * platform_.activation_bytes_in / platform_.link_bytes_per_s;
    const double pre_s = dense_s_[layer] * platform_.pre_attention_share;
    const double post_s = dense_s_[layer] - pre_s;
    for (size_t m = 0; m < ends.size(); ++m) {
      const int micro_batch = static_cast<int>(m);
      std::vector<Id> after = {ends[m]};
      if (layer == 0) after = drafted;
      Id at = add(main_, pre_s + prompt_attention_s_, Component::kDense, after, layer, micro_batch);
      at = add(back_, out_s, Component::kActivations, {at}, layer, micro_batch);
      at = add(processor_, attention_s_, Component::kAttention, {at}, layer, micro_batch);
      at = add(link_, in_s, Component::kActivations, {at}, layer, micro_batch);
      ends[m] = add(main_, post_s, Component::kDense, {at}, layer, micro_batch);
    }
  }

  struct Buffered {
    Id computed = -1;
    double experts = 0;
  };

  const ModelCost& cost_;
  const Platform& platform_;
  const Iteration& iteration_;
  EventDag dag_;
  std::vector<Note> notes_;
  EventDag::UnitId link_ = 0, back_ = 0, processor_ = 0, main_ = 0;
  std::vector<Groups> groups_;
  std::vector<double> dense_s_;
  double attention_s_ = 0;
  double prompt_attention_s_ = 0;
  double head_s_ = 0;
  double buffered_ = 0;  // experts in the buffer or on their way
  std::deque<Buffered> in_buffer_;
  std::vector<Id> heads_, draft_ends_, iteration_ends_;
};

}  // namespace

const char* component_name(Component component) {
  switch (component) {
    case Component::kLoad:
      return "link";
    case Component::kActivations:
      return "activations";
    case Component::kDense:
      return "dense layers";
    case Component::kAttention:
      return "attention";
    case Component::kExperts:
      return "experts";
    case Component::kDraft:
      return "draft";
    default:
      return "other";
  }
}

IterationPrediction simulate_iteration(const ModelCost& cost, const Platform& platform, const Iteration& iteration,
                                       bool with_timeline) {
  return Builder(cost, platform, iteration).predict(with_timeline);
}

}  // namespace drafthorse
