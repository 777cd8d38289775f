#include "backend/device.h"

#include <ggml-alloc.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "base/units.h"
#include "support/device_server_process.h"

namespace drafthorse {
namespace {

struct Context {
  ggml_context* context = ggml_init({1 << 16, nullptr, true});
  ~Context() { ggml_free(context); }
};

class OnServer : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (server_ == nullptr) server_ = new DeviceServerProcess;
    device_ = std::move(Device::open(server_->device())).value();
  }
  static void TearDownTestSuite() { device_.reset(); }
  static DeviceServerProcess* server_;
  static std::unique_ptr<Device> device_;
};

DeviceServerProcess* OnServer::server_ = nullptr;
std::unique_ptr<Device> OnServer::device_;

TEST(Devices, TheCpuIsListedAndIsNoDevice) {
  const std::vector<DeviceInfo> devices = list_devices();
  ASSERT_FALSE(devices.empty());
  for (const DeviceInfo& info : devices) {
    if (info.kind != DeviceInfo::Kind::kCpu) continue;
    const Status refused = Device::open(info.name).status();
    EXPECT_EQ(refused.kind(), StatusKind::kUsage);
    EXPECT_NE(refused.message().find("choose from auto, cpu"), std::string::npos) << refused.message();
  }
  EXPECT_EQ(Device::open("no such thing").status().kind(), StatusKind::kUsage);
}

TEST(Devices, ServersThatDoNotAnswerAreRefused) {
  for (const char* endpoint : {"", "host", ":50052", "127.0.0.1:", "127.0.0.1:1", "no.such.host.invalid:50052"}) {
    EXPECT_EQ(add_server(endpoint).kind(), StatusKind::kUsage) << endpoint;
  }
}

TEST_F(OnServer, AServerIsListedOnce) {
  const size_t before = list_devices().size();
  EXPECT_EQ(server_->device(), device_->info().name);
  EXPECT_EQ(list_devices().size(), before);
  EXPECT_GT(device_->info().memory_total, 0U);
}

TEST_F(OnServer, MemoryIsPlannedThenTaken) {
  Context context;
  DeviceArena arena(*device_);
  ggml_tensor* a = ggml_new_tensor_1d(context.context, GGML_TYPE_F32, 100);
  ggml_tensor* b = ggml_new_tensor_1d(context.context, GGML_TYPE_F32, 3);
  arena.add(a);
  arena.add(b);
  EXPECT_GE(arena.bytes(), 412U);
  EXPECT_FALSE(arena.allocated());
  EXPECT_NE(a->data, nullptr);
  ASSERT_TRUE(arena.allocate("a test").ok());
  std::vector<float> read(3, 1.0F);
  device_->read(b, read.data(), 0, 12);
  device_->wait();
  EXPECT_EQ(read, std::vector<float>(3, 0.0F));
}

TEST_F(OnServer, MoreThanThereIsIsAMessage) {
  Context context;
  DeviceArena arena(*device_);
  arena.add(ggml_new_tensor_1d(context.context, GGML_TYPE_F32, int64_t{1} << 50));
  const Status refused = arena.allocate("a test");
  EXPECT_EQ(refused.kind(), StatusKind::kMemory);
  EXPECT_NE(refused.message().find("a test"), std::string::npos);
}

// Writes, copies beside and what is computed see each other in the order that was asked for, many times over.
TEST_F(OnServer, OrderIsKept) {
  constexpr int64_t kCount = 1 << 14;
  Context context;
  DeviceArena arena(*device_);
  ggml_tensor* written = ggml_new_tensor_1d(context.context, GGML_TYPE_F32, kCount);
  ggml_tensor* copied = ggml_new_tensor_1d(context.context, GGML_TYPE_F32, kCount);
  ggml_tensor* result = ggml_new_tensor_1d(context.context, GGML_TYPE_F32, kCount);
  for (ggml_tensor* tensor : {written, copied, result}) arena.add(tensor);
  ASSERT_TRUE(arena.allocate("a test").ok());
  ggml_tensor* sum = ggml_add(context.context, written, copied);
  arena.place(sum, result);
  ggml_cgraph* graph = ggml_new_graph_custom(context.context, 8, false);
  ggml_build_forward_expand(graph, sum);
  EXPECT_TRUE(device_->supports(sum));
  for (int round = 0; round < 50; ++round) {
    std::vector<float> a(kCount);
    std::iota(a.begin(), a.end(), static_cast<float>(round));
    const std::vector<float> b(kCount, static_cast<float>(1000 * round));
    std::vector<float> got(kCount);
    device_->write(written, a.data(), 0, kCount * sizeof(float));
    device_->copy(copied, b.data(), 0, kCount * sizeof(float));
    device_->await_copies();
    device_->compute(graph);
    device_->read(result, got.data(), 0, kCount * sizeof(float));
    device_->wait();
    for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], a[i] + b[i]) << round;
  }
}

}  // namespace
}  // namespace drafthorse
