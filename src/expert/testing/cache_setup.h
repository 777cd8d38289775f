// An expert cache over fake storage that can be broken, and all that it needs.
#pragma once

#include <algorithm>
#include <cerrno>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "expert/cache.h"
#include "expert/testing/fake_experts.h"

namespace drafthorse {

// Fails every read that touches a broken extent, for as long as it is broken.
class BreakableQueue final : public ReadQueue {
 public:
  explicit BreakableQueue(std::unique_ptr<ReadQueue> inner) : inner_(std::move(inner)), failing_(inner_->capacity()) {}

  std::string_view name() const override { return "breakable"; }
  size_t capacity() const override { return inner_->capacity(); }
  size_t in_flight() const override { return inner_->in_flight(); }
  void submit(std::span<const ReadRequest> requests) override {
    for (const ReadRequest& request : requests) {
      failing_[request.tag] = std::any_of(broken_.begin(), broken_.end(), [&](const FileExtent& extent) {
        return extent.file == request.file && extent.offset < request.offset + request.bytes &&
               request.offset < extent.offset + extent.bytes;
      });
    }
    inner_->submit(requests);
  }
  size_t reap(std::span<ReadCompletion> out, bool wait) override {
    const size_t count = inner_->reap(out, wait);
    for (ReadCompletion& completion : out.first(count)) {
      if (failing_[completion.tag]) completion = {completion.tag, 0, EIO};
    }
    return count;
  }

  void break_extent(const FileExtent& extent) { broken_.push_back(extent); }
  void mend() {
    broken_.clear();
    std::fill(failing_.begin(), failing_.end(), 0);
  }

 private:
  std::unique_ptr<ReadQueue> inner_;
  std::vector<char> failing_;
  std::vector<FileExtent> broken_;
};

struct CacheSetup {
  CacheSetup(const FakeExpertsOptions& options, int slots, const FakeStorageOptions& storage,
             std::string_view policy = kDefaultEviction)
      : experts(options, storage.seed),
        files(experts.open_files()),
        queue(make_fake_queue(experts.contents(), clock, storage)) {
    Result<std::unique_ptr<ExpertCache>> made =
        ExpertCache::create(experts.layout(), slots, make_eviction_policy(policy), *files, queue, clock);
    CHECK(made.ok());
    cache = std::move(made).value();
  }

  void let_reads_finish() {
    cache->poll();
    while (queue.in_flight() > 0) {
      clock.advance_by(1'000'000);
      cache->poll();
    }
  }
  int residents() const {
    int count = 0;
    for (size_t l = 0; l < experts.layout().n_layers(); ++l) {
      const LayerId layer{static_cast<int>(l)};
      for (int e = 0; e < experts.layout().n_experts(layer); ++e)
        count += cache->resident({layer, ExpertId{e}}) ? 1 : 0;
    }
    return count;
  }
  std::vector<ExpertId> all_of(LayerId layer) const {
    std::vector<ExpertId> all;
    for (int e = 0; e < experts.layout().n_experts(layer); ++e) all.push_back(ExpertId{e});
    return all;
  }
  LayerCacheStats total_stats() const {
    LayerCacheStats total;
    for (const LayerCacheStats& one : cache->stats()) {
      total.hits += one.hits;
      total.in_flight_hits += one.in_flight_hits;
      total.misses += one.misses;
      total.stall_ns += one.stall_ns;
    }
    return total;
  }

  VirtualClock clock;
  FakeExperts experts;
  std::unique_ptr<FileSet> files;
  BreakableQueue queue;
  std::unique_ptr<ExpertCache> cache;
};

}  // namespace drafthorse
