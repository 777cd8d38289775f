// A device for tests where there is no GPU: ggml's RPC server over the CPU, whose memory its client cannot touch.
//
//   device_server PORT [MEBIBYTES]    serves on the loopback interface, within so much address space
//
// Ends with whoever started it.
#include <ggml-backend.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <string>

int main(int argc, char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (argc < 2) {
    std::fprintf(stderr, "usage: device_server PORT [MEBIBYTES]\n");
    return 2;
  }
  if (argc > 2) {
    const rlim_t bytes = std::strtoull(argv[2], nullptr, 10) << 20;
    const rlimit limit = {bytes, bytes};
    setrlimit(RLIMIT_AS, &limit);
  }
  ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
  ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  using Start = void (*)(const char*, const char*, size_t, size_t, ggml_backend_dev_t*);
  const auto start =
      rpc == nullptr ? nullptr
                     : reinterpret_cast<Start>(ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_start_server"));
  if (start == nullptr || cpu == nullptr) {
    std::fprintf(stderr, "device_server: ggml was built without its RPC backend\n");
    return 1;
  }
  // Where its client writes more than it prints, nobody reads it.
  if (std::freopen("/dev/null", "w", stdout) == nullptr) return 1;
  start(("127.0.0.1:" + std::string(argv[1])).c_str(), nullptr, 1, 1, &cpu);
  return 1;
}
