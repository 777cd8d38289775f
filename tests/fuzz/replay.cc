// Runs a fuzz target over files, and over the beginnings of them: replay FILE-OR-FOLDER... So the ordinary suite, on
// any compiler, runs every seed and all that was ever found.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "fuzz/target.h"

namespace {

constexpr size_t kPieces = 16;

int run(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  for (size_t piece = 0; piece <= kPieces; ++piece) {
    // A copy of the exact size: reading past the end is noticed.
    const std::vector<uint8_t> part(bytes.begin(),
                                    bytes.begin() + static_cast<std::ptrdiff_t>(bytes.size() * piece / kPieces));
    LLVMFuzzerTestOneInput(part.data(), part.size());
  }
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  int files = 0;
  for (int i = 1; i < argc; ++i) {
    if (!std::filesystem::is_directory(argv[i])) {
      files += run(argv[i]);
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) files += run(entry.path());
  }
  std::printf("%d files\n", files);
  return files > 0 ? 0 : 1;
}
