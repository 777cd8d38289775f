#include "base/units.h"

#include <gtest/gtest.h>

namespace drafthorse {
namespace {

TEST(ParseSize, AcceptsWhatPeopleWrite) {
  EXPECT_EQ(*parse_size("1073741824"), kGiB);
  EXPECT_EQ(*parse_size("1200M"), 1200 * kMiB);
  EXPECT_EQ(*parse_size("1.5G"), 1536 * kMiB);
  EXPECT_EQ(*parse_size("8GiB"), 8 * kGiB);
  EXPECT_EQ(*parse_size("2gb"), 2 * kGiB);
  EXPECT_EQ(*parse_size("64k"), 64 * kKiB);
  EXPECT_EQ(*parse_size("100B"), 100U);
}

TEST(ParseSize, RefusesTheRest) {
  for (const char* text : {"", "G", "-1G", "1.5X", "1Gi", "1e9", "1 G", "1GG", "nan", "inf", "99999999999T", "1Bi"}) {
    const Result<uint64_t> size = parse_size(text);
    ASSERT_FALSE(size.ok()) << text;
    EXPECT_EQ(size.status().kind(), StatusKind::kUsage);
  }
}

TEST(FormatSize, PicksTheUnit) {
  EXPECT_EQ(format_size(512), "512 B");
  EXPECT_EQ(format_size(1536 * kMiB), "1.50 GiB");
  EXPECT_EQ(format_size(3 * kMiB / 2), "1.5 MiB");
}

}  // namespace
}  // namespace drafthorse
