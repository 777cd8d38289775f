#include "io/file_set.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "io/testing/temporary_file.h"

namespace drafthorse {
namespace {

TEST(FileSetTest, KnowsItsFiles) {
  const TemporaryFile a(temporary_path("a"), std::vector<std::byte>(5'000));
  const TemporaryFile b(temporary_path("b"), {});
  const auto files = FileSet::open({a.path(), b.path()});
  ASSERT_TRUE(files.ok()) << files.status().message();
  const FileSet& set = **files;
  EXPECT_EQ(set.size(), 2U);
  EXPECT_EQ(set.path(1), b.path());
  EXPECT_EQ(set.bytes(0), 5'000U);
  EXPECT_EQ(set.bytes(1), 0U);
  EXPECT_GE(set.buffered_fd(0), 0);
  EXPECT_EQ(set.fd(0) != set.buffered_fd(0), set.direct());
}

TEST(FileSetTest, OneFileWithoutDirectReadsTurnsThemOffForAll) {
  const TemporaryFile a(temporary_path("a"), std::vector<std::byte>(5'000));
  const auto files = FileSet::open({a.path(), "/proc/version"});
  ASSERT_TRUE(files.ok()) << files.status().message();
  EXPECT_FALSE((*files)->direct());
  EXPECT_EQ((*files)->fd(0), (*files)->buffered_fd(0));
}

TEST(FileSetTest, SaysWhatCannotBeOpened) {
  for (const std::string& path : {::testing::TempDir() + "no_such_file.gguf", ::testing::TempDir()}) {
    const auto files = FileSet::open({path});
    ASSERT_FALSE(files.ok());
    EXPECT_EQ(files.status().kind(), StatusKind::kFile);
    EXPECT_NE(files.status().message().find(path), std::string::npos) << files.status().message();
  }
}

}  // namespace
}  // namespace drafthorse
