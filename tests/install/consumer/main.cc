// A program of another project: opens a model through the installed library and makes one token.
#include <cstdio>

#include "engine/session.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  drafthorse::EngineOptions options;
  options.target_path = argv[1];
  auto engine = drafthorse::Engine::open(options, {});
  if (!engine.ok()) {
    std::fprintf(stderr, "%s\n", engine.status().message().c_str());
    return 1;
  }
  drafthorse::Session session(**engine);
  if (!session.prefill((*engine)->tokenizer().tokenize("hello")).ok()) return 1;
  const auto tokens = session.decode_step();
  return tokens.ok() && tokens->size() == 1 ? 0 : 1;
}
