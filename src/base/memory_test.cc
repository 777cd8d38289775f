#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/arena.h"
#include "base/host_memory.h"
#include "base/ledger.h"
#include "base/units.h"

namespace drafthorse {
namespace {

namespace fs = std::filesystem;

class FakeHost : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / fs::path("drafthorse_host_" + std::to_string(getpid()));
    write("proc/meminfo", "MemTotal: 9999999 kB\nMemAvailable:    8388608 kB\n");
    write("proc/self/status", "VmRSS:\t   1024 kB\n");
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  uint64_t available() { return available_memory_bytes(root_ / "proc", root_ / "cgroup"); }

  fs::path root_;
};

TEST_F(FakeHost, WithoutGroupsItIsMemAvailableAndOurs) {
  write("proc/self/cgroup", "0::/\n");
  EXPECT_EQ(available(), 8 * kGiB + kMiB);
}

TEST_F(FakeHost, TheTightestAncestorOfAVersion2GroupCounts) {
  write("proc/self/cgroup", "0::/a/b\n");
  write("cgroup/a/memory.max", "2147483648\n");
  write("cgroup/a/memory.current", "1073741824\n");
  write("cgroup/a/memory.stat", "anon 5\ninactive_file 536870912\n");
  write("cgroup/a/b/memory.max", "max\n");
  write("cgroup/a/b/memory.current", "1000\n");
  EXPECT_EQ(available(), 2 * kGiB - kGiB + kGiB / 2 + kMiB);
}

TEST_F(FakeHost, Version1Too) {
  write("proc/self/cgroup", "4:cpu:/\n3:hugetlb,memory:/x\n0::/\n");
  write("cgroup/memory/x/memory.limit_in_bytes", "1073741824\n");
  write("cgroup/memory/x/memory.usage_in_bytes", "104857600\n");
  write("cgroup/memory/x/memory.stat", "total_inactive_file 0\n");
  write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("cgroup/memory/memory.usage_in_bytes", "104857600\n");
  EXPECT_EQ(available(), kGiB - 100 * kMiB + kMiB);
}

TEST(Arena, IsAlignedAndWritable) {
  Result<Arena> arena = Arena::reserve(3 * kMiB);
  ASSERT_TRUE(arena.ok());
  EXPECT_EQ(arena->bytes(), 4 * kMiB);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(arena->data()) % kHugePage, 0U);
  arena->data()[0] = std::byte{1};
  arena->data()[arena->bytes() - 1] = std::byte{2};
  const Arena moved = std::move(arena).value();
  EXPECT_EQ(moved.data()[0], std::byte{1});
}

TEST(MemoryLedger, AddsByTag) {
  MemoryLedger ledger;
  ledger.add("kv", 10);
  ledger.add("slots", 5);
  ledger.add("kv", 1);
  EXPECT_EQ(ledger.total(), 16U);
  EXPECT_EQ(ledger.bytes("kv"), 11U);
  EXPECT_EQ(ledger.bytes("none"), 0U);
  ASSERT_EQ(ledger.entries().size(), 2U);
  EXPECT_EQ(ledger.entries()[0].tag, "kv");
}

}  // namespace
}  // namespace drafthorse
