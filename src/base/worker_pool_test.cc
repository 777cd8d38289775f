#include "base/worker_pool.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace drafthorse {
namespace {

TEST(WorkerPool, CoversEveryIndexOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    WorkerPool pool(threads);
    for (const int64_t total : {0, 1, 2, 7, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64, 5000}) {
        std::vector<int> counts(static_cast<size_t>(total));
        pool.run(total, grain, [&](int64_t begin, int64_t end) {
          ASSERT_LE(end - begin, grain);
          for (int64_t i = begin; i < end; ++i) ++counts[i];
        });
        for (const int count : counts) ASSERT_EQ(count, 1);
      }
    }
  }
}

// Back-to-back jobs that each depend on the one before: a worker late for one must not touch the next.
TEST(WorkerPool, JobsDoNotOverlap) {
  WorkerPool pool(4);
  std::vector<int64_t> values(257, 1);
  for (int round = 0; round < 20000; ++round) {
    const int64_t expected = round + 1;
    pool.run(257, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (values[i] == expected) values[i] = expected + 1;
      }
    });
    if (round % 100 == 0) {
      ASSERT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), 257 * (expected + 1));
    }
  }
  ASSERT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), 257 * 20001);
}

}  // namespace
}  // namespace drafthorse
