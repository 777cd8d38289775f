// For tests of `drafthorse batch`: a line of a job, and a folder with its files.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "batch_input.h"
#include "batch_results.h"

namespace drafthorse::cli {

inline constexpr const char* kModel = "model.gguf";

// A request, with `more` in its body.
inline std::string completion(const std::string& id, const std::string& more = "") {
  return R"({"custom_id":")" + id + R"(","method":"POST","url":"/v1/completions","body":{"model":"m","prompt":"Once")" +
         (more.empty() ? "" : "," + more) + "}}";
}

class BatchFiles : public ::testing::Test {
 protected:
  BatchFiles() {
    std::string name = testing::TempDir() + "batchXXXXXX";
    folder_ = mkdtemp(name.data());
  }
  ~BatchFiles() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name), std::ios::binary) << text;
    return path(name);
  }
  std::string read(const std::string& name) const {
    std::stringstream text;
    text << std::ifstream(path(name), std::ios::binary).rdbuf();
    return text.str();
  }
  std::unique_ptr<BatchInput> input(const std::string& text) const {
    return std::move(BatchInput::open(write("in.jsonl", text), {})).value();
  }
  Result<std::unique_ptr<ResultsFile>> results(const BatchInput& of, ResultsMode mode) const {
    return ResultsFile::open(path("out.jsonl"), mode, of, kModel);
  }

 private:
  std::string folder_;
};

}  // namespace drafthorse::cli
