#include "expert/cache.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "expert/testing/cache_setup.h"

namespace drafthorse {
namespace {

TEST(ExpertCache, FailedReadSurfacesAndTheNextDemandWorks) {
  for (const bool by_order : {false, true}) {
    CacheSetup setup({.experts_per_layer = {6}}, 4, {.seed = 3});
    const FileExtent& broken = setup.experts.layout().layers[0].experts[2][2];
    setup.queue.break_extent(broken);
    const std::vector<ExpertId> wanted{ExpertId{1}, ExpertId{2}};
    setup.cache->demand(LayerId{0}, wanted);
    Status failure;
    if (by_order) {
      failure = setup.cache->wait_for(ExpertId{2});
    } else {
      while (failure.ok()) {
        Result<std::vector<ExpertId>> ready = setup.cache->take_ready();
        if (!ready.ok())
          failure = ready.status();
        else
          for (const ExpertId expert : ready.value()) setup.cache->release(expert);
      }
    }
    EXPECT_EQ(failure.kind(), StatusKind::kRuntime);
    EXPECT_NE(failure.message().find(setup.files->path(0)), std::string::npos) << failure.message();
    setup.cache->abandon();
    setup.cache->check_invariants();
    EXPECT_FALSE(setup.cache->resident({LayerId{0}, ExpertId{2}}));

    setup.queue.mend();
    setup.cache->demand(LayerId{0}, wanted);
    ASSERT_TRUE(setup.cache->wait_for(ExpertId{2}).ok());
    EXPECT_TRUE(setup.experts.matches({LayerId{0}, ExpertId{2}}, setup.cache->weights(ExpertId{2})));
    setup.cache->abandon();
  }
}

TEST(ExpertCache, FailedPrefetchIsNoError) {
  CacheSetup setup({.experts_per_layer = {4}}, 3, {.seed = 4});
  setup.queue.break_extent(setup.experts.layout().layers[0].experts[1][0]);
  setup.cache->prefetch({LayerId{0}, ExpertId{1}});
  setup.let_reads_finish();
  EXPECT_FALSE(setup.cache->resident({LayerId{0}, ExpertId{1}}));
  setup.queue.mend();
  const std::vector<ExpertId> wanted{ExpertId{1}};
  setup.cache->demand(LayerId{0}, wanted);
  EXPECT_TRUE(setup.cache->wait_for(ExpertId{1}).ok());
  setup.cache->release(ExpertId{1});
}

// What rejected tokens use again and again stays, though it is never part of the text.
TEST(ExpertCache, LearnsFromWhatWindowsUse) {
  CacheSetup setup({.experts_per_layer = {6}}, 3, {.seed = 6}, "draft-guided");
  setup.cache->set_window(2);
  const auto pass = [&](const ExpertId accepted, const ExpertId rejected) {
    const std::vector<ExpertId> experts{accepted, rejected};
    setup.cache->demand(LayerId{0}, experts);
    for (const ExpertId expert : experts) {
      ASSERT_TRUE(setup.cache->wait_for(expert).ok());
      setup.cache->release(expert);
    }
    std::vector<int32_t> used(6, 0);
    std::vector<char> of_window(6, 0);
    used[static_cast<size_t>(index(accepted))] = 1;
    of_window[static_cast<size_t>(index(accepted))] = of_window[static_cast<size_t>(index(rejected))] = 1;
    setup.cache->record_uses(LayerId{0}, used, 1, of_window);
    setup.cache->advance(1);
  };
  for (int i = 0; i < 3; ++i) pass(ExpertId{2}, ExpertId{0});
  for (int i = 0; i < 12; ++i) pass(ExpertId{0}, ExpertId{1});
  pass(ExpertId{0}, ExpertId{3});
  EXPECT_TRUE(setup.cache->resident({LayerId{0}, ExpertId{1}}));
  EXPECT_FALSE(setup.cache->resident({LayerId{0}, ExpertId{2}}));
}

// The pinned residents of a demand may fill all slots while the expert waited for first is absent.
TEST(ExpertCache, WaitingInOrderPassesResidentsThatFillAllSlots) {
  CacheSetup setup({.experts_per_layer = {6}}, 2, {.seed = 5});
  const auto run = [&](const std::vector<ExpertId>& experts) {
    setup.cache->demand(LayerId{0}, experts);
    for (const ExpertId expert : experts) {
      ASSERT_TRUE(setup.cache->wait_for(expert).ok());
      ASSERT_TRUE(setup.experts.matches({LayerId{0}, expert}, setup.cache->weights(expert)));
      setup.cache->release(expert);
      setup.cache->check_invariants();
    }
  };
  run({ExpertId{4}, ExpertId{5}});
  run({ExpertId{0}, ExpertId{1}, ExpertId{4}, ExpertId{5}});
}

// The disk must not idle while the caller computes: a slot that comes free is read into at once.
TEST(ExpertCache, ReleaseStartsTheNextRead) {
  CacheSetup setup({.experts_per_layer = {6}}, 2, {.seed = 5});
  const std::vector<ExpertId> wanted{ExpertId{0}, ExpertId{1}, ExpertId{2}};
  setup.cache->demand(LayerId{0}, wanted);
  setup.let_reads_finish();
  ASSERT_EQ(setup.cache->take_ready().value().size(), 2U);
  EXPECT_EQ(setup.queue.in_flight(), 0U);
  setup.cache->release(ExpertId{1});
  EXPECT_GT(setup.queue.in_flight(), 0U);
  ASSERT_TRUE(setup.cache->wait_for(ExpertId{2}).ok());
  setup.cache->release(ExpertId{2});
  setup.cache->release(ExpertId{0});
}

TEST(ExpertCache, FillTakesFreeSlotsOnlyAndReportsFailure) {
  CacheSetup setup({.experts_per_layer = {0, 4, 4}}, 6, {.seed = 6});
  int last = 0;
  ASSERT_TRUE(setup.cache
                  ->fill_and_wait([&](int done, int slots) {
                    EXPECT_GE(done, last);
                    EXPECT_EQ(slots, 6);
                    last = done;
                    return true;
                  })
                  .ok());
  EXPECT_EQ(last, 6);
  EXPECT_EQ(setup.residents(), 6);
  EXPECT_EQ(setup.cache->stats()[1].evictions + setup.cache->stats()[2].evictions, 0);

  CacheSetup broken({.experts_per_layer = {6}}, 4, {.seed = 6});
  broken.queue.break_extent(broken.experts.layout().layers[0].experts[1][1]);
  EXPECT_FALSE(broken.cache->fill_and_wait({}).ok());
  broken.cache->check_invariants();
  broken.queue.mend();
  broken.let_reads_finish();
  EXPECT_TRUE(broken.cache->fill_and_wait({}).ok());
  EXPECT_EQ(broken.residents(), 4);

  CacheSetup stopped({.experts_per_layer = {6}}, 6, {.seed = 6});
  EXPECT_EQ(stopped.cache->fill_and_wait([](int done, int) { return done < 2; }).kind(), StatusKind::kInterrupted);
  stopped.let_reads_finish();
  stopped.cache->check_invariants();
  EXPECT_LT(stopped.residents(), 6);
}

// Whatever was prefetched, a demand waits for at most the background's share of the link and for itself.
TEST(ExpertCache, DemandOvertakesBackgroundReads) {
  constexpr uint64_t kLimit = 2 * kReadPieceBytes;
  constexpr double kBytesPerSecond = 1e9;
  constexpr int64_t kLatency = 100'000;
  for (const bool fill : {false, true}) {
    for (const bool in_flight : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "fill " << fill << ", in flight " << in_flight);
      CacheSetup setup({.experts_per_layer = {12}, .n_embd = 256, .n_ff = 600}, 12,
                       {.seed = 7, .latency_ns = kLatency, .bytes_per_s = kBytesPerSecond});
      setup.cache->set_background_limit(kLimit);
      if (fill) setup.cache->fill();
      for (int e = 0; e < 8; ++e) setup.cache->prefetch({LayerId{0}, ExpertId{e}});
      const std::vector<ExpertId> wanted{ExpertId{in_flight ? 7 : 11}};
      const int64_t start = setup.clock.now_ns();
      setup.cache->demand(LayerId{0}, wanted);
      ASSERT_TRUE(setup.cache->wait_for(wanted[0]).ok());
      const int64_t took = setup.clock.now_ns() - start;
      EXPECT_EQ(setup.cache->stats()[0].in_flight_hits, in_flight ? 1 : 0);
      const auto own = static_cast<double>(ExpertCache::slot_bytes(setup.experts.layout()));
      const double bound = (static_cast<double>(kLimit) + own) / kBytesPerSecond * 1e9 + 1.5 * kLatency;
      EXPECT_LE(static_cast<double>(took), bound);
      EXPECT_EQ(setup.cache->stats()[0].stall_ns, took);
      setup.cache->release(wanted[0]);
    }
  }
}

// A prefetch neither drives out what another read ahead nor anything pinned.
TEST(ExpertCache, PrefetchIsAHint) {
  CacheSetup setup({.experts_per_layer = {8, 8}}, 3, {.seed = 8});
  for (int e = 0; e < 3; ++e) setup.cache->prefetch({LayerId{1}, ExpertId{e}});
  setup.let_reads_finish();
  setup.cache->prefetch({LayerId{1}, ExpertId{5}});
  setup.let_reads_finish();
  for (int e = 0; e < 3; ++e) EXPECT_TRUE(setup.cache->resident({LayerId{1}, ExpertId{e}}));
  // A demand may take them, but no more than it needs.
  const std::vector<ExpertId> wanted{ExpertId{0}};
  setup.cache->demand(LayerId{0}, wanted);
  ASSERT_TRUE(setup.cache->wait_for(ExpertId{0}).ok());
  EXPECT_EQ(setup.residents(), 3);
  setup.cache->prefetch({LayerId{1}, ExpertId{6}});
  setup.let_reads_finish();
  EXPECT_TRUE(setup.cache->resident({LayerId{0}, ExpertId{0}}));
  EXPECT_FALSE(setup.cache->resident({LayerId{1}, ExpertId{6}}));
  setup.cache->release(ExpertId{0});
  setup.cache->prefetch({LayerId{1}, ExpertId{6}});
  setup.let_reads_finish();
  EXPECT_TRUE(setup.cache->resident({LayerId{1}, ExpertId{6}}));
}

// Destroying the cache while reads are under way must not leave them writing into its memory.
TEST(ExpertCache, DestructionDrainsReads) {
  CacheSetup setup({.experts_per_layer = {8, 8}}, 6, {.seed = 9});
  setup.cache->fill();
  setup.cache->prefetch({LayerId{1}, ExpertId{2}});
  const std::vector<ExpertId> wanted{ExpertId{7}, ExpertId{3}};
  setup.cache->demand(LayerId{0}, wanted);
  setup.cache->abandon();
  setup.cache->demand(LayerId{0}, wanted);
  EXPECT_GT(setup.queue.in_flight(), 0U);
  setup.cache.reset();
  EXPECT_EQ(setup.queue.in_flight(), 0U);
}

}  // namespace
}  // namespace drafthorse
