"""Sampling, grammars and stop texts from the command line."""

import json

from support import PROMPT, CliTestCase, Setup, run

USAGE, FILE = 2, 3


def drafts():
    """Ways to draft, none first."""
    return [[], *(["-d", Setup.draft(), "--draft-depth", depth] for depth in ("0", "1", "4", "8", "auto"))]


class Seeds(CliTestCase):
    def test_same_seed_same_text_whatever_drafts(self):
        for flags in (["--temp", "0.8"], ["--temp", "1", "--top-k", "40", "--top-p", "0.9", "--min-p", "0.05"]):
            flags = ["-n", "100", "--seed", "7", *flags]
            reference = run("-p", PROMPT, *flags)
            self.assert_fine(reference)
            for draft in drafts():
                self.assertEqual(run("-p", PROMPT, *flags, *draft).out, reference.out, draft)
            other = run("-p", PROMPT, *flags[:2], "--seed", "8", *flags[4:])
            self.assertNotEqual(other.out, reference.out)

    def test_seed_is_told_and_gives_the_text_again(self):
        first = run("-p", PROMPT, "-n", "60", "--temp", "1")
        self.assert_fine(first)
        line = next(line for line in first.err.splitlines() if "seed" in line)
        seed = line.split("seed ")[1].split(",")[0]
        self.assertEqual(run("-p", PROMPT, "-n", "60", "--temp", "1", "--seed", seed).out, first.out)
        self.assertNotEqual(run("-p", PROMPT, "-n", "60", "--temp", "1").out, first.out)

    def test_greedy_needs_no_seed_and_is_the_default(self):
        reference = run("-p", PROMPT, "-n", "40")
        self.assertNotIn("seed", reference.err)
        for flags in (["--temp", "0"], ["--temp", "1", "--top-k", "1"], ["--seed", "5"], ["--accept", "rejection"]):
            self.assertEqual(run("-p", PROMPT, "-n", "40", *flags).out, reference.out, flags)

    def test_rejection_runs_and_says_what_it_depends_on(self):
        flags = ["-n", "100", "--temp", "1", "--seed", "3", "--accept", "rejection", "-d", Setup.draft()]
        first = run("-p", PROMPT, *flags, "--draft-depth", "4")
        self.assert_fine(first)
        self.assertIn("another draft or depth gives another text", first.err)
        self.assertEqual(run("-p", PROMPT, *flags, "--draft-depth", "4").out, first.out)

    def test_statistics_name_what_was_used(self):
        path = self.folder / "stats.json"
        self.addCleanup(path.unlink, missing_ok=True)
        self.assert_fine(run("-p", PROMPT, "-n", "4", "--temp", "0.5", "--top-k", "9", "--stats-file", path))
        sampling = json.loads(path.read_text())["sampling"]
        self.assertEqual((sampling["temperature"], sampling["top_k"], sampling["accept"]), (0.5, 9, "noise"))
        self.assertGreater(sampling["seed"], 0)


class Grammars(CliTestCase):
    def test_json_is_json(self):
        complete = 0
        for seed in range(12):
            result = run("-p", "settings = ", "-n", "120", "--json", "--temp", "1.2", "--seed", seed)
            self.assert_fine(result)
            self.assertIn(result.out[:1], (b"{", b"["))
            if "120 tokens" not in result.err:  # it ended by itself
                complete += 1
                json.loads(result.out)
        self.assertGreater(complete, 0)

    def test_json_is_the_same_whatever_drafts(self):
        flags = ["-n", "60", "--json", "--temp", "0.9", "--seed", "4"]
        reference = run("-p", PROMPT, *flags)
        for draft in drafts():
            self.assertEqual(run("-p", PROMPT, *flags, *draft).out, reference.out, draft)

    def test_grammar_from_a_file(self):
        path = self.write("choice.gbnf", b'root ::= "yes" | "no, " [0-9]{1,9} "!"\n')
        result = run("-p", PROMPT, "--grammar", path)
        self.assert_fine(result)
        self.assertRegex(result.out, rb"^(yes|no, [0-9]{1,9}!)$")

    def test_what_is_no_grammar(self):
        self.assert_refused(run("-p", "x", "--grammar", self.folder / "none"), FILE, self.folder / "none")
        self.assert_refused(run("-p", "x", "--grammar", self.folder), FILE, self.folder)
        for text in (b"root", b"root ::= (", b"root ::= nowhere", b"other ::= \"a\"", b"root ::= root", b"\xff", b" "):
            path = self.write("broken.gbnf", text)
            self.assert_refused(run("-p", "x", "--grammar", path), USAGE, "grammar")


class Stops(CliTestCase):
    def setUp(self):
        self.reference = run("-p", PROMPT, "-n", "80").out
        self.assertIn(b"PipeHandle", self.reference)

    def test_ends_before_the_text(self):
        for stop in ("PipeHandle", "import", "\n", "ing import Pi", "dle\n"):
            expected = self.reference.split(stop.encode())[0]
            for draft in drafts():
                result = run("-p", PROMPT, "-n", "80", "--stop", stop, *draft)
                self.assert_fine(result)
                self.assertEqual(result.out, expected, (stop, draft))

    def test_several_and_none_that_comes(self):
        result = run("-p", PROMPT, "-n", "80", "--stop", "nowhere", "--stop", "PipeHandle", "--stop", "a1")
        self.assertEqual(result.out, self.reference.split(b"PipeHandle")[0])
        self.assertEqual(run("-p", PROMPT, "-n", "80", "--stop", "nowhere").out, self.reference)

    def test_what_may_begin_a_stop_is_written_in_the_end(self):
        # All the text is held back at some time, and is there when the tokens run out.
        for tokens in (5, 9, 20):
            plain = run("-p", PROMPT, "-n", tokens).out
            stop = plain.decode()[-3:] + "nothing"
            self.assertEqual(run("-p", PROMPT, "-n", tokens, "--stop", stop).out, plain)

    def test_statistics_say_so(self):
        path = self.folder / "stats.json"
        self.addCleanup(path.unlink, missing_ok=True)
        run("-p", PROMPT, "-n", "80", "--stop", "PipeHandle", "--stats-file", path)
        self.assertEqual(json.loads(path.read_text())["stop"], "stop text")

    def test_ignoring_the_end(self):
        ended = run("-p", "x", "--temp", "1.5", "--seed", "2", "--ctx", "256", "--ignore-eos")
        self.assert_fine(ended)
        self.assertIn("context of 256 tokens is full", ended.err)
