// Chats: what the model is given to read, and how much of it is read again.
#include "engine/conversation.h"

#include <gtest/gtest.h>

#include "end_to_end/generation.h"
#include "support/temp_dir.h"
#include "support/tiny_model.h"

namespace drafthorse {
namespace {

using Tokens = std::vector<int32_t>;

constexpr const char* kChatMl = "{% for message in messages %}{{'<|im_start|>' + message['role']}}{% endfor %}";

class Chats : public testing::Test {
 protected:
  std::unique_ptr<Engine> open(const std::string& chat_template) {
    TinyModelOptions model = {.n_layer = 2, .n_ff = 256, .tied_head = false};
    model.chat_template = chat_template;
    const std::string path = folder_.file("chat.gguf");
    EXPECT_TRUE(write_tiny_model(path, model).ok());
    EngineOptions options;
    options.target_path = path;
    options.ram_bytes = uint64_t{1} << 30;
    options.threads = 1;
    Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    return std::move(engine).value();
  }

  // The answer's text; stops after `tokens`.
  std::string answer(Session& session, const Tokens& prompt, int64_t tokens) {
    session.set_token_limit(tokens);
    EXPECT_TRUE(session.prefill(prompt).ok());
    std::string text;
    while (session.stop_reason() == StopReason::kNone) {
      EXPECT_TRUE(session.decode_step().ok());
      text += session.take_text();
    }
    return text;
  }

  const TempDir folder_;
};

std::string text_of(const Engine& engine, const Tokens& tokens) {
  std::string text;
  for (const int32_t token : tokens) text += engine.tokenizer().piece(token);
  return text;
}

TEST_F(Chats, TheModelsOwnTemplateIsUsed) {
  const std::unique_ptr<Engine> engine = open(kChatMl);
  EXPECT_EQ(engine->tokenizer().chat_template(), kChatMl);
  EXPECT_EQ(open("")->tokenizer().chat_template(), "");
  Result<ChatTemplate> chat = ChatTemplate::create(engine->tokenizer().chat_template());
  ASSERT_TRUE(chat.ok());
  Conversation conversation(engine->tokenizer(), *chat, "Be brief.");
  EXPECT_EQ(text_of(*engine, conversation.ask("Hello", {})),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
}

TEST_F(Chats, TurnsAreOnlyReadOnce) {
  const std::unique_ptr<Engine> engine = open(kChatMl);
  for (const std::string& name : {std::string(kChatMl), std::string("llama3"), std::string(ChatTemplate::kPlain)}) {
    Session session(*engine);
    Conversation conversation(engine->tokenizer(), *ChatTemplate::create(name), "Be brief.");
    std::vector<ChatMessage> messages = {{"system", "Be brief."}};
    for (int turn = 0; turn < 5; ++turn) {
      const auto known = static_cast<int64_t>(session.text().size());
      const std::string question = "Question " + std::to_string(turn) + "?";
      const Tokens prompt = conversation.ask(question, session.text());
      messages.push_back({"user", question});
      if (name != "llama3") {  // strips the spaces that these answers begin and end with
        EXPECT_EQ(text_of(*engine, prompt), ChatTemplate::create(name)->render(messages)) << name;
      }
      const std::string text = answer(session, prompt, 9);
      // All but the answer's last token, which nothing had followed yet.
      EXPECT_EQ(session.stats().prompt_tokens_kept, std::max<int64_t>(0, known - 1)) << name << turn;
      conversation.answer(text, true, session.text().size() - prompt.size());
      messages.push_back({"assistant", text});
    }
    // A question taken back leaves the chat as it was.
    conversation.ask("One more?", session.text());
    conversation.withdraw();
    messages.push_back({"user", "Another?"});
    const std::string again = text_of(*engine, conversation.ask("Another?", session.text()));
    if (name != "llama3") {
      EXPECT_EQ(again, ChatTemplate::create(name)->render(messages));
    }
    conversation.withdraw();
    conversation.clear();
    EXPECT_EQ(conversation.messages().size(), 1U);
  }
}

// What is typed must not become a control token, which could end the turn and speak for someone else.
TEST_F(Chats, TypedControlTokensStayText) {
  const std::unique_ptr<Engine> engine = open(kChatMl);
  const std::string spelled = "<|endoftext|>";
  const Tokens special = engine->tokenizer().tokenize_piece(spelled, true);
  ASSERT_EQ(special.size(), 1U);
  for (const std::string& name : {std::string("zephyr"), std::string(ChatTemplate::kPlain)}) {
    Conversation conversation(engine->tokenizer(), *ChatTemplate::create(name), "");
    const Tokens innocent = conversation.ask("x", {});
    conversation.withdraw();
    const Tokens tokens = conversation.ask("x " + spelled + " y", {});
    // As many as the template itself has, and the beginning of the text.
    EXPECT_EQ(std::count(tokens.begin(), tokens.end(), special[0]),
              std::count(innocent.begin(), innocent.end(), special[0]));
    EXPECT_NE(text_of(*engine, tokens).find(spelled), std::string::npos);
  }
}

TEST_F(Chats, OnlyChatsAreLoaded) {
  const std::unique_ptr<Engine> engine = open("");
  Conversation conversation(engine->tokenizer(), ChatTemplate(), "");
  EXPECT_TRUE(conversation.set_messages({{"system", "s"}, {"user", "u"}, {"assistant", "a"}}).ok());
  EXPECT_TRUE(conversation.set_messages({}).ok());
  EXPECT_TRUE(conversation.set_messages({{"system", "s"}}).ok());
  using Messages = std::vector<ChatMessage>;
  for (const Messages& messages : {Messages{{"user", "u"}}, Messages{{"assistant", "a"}, {"user", "u"}},
                                   Messages{{"user", "u"}, {"robot", "r"}}, Messages{{"user", "u"}, {"system", "s"}}}) {
    EXPECT_EQ(conversation.set_messages(messages).kind(), StatusKind::kFile);
  }
}

TEST_F(Chats, TemplatesByNameAndNone) {
  for (const std::string& name : ChatTemplate::names()) EXPECT_TRUE(ChatTemplate::create(name).ok()) << name;
  for (const char* text : {"", "{{ nothing }}", "no such name"}) {
    EXPECT_EQ(ChatTemplate::create(text).status().kind(), StatusKind::kUsage) << text;
  }
  // Longer than any guess at how much a template adds.
  const std::vector<ChatMessage> many(400, {"user", "x"});
  EXPECT_GT(ChatTemplate::create("llama3")->render(many).size(), 400U * 30);
}

}  // namespace
}  // namespace drafthorse
