// A device for a test: a child process that serves the CPU as one (device_server.cc), until this is destroyed.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>

#include "backend/device.h"

namespace drafthorse {

class DeviceServerProcess {
 public:
  // mebibytes: of address space it may take; 0: any.
  explicit DeviceServerProcess(int mebibytes = 0) : port_(free_port()) {
    child_ = fork();
    if (child_ == 0) {
      const std::string port = std::to_string(port_);
      const std::string limit = std::to_string(mebibytes);
      execl(DRAFTHORSE_DEVICE_SERVER, DRAFTHORSE_DEVICE_SERVER, port.c_str(),
            mebibytes > 0 ? limit.c_str() : static_cast<const char*>(nullptr), static_cast<const char*>(nullptr));
      _exit(127);
    }
    // It has no way of saying that it is ready but to answer.
    for (int i = 0; i < 200 && !answers(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  ~DeviceServerProcess() {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }
  DeviceServerProcess(const DeviceServerProcess&) = delete;
  DeviceServerProcess& operator=(const DeviceServerProcess&) = delete;

  std::string endpoint() const { return "127.0.0.1:" + std::to_string(port_); }

  // The name of the device behind it.
  std::string device() const {
    const Status added = add_server(endpoint());
    EXPECT_TRUE(added.ok()) << added.message();
    for (const DeviceInfo& info : list_devices()) {
      if (info.description.find(endpoint()) != std::string::npos) return info.name;
    }
    ADD_FAILURE() << "no device at " << endpoint();
    return "";
  }

 private:
  static sockaddr_in loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }
  static int free_port() {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = loopback(0);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
    close(fd);
    return ntohs(address.sin_port);
  }
  bool answers() const {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    const sockaddr_in address = loopback(port_);
    const bool connected = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
    close(fd);
    return connected;
  }

  int port_;
  pid_t child_ = 0;
};

}  // namespace drafthorse
