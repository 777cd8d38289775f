"""Chats: one turn from the command line, and many at a terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import time

from support import CliTestCase, Setup, command, run

USAGE = 2
PROMPT_MARK = b">>> "


class Terminal:
    """A chat at a pseudo-terminal. Standard output is a pipe, so that the model's text can be told from the rest."""

    def __init__(self, *flags, model=None):
        self.ours, theirs = pty.openpty()
        self.seen = b""
        self.process = subprocess.Popen(
            command(*flags, model=model),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: os.close(self.ours),
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(theirs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        os.close(self.ours)

    def wait_for(self, text, timeout=60):
        """What came on the terminal up to and including `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self.seen!r}"
            if select.select([self.ours], [], [], min(left, 1))[0]:
                self.seen += os.read(self.ours, 65536)
        before, self.seen = self.seen.split(text, 1)
        return (before + text).decode("utf-8", "replace").replace("\r", "")

    def type(self, text):
        os.write(self.ours, text.encode())

    def say(self, text):
        """Types a line and waits for the next prompt; what the terminal showed between."""
        self.type(text + "\n")
        return self.wait_for(PROMPT_MARK)

    def end(self):
        """Exit code, and all of the model's text."""
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out


class AtATerminal(CliTestCase):
    def test_turns_keep_what_they_know(self):
        with Terminal("-n", "12") as chat:
            shown = chat.wait_for(PROMPT_MARK)
            self.assertEqual(shown.count("no chat template"), 1)
            chat.say("def main():")
            first = chat.say("/stats")
            again = chat.say("and then?")
            self.assertNotIn("no chat template", again)
            second = chat.say("/stats")
            self.assertRegex(first, r"12 tokens, ")
            self.assertRegex(second, r"12 tokens, .* kept")
            chat.type("/bye\n")
            code, out = chat.end()
            self.assertEqual(code, 0)
            self.assertGreater(len(out), 20)

    def test_save_load_and_clear(self):
        path = self.folder / "chat.json"
        self.addCleanup(path.unlink, missing_ok=True)
        with Terminal("-n", "10", "--system", "Be brief.") as chat:
            chat.wait_for(PROMPT_MARK)
            chat.say("x = 1")
            self.assertIn("3 messages", chat.say(f"/save {path}"))
            saved = json.loads(path.read_text())
            self.assertEqual([one["role"] for one in saved["messages"]], ["system", "user", "assistant"])
            chat.say("y = 2")
            chat.say("/clear")
            self.assertIn("3 messages", chat.say(f"/load {path}"))
            chat.say("y = 2")
            chat.type("\x04")
            code, out = chat.end()
            self.assertEqual(code, 0)
        answers = out.split(b"\n")
        # The same chat goes on the same way after it was loaded.
        with Terminal("-n", "10", "--system", "Be brief.") as chat:
            chat.wait_for(PROMPT_MARK)
            chat.say("x = 1")
            chat.say("y = 2")
            chat.type("/bye\n")
            _, short = chat.end()
        self.assertTrue(out.startswith(short))
        self.assertTrue(out.endswith(short[len(saved["messages"][2]["text"].lstrip().encode()) :].lstrip(b"\n")), answers)

    def test_end_of_input_typed_early(self):
        # Typed before the editor has set the terminal, Ctrl-D reaches it as the driver's mark for it: a NUL.
        for typed in ("\x00", "\x04", "x = 1\n\x04"):
            with self.subTest(typed=typed), Terminal("-n", "5") as chat:
                chat.wait_for(PROMPT_MARK)
                chat.type(typed)
                code, _ = chat.end()
                self.assertEqual(code, 0)

    def test_unusable_files(self):
        broken = [b"", b"{", b"[]", b'{"drafthorse_chat": 1}', b'{"drafthorse_chat": 2, "messages": []}',
                  b'{"drafthorse_chat": 1, "messages": [1]}', b'{"drafthorse_chat": 1, "messages": [{"role": "user"}]}',
                  b'{"drafthorse_chat": 1, "messages": [{"role": "user", "text": "x"}]}',
                  b'{"drafthorse_chat": 1, "messages": [{"role": "robot", "text": "x"}, {"role": "user", "text": ""}]}',
                  b"\xff\xfe", b"null"]  # fmt: skip
        with Terminal() as chat:
            chat.wait_for(PROMPT_MARK)
            self.assertIn("check the path", chat.say(f"/load {self.folder}/missing"))
            self.assertIn("check the path", chat.say(f"/load {self.folder}"))
            self.assertIn("cannot be written", chat.say(f"/save {self.folder}/no/chat"))
            for content in broken:
                path = self.write("broken.json", content)
                self.assertIn("not a chat", chat.say(f"/load {path}"), content)
            self.assertIn("needs a file", chat.say("/load"))
            self.assertIn("/help", chat.say("/nope"))
            self.assertIn("/save FILE", chat.say("/help"))
            self.assertIn("nothing has been answered", chat.say("/stats"))
            chat.type("/bye\n")
            self.assertEqual(chat.end()[0], 0)

    def test_full_context(self):
        with Terminal("--ctx", "96", "--ignore-eos") as chat:
            chat.wait_for(PROMPT_MARK)
            self.assertRegex(chat.say("go on"), r"context of 96 tokens is full.*/clear")
            self.assertRegex(chat.say("more"), r"(?s)tokens, and the context holds 96: /clear")
            chat.say("/clear")
            self.assertRegex(chat.say("go on"), r"context of 96 tokens is full")
            self.assertRegex(chat.say("word " * 200), r"context holds 96")
            chat.type("/bye\n")
            self.assertEqual(chat.end()[0], 0)

    def test_interrupt_stops_the_answer_and_not_the_chat(self):
        with Terminal("--ctx", "2000", "--ignore-eos", "--threads", "1") as chat:
            chat.wait_for(PROMPT_MARK)
            chat.type("go on\n")
            # The pipe takes 64 KiB, more than the text: generation is under way when its first bytes can be read.
            self.assertTrue(select.select([chat.process.stdout], [], [], 60)[0])
            chat.process.send_signal(signal.SIGINT)
            shown = chat.wait_for(PROMPT_MARK)
            self.assertNotIn("full", shown)
            self.assertRegex(chat.say("/stats"), r"\d+ tokens, ")
            # While a line is typed it drops the line. (The editor may draw its prompt more than once.)
            time.sleep(0.5)
            chat.type("half a line")
            time.sleep(0.5)
            chat.seen = b""
            chat.type("\x03")
            self.assertIn("/bye", chat.wait_for(PROMPT_MARK))
            chat.type("/bye\n")
            self.assertEqual(chat.end()[0], 0)

    def test_messages_of_several_lines(self):
        path = self.folder / "lines.json"
        self.addCleanup(path.unlink, missing_ok=True)
        with Terminal("-n", "4") as chat:
            chat.wait_for(PROMPT_MARK)
            chat.type('"""first\n')
            chat.wait_for(b"... ")
            chat.type("second é\n")
            chat.wait_for(b"... ")
            chat.say('third"""')
            chat.say(f"/save {path}")
            chat.type("/bye\n")
            self.assertEqual(chat.end()[0], 0)
        self.assertEqual(json.loads(path.read_text())["messages"][0]["text"], "first\nsecond é\nthird")

    def test_statistics_file_is_for_one_answer(self):
        with Terminal("--stats-file", str(self.folder / "stats.json")) as chat:
            shown = chat.wait_for(b"/stats in the chat")
            self.assertIn("--stats-file", shown)
            self.assertEqual(chat.end()[0], USAGE)


class OneTurn(CliTestCase):
    def test_templates(self):
        for name in ("chatml", "llama2", "mistral-v1", "plain"):
            result = run("--chat", "-p", "def f():", "-n", "8", "--chat-template", name, "--system", "Be brief.")
            self.assert_fine(result)
            self.assertNotIn("no chat template", result.err)
        plain = run("--chat", "-p", "def f():", "-n", "8")
        self.assertIn("no chat template", plain.err)
        self.assertEqual(run("--chat", "-p", "def f():", "-n", "8", "--chat-template", "plain").out, plain.out)
        self.assertEqual(run("-p", "User: def f():\nAssistant:", "-n", "8").out, plain.out)

    def test_template_from_a_file(self):
        path = self.write("template.jinja", b"{{'<|im_start|>' + message['role']}}")
        by_name = run("--chat", "-p", "x", "-n", "8", "--chat-template", "chatml")
        self.assertEqual(run("--chat", "-p", "x", "-n", "8", "--chat-template", path).out, by_name.out)
        unknown = self.write("unknown.jinja", b"{{ something else }}")
        self.assert_refused(run("--chat", "-p", "x", "--chat-template", unknown), USAGE, "list")

    def test_list_needs_no_model(self):
        listing = subprocess.run(
            [Setup.binary, "run", "--chat-template", "list"], capture_output=True, check=True
        ).stdout.split()
        self.assertIn(b"chatml", listing)
        self.assertIn(b"plain", listing)
