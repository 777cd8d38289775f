"""The prompt is taken literally wherever it comes from, and standard output holds nothing but the text."""

import os

from support import PROMPT, CliTestCase, Setup, least_budget, run

# Each must survive the shell's, the flag parser's and our own hands as it stands.
LITERAL = [
    "x", "-x", "-1", "--", "--help", "-m", "--prompt=x", "-", "=a", "a=b", "%", "%%", "{}", "[]", "[1,2]", "{a,b}",
    '"quoted"', "'quoted'", "`x`", "$HOME", "\\n", "\\", "\\u0041", "a,b", "x;y", "#c", "!", "~", "*", "a\nb\n", "\n",
    "\r\n", " ", "\t", " lead", "trail ", "é", "日本語", "😀", "<|endoftext|>", "<s>", "[INST]", "b'x'", "+", "@x",
]  # fmt: skip


class Literal(CliTestCase):
    def three_ways(self, text, *flags):
        """The run with the text by -p; asserts that -f and standard input do the same."""
        by_flag = run("-p", text, *flags)
        path = self.write("prompt.txt", text.encode())
        for other in (run("-f", path, *flags), run(*flags, stdin=text.encode())):
            self.assertEqual((other.code, other.out), (by_flag.code, by_flag.out), text)
        return by_flag

    def test_characters_of_every_kind(self):
        for text in LITERAL:
            with self.subTest(text=text):
                self.assert_fine(self.three_ways(text, "-n", "8"))
                self.assertEqual(run(f"--prompt={text}", "-n", "8").out, run("-p", text, "-n", "8").out)

    def test_empty_prompt_begins_a_text(self):
        result = self.three_ways("", "-n", "8")
        self.assert_fine(result)
        self.assertNotEqual(result.out, b"")

    def test_last_newline_counts(self):
        self.assertNotEqual(run("-p", "def f():", "-n", "8").out, run("-p", "def f():\n", "-n", "8").out)

    def test_any_bytes(self):
        for text in (b"\xff\xfe\x00\x01", b"a\0b", bytes(range(256)), b"\xe6\x97", b"\xed\xa0\x80"):
            from_stdin = run("-n", "8", stdin=text)
            self.assert_fine(from_stdin)
            self.assertEqual(run("-n", "8", "-f", self.write("bytes", text)).out, from_stdin.out, text)

    def test_special_token_text_is_plain_text(self):
        # As a token of its own the text would be a single token, and the run's summary would say so.
        self.assertNotRegex(run("-p", "<|endoftext|>", "-n", "1").err, r"prompt [12] tokens")

    def test_file_that_is_a_pipe(self):
        # As in: drafthorse run -f <(generate a prompt)
        reading, writing = os.pipe()
        os.write(writing, PROMPT.encode())
        os.close(writing)
        result = run("-f", f"/dev/fd/{reading}", "-n", "8", pass_fds=[reading])
        os.close(reading)
        self.assert_fine(result)
        self.assertEqual(result.out, run("-p", PROMPT, "-n", "8").out)


class Text(CliTestCase):
    def test_output_is_the_text_alone(self):
        result = run("-p", PROMPT, "-n", "40")
        self.assert_fine(result)
        self.assertFalse(result.out.startswith(PROMPT.encode()))
        drafted = ["-d", Setup.draft()]
        small = ["--ram", least_budget()]
        ways = [
            drafted,
            [*drafted, "--draft-depth", "3"],
            ["--threads", "1"],
            ["--io", "pread"],
            ["--temp", "0"],
            small,
        ]
        for flags in (["--stats"], *ways):
            self.assertEqual(run("-p", PROMPT, "-n", "40", *flags).out, result.out, flags)

    def test_no_control_sequences_without_a_terminal(self):
        self.assertNotIn("\033", run("-p", PROMPT, "-n", "40", "--stats").err)
        self.assertNotIn("\r", run("-p", PROMPT, "-n", "40", "--stats").err)

    def test_number_of_tokens(self):
        longer = run("-p", PROMPT, "-n", "20")
        shorter = run("-p", PROMPT, "-n", "7")
        for flags in ([], ["-d", Setup.draft()], ["-d", Setup.draft(), "--draft-depth", "16"]):
            result = run("-p", PROMPT, "-n", "7", *flags)
            self.assert_fine(result)
            self.assertEqual(result.out, shorter.out)
            self.assertRegex(result.err, r"(?m)^7 tokens, ")
        self.assertTrue(longer.out.startswith(shorter.out))

    def test_no_tokens(self):
        for flags in ([], ["-d", Setup.draft()]):
            result = run("-p", PROMPT, "-n", "0", *flags)
            self.assert_fine(result)
            self.assertEqual(result.out, b"")

    def test_full_context_says_so(self):
        endless = run("-p", PROMPT, "--ctx", "64")
        self.assert_fine(endless)
        self.assertEqual(len([note for note in endless.notices() if "context of 64 tokens is full" in note]), 1)
        for flags in (["-d", Setup.draft()], ["-d", Setup.draft(), "--draft-depth", "64"]):
            self.assertEqual(run("-p", PROMPT, "--ctx", "64", *flags).out, endless.out)
        stopped = run("-p", PROMPT, "--ctx", "64", "-n", "8")
        self.assertFalse([note for note in stopped.notices() if "full" in note])

    def test_every_length_of_context(self):
        for context in range(9, 25):
            reference = run("-p", PROMPT, "--ctx", context)
            self.assert_fine(reference)
            drafted = run("-p", PROMPT, "--ctx", context, "-d", Setup.draft(), "--draft-depth", "5")
            self.assert_fine(drafted)
            self.assertEqual(drafted.out, reference.out, context)

    def test_context_beyond_training_is_lowered_once(self):
        result = run("-p", PROMPT, "-n", "4", "--ctx", "100000", "-d", Setup.draft())
        self.assert_fine(result)
        self.assertEqual(len([note for note in result.notices() if "lowered" in note]), 1, result)
