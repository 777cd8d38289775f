#include "forward/device_tier.h"

#include <algorithm>

#include "base/units.h"

namespace drafthorse {
namespace {

// The rate of storage for which background limits are made; a faster link may have more under way in the same time,
// and more still, as nobody looks after it while the host waits for the device.
constexpr double kStorageBytesPerS = 8e9;
constexpr double kMostTimesLimit = 8;
// A RAM whose slots all wait for copies could serve no demand; and what is held are those that should go first.
constexpr int kLeastFreeInRam = ExpertCache::kLeastSlots;
constexpr int kHeldPart = 4;  // so many slots, one of them held at most

}  // namespace

DeviceLayerStats total_of(const std::vector<DeviceLayerStats>& layers) {
  DeviceLayerStats total;
  for (const DeviceLayerStats& layer : layers) {
    total.hits += layer.hits;
    total.copied += layer.copied;
    total.on_host += layer.on_host;
    total.extra_waits += layer.extra_waits;
    total.prefetched += layer.prefetched;
    total.prefetched_used += layer.prefetched_used;
    total.bytes_copied += layer.bytes_copied;
    total.bytes_prefetched += layer.bytes_prefetched;
  }
  return total;
}

DeviceTier::DeviceTier(Device& device, ExpertCache& ram, ExpertBank& bank, DeviceSlots& slots, const Clock& clock)
    : device_(device),
      ram_(ram),
      bank_(bank),
      slots_(slots),
      clock_(clock),
      ram_has_all_(ram.slots() >= ram.layout().total_experts()),
      background_limit_(kBackgroundBytesInFlight),
      stats_(ram.layout().n_layers()) {
  slots_.set_evicted([this](ExpertKey gone) { ram_.set_above(gone, false); });
}

DeviceTier::~DeviceTier() { device_.wait_for_copies(); }

// Of slots in RAM; 0: what is not there for good cannot be copied ahead.
size_t DeviceTier::most_held() const {
  return static_cast<size_t>(
      std::max(0, std::min(ram_.slots() - kLeastFreeInRam, std::max(1, ram_.slots() / kHeldPart))));
}

bool DeviceTier::on_its_way(ExpertKey key) const {
  return std::any_of(ahead_.begin(), ahead_.end(), [key](const Ahead& one) { return one.key == key; });
}

Prefetched DeviceTier::prefetch(ExpertKey key, Admission admission) {
  if (on_its_way(key)) return Prefetched::kThere;
  if (!ram_has_all_ && most_held() == 0) return Prefetched::kNoSlot;
  const Prefetched here = slots_.admits(key, admission);
  if (here != Prefetched::kStarted) return here;
  if (!ram_.resident(key)) {
    const Prefetched below = ram_.prefetch(key, admission);
    if (below != Prefetched::kStarted && below != Prefetched::kThere) return below;
    ahead_.push_back({key, admission});
    return Prefetched::kStarted;
  }
  if (!link_has_room() || !copy_ahead({key, admission})) {
    ram_.prefetch(key, admission);  // it stays there until then
    ahead_.push_back({key, admission});
  }
  return Prefetched::kStarted;
}

// False: nothing can be held at present. An expert that finds no slot any more is forgotten.
bool DeviceTier::copy_ahead(const Ahead& ahead) {
  // One that came before and went again may be held still.
  const bool held = std::find(held_.begin(), held_.end(), ahead.key) != held_.end();
  if (!ram_has_all_ && !held && held_.size() >= most_held()) return false;
  const std::optional<int> slot = slots_.claim_ahead(ahead.key, ahead.admission);
  if (!slot) return true;
  if (!held) ram_.hold(ahead.key);
  copy(ahead.key, *slot, true);
  if (ram_has_all_) {
    ram_.let_go(ahead.key);
  } else if (!held) {
    held_.push_back(ahead.key);
  }
  DeviceLayerStats& stats = stats_[index(ahead.key.layer)];
  ++stats.prefetched;
  stats.bytes_prefetched += bytes_of(ahead.key);
  return true;
}

void DeviceTier::copy(ExpertKey key, int slot, bool ahead) {
  const int64_t start = std::max(link_busy_until_ns_, clock_.now_ns());
  bank_.copy(key.layer, slot, ram_.weights(key));
  ram_.set_above(key, true);
  if (link_bytes_per_s_ <= 0) return;
  const double copy_s = static_cast<double>(bytes_of(key)) / link_bytes_per_s_;
  link_busy_until_ns_ = start + static_cast<int64_t>(copy_s * 1e9);
  if (trace_ != nullptr) trace_->copied(key, ahead, bytes_of(key), start, link_busy_until_ns_);
}

double DeviceTier::link_busy_s() const { return seconds(std::max<int64_t>(0, link_busy_until_ns_ - clock_.now_ns())); }

bool DeviceTier::link_has_room() const {
  if (link_bytes_per_s_ <= 0) return true;
  const double times = std::clamp(link_bytes_per_s_ / kStorageBytesPerS, 1.0, kMostTimesLimit);
  return link_busy_s() * link_bytes_per_s_ < times * static_cast<double>(background_limit_);
}

void DeviceTier::poll() {
  ram_.poll();
  // Done by now, or nearly.
  if (!held_.empty() && link_bytes_per_s_ > 0 && link_busy_s() == 0) settle();
  for (auto one = ahead_.begin(); one != ahead_.end() && link_has_room();) {
    if (!slots_.find(one->key) && ram_.on_its_way(one->key)) {
      ++one;
      continue;
    }
    // What is in neither place was given up below.
    const bool wanted = !slots_.find(one->key) && ram_.resident(one->key);
    if (wanted && !copy_ahead(*one)) return;
    one = ahead_.erase(one);
  }
}

void DeviceTier::wait_for_prefetches() {
  ram_.wait_for_prefetches();
  while (!ahead_.empty()) {
    link_busy_until_ns_ = 0;  // as many as there are, whatever the limit
    settle();
    poll();
  }
  settle();
}

uint64_t DeviceTier::prefetch_bytes_pending() const {
  uint64_t bytes = ram_.prefetch_bytes_pending() + static_cast<uint64_t>(link_busy_s() * link_bytes_per_s_);
  for (const Ahead& one : ahead_) bytes += ram_.resident(one.key) ? bytes_of(one.key) : 0;
  return bytes;
}

void DeviceTier::set_background_limit(uint64_t bytes) {
  background_limit_ = bytes;
  ram_.set_background_limit(bytes);
}

void DeviceTier::set_forecast(const Forecast* forecast) {
  slots_.set_forecast(forecast);
  ram_.set_forecast(forecast);
}

void DeviceTier::set_window(double tokens) {
  slots_.set_window(tokens);
  ram_.set_window(tokens);
}

// With all experts in RAM only the link counts; else most of what is missing comes from storage, which is slower.
double DeviceTier::load_bytes_per_s() const {
  if (ram_has_all_ || ram_.load_bytes_per_s() == 0) return link_bytes_per_s_;
  return link_bytes_per_s_ > 0 ? std::min(link_bytes_per_s_, ram_.load_bytes_per_s()) : ram_.load_bytes_per_s();
}

void DeviceTier::begin_turn(LayerId layer) {
  if (!held_.empty() && held_.size() >= most_held()) settle();
  slots_.begin_turn(layer);
  std::erase_if(ahead_, [layer](const Ahead& one) { return one.key.layer == layer; });
}

void DeviceTier::settle() {
  if (held_.empty()) return;
  device_.wait_for_copies();
  for (const ExpertKey key : held_) ram_.let_go(key);
  held_.clear();
}

void DeviceTier::abandon() {
  ahead_.clear();
  device_.wait_for_copies();
  for (const ExpertKey key : held_) ram_.let_go(key);
  held_.clear();
}

}  // namespace drafthorse
