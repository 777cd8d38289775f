#include "backend/device.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "base/units.h"

namespace drafthorse {
namespace {

// Where tensors lie while nothing is allocated: never read, only told apart from nullptr.
constexpr uintptr_t kPlannedBase = uintptr_t{1} << 40;

// ggml's backends may be libraries of their own, which are then loaded on demand.
void find_backends() {
  if (ggml_backend_dev_count() == 0) ggml_backend_load_all();
}

DeviceInfo::Kind kind_of(enum ggml_backend_dev_type type) {
  switch (type) {
    case GGML_BACKEND_DEVICE_TYPE_CPU:
      return DeviceInfo::Kind::kCpu;
    case GGML_BACKEND_DEVICE_TYPE_GPU:
      return DeviceInfo::Kind::kGpu;
    case GGML_BACKEND_DEVICE_TYPE_IGPU:
      return DeviceInfo::Kind::kIntegrated;
    case GGML_BACKEND_DEVICE_TYPE_ACCEL:
      return DeviceInfo::Kind::kAccelerator;
    default:
      return DeviceInfo::Kind::kOther;
  }
}

DeviceInfo describe(ggml_backend_dev_t device) {
  ggml_backend_dev_props props{};
  ggml_backend_dev_get_props(device, &props);
  return {props.name,          props.description,
          kind_of(props.type), props.memory_free,
          props.memory_total,  props.caps.async,
          props.caps.events,   props.caps.host_buffer && ggml_backend_dev_host_buffer_type(device) != nullptr};
}

// ggml itself ends the process where nobody answers.
bool answers(const std::string& host, const std::string& port) {
  addrinfo hints{};
  hints.ai_family = AF_INET;  // as ggml connects
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return false;
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, freeaddrinfo);
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    const int connection = socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, one->ai_protocol);
    if (connection < 0) continue;
    const bool connected = connect(connection, one->ai_addr, one->ai_addrlen) == 0;
    close(connection);
    if (connected) return true;
  }
  return false;
}

std::vector<std::string> names_to_choose() {
  std::vector<std::string> names{std::string(kNoDevice)};
  for (const DeviceInfo& info : list_devices()) {
    if (info.kind != DeviceInfo::Kind::kCpu) names.push_back(info.name);
  }
  return names;
}

}  // namespace

std::string_view kind_name(DeviceInfo::Kind kind) {
  switch (kind) {
    case DeviceInfo::Kind::kCpu:
      return "CPU";
    case DeviceInfo::Kind::kGpu:
      return "GPU";
    case DeviceInfo::Kind::kIntegrated:
      return "integrated GPU";
    case DeviceInfo::Kind::kAccelerator:
      return "accelerator";
    default:
      return "other";
  }
}

std::vector<DeviceInfo> list_devices() {
  find_backends();
  std::vector<DeviceInfo> devices;
  for (size_t i = 0; i < ggml_backend_dev_count(); ++i) devices.push_back(describe(ggml_backend_dev_get(i)));
  return devices;
}

Status add_server(const std::string& endpoint) {
  find_backends();
  const size_t colon = endpoint.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == endpoint.size()) {
    return usage_error(fmt::format("'{}' is not an address: write host:port", endpoint));
  }
  ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
  using AddServer = ggml_backend_reg_t (*)(const char*);
  const auto add =
      rpc == nullptr
          ? nullptr
          : reinterpret_cast<AddServer>(ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server"));
  if (add == nullptr) return usage_error("the installed ggml has no RPC backend: build it with GGML_RPC=ON");
  if (!answers(endpoint.substr(0, colon), endpoint.substr(colon + 1))) {
    return usage_error(fmt::format("{}: no server answers there; start one, or check the address", endpoint));
  }
  ggml_backend_reg_t server = add(endpoint.c_str());
  if (server == nullptr) {
    return usage_error(fmt::format("{}: what answers there is no ggml RPC server of this version", endpoint));
  }
  // The same server is the same object; ggml would list its devices twice.
  for (size_t i = 0; i < ggml_backend_reg_count(); ++i) {
    if (ggml_backend_reg_get(i) == server) return {};
  }
  ggml_backend_register(server);
  return {};
}

std::string choose_device() {
  for (const DeviceInfo& info : list_devices()) {
    if (info.kind == DeviceInfo::Kind::kGpu) return info.name;
  }
  return std::string(kNoDevice);
}

Result<std::unique_ptr<Device>> Device::open(const std::string& name) {
  find_backends();
  ggml_backend_dev_t found = ggml_backend_dev_by_name(name.c_str());
  if (found == nullptr || kind_of(ggml_backend_dev_type(found)) == DeviceInfo::Kind::kCpu) {
    return usage_error(
        fmt::format("'{}' is not a device here; choose from auto, {}", name, fmt::join(names_to_choose(), ", ")));
  }
  std::unique_ptr<Device> device(new Device);
  device->device_ = found;
  device->info_ = describe(found);
  device->memory_type_ = ggml_backend_dev_buffer_type(found);
  device->pinned_type_ = ggml_backend_dev_host_buffer_type(found);
  device->backend_.reset(ggml_backend_dev_init(found, nullptr));
  if (device->backend_ == nullptr) return usage_error(fmt::format("device {} cannot be started", name));
  if (device->info_.async && device->info_.events) {
    device->copied_.reset(ggml_backend_event_new(found));
    if (device->copied_ != nullptr) device->copies_.reset(ggml_backend_dev_init(found, nullptr));
    for (Event& mark : device->marks_) mark.reset(ggml_backend_event_new(found));
  }
  return device;
}

Device::~Device() {
  if (copies_ != nullptr) ggml_backend_synchronize(copies_.get());
  if (backend_ != nullptr) ggml_backend_synchronize(backend_.get());
}

bool Device::supports(const ggml_tensor* op) const { return ggml_backend_dev_supports_op(device_, op); }

uint64_t Device::alignment() const { return ggml_backend_buft_get_alignment(memory_type_); }

Result<Arena> Device::reserve_host(uint64_t bytes) const {
  ggml_backend_buffer_t buffer =
      info_.pinned ? ggml_backend_buft_alloc_buffer(pinned_type_, bytes + kHugePage) : nullptr;
  if (buffer == nullptr) return Arena::reserve(bytes);
  const auto base = reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(buffer));
  return Arena::over(reinterpret_cast<std::byte*>(align_up(base, kHugePage)), bytes,
                     std::shared_ptr<void>(buffer, [](void* owned) {
                       ggml_backend_buffer_free(static_cast<ggml_backend_buffer_t>(owned));
                     }));
}

void Device::compute(ggml_cgraph* graph) {
  const ggml_status status = ggml_backend_graph_compute_async(backend_.get(), graph);
  CHECK(status == GGML_STATUS_SUCCESS);
}

void Device::write(ggml_tensor* tensor, const void* data, uint64_t offset, uint64_t bytes) {
  ggml_backend_tensor_set_async(backend_.get(), tensor, data, offset, bytes);
}

void Device::read(const ggml_tensor* tensor, void* data, uint64_t offset, uint64_t bytes) {
  ggml_backend_tensor_get_async(backend_.get(), tensor, data, offset, bytes);
}

void Device::wait() {
  ggml_backend_synchronize(backend_.get());
  ++waits_;
}

int Device::mark() {
  const int mark = std::exchange(next_mark_, 1 - next_mark_);
  if (marks_[mark] != nullptr) ggml_backend_event_record(marks_[mark].get(), backend_.get());
  return mark;
}

void Device::wait_for(int mark) {
  if (marks_[mark] == nullptr) {
    wait();
    return;
  }
  ggml_backend_event_synchronize(marks_[mark].get());
  ++waits_;
}

void Device::copy(ggml_tensor* tensor, const void* data, uint64_t offset, uint64_t bytes) {
  ggml_backend_tensor_set_async(copies_ != nullptr ? copies_.get() : backend_.get(), tensor, data, offset, bytes);
  copied_bytes_ += bytes;
}

void Device::await_copies() {
  if (copies_ == nullptr) return;
  ggml_backend_event_record(copied_.get(), copies_.get());
  ggml_backend_event_wait(backend_.get(), copied_.get());
}

void Device::wait_for_copies() { ggml_backend_synchronize(copies_ != nullptr ? copies_.get() : backend_.get()); }

void DeviceArena::add(ggml_tensor* tensor) {
  CHECK(!allocated());
  const uint64_t offset = align_up(bytes_, device_->alignment());
  tensor->data = reinterpret_cast<void*>(kPlannedBase + offset);
  tensors_.emplace_back(tensor, offset);
  bytes_ = offset + ggml_backend_buft_get_alloc_size(device_->memory_type(), tensor);
}

Status DeviceArena::allocate(const std::string& what) {
  CHECK(!allocated());
  if (bytes_ == 0) return {};
  const uint64_t most = ggml_backend_buft_get_max_size(device_->memory_type());
  if (bytes_ <= most) buffer_.reset(ggml_backend_buft_alloc_buffer(device_->memory_type(), bytes_));
  if (buffer_ == nullptr) {
    return memory_error(fmt::format(
        "device {} has no {} for {}{}: give a smaller --vram, or free some of its memory", device_->info().name,
        format_size(bytes_), what, bytes_ <= most ? "" : fmt::format(" (at most {} in one piece)", format_size(most))));
  }
  ggml_backend_buffer_clear(buffer_.get(), 0);
  auto* const base = static_cast<std::byte*>(ggml_backend_buffer_get_base(buffer_.get()));
  for (const auto& [tensor, offset] : tensors_) {
    tensor->data = nullptr;
    CHECK(ggml_backend_tensor_alloc(buffer_.get(), tensor, base + offset) == GGML_STATUS_SUCCESS);
  }
  return {};
}

void DeviceArena::place(ggml_tensor* result, const ggml_tensor* place, uint64_t offset) const {
  auto* const address = static_cast<std::byte*>(place->data) + offset;
  CHECK(offset + ggml_nbytes(result) <= ggml_nbytes(place));
  if (!allocated()) {
    result->data = address;
    return;
  }
  CHECK(ggml_backend_tensor_alloc(buffer_.get(), result, address) == GGML_STATUS_SUCCESS);
}

}  // namespace drafthorse
