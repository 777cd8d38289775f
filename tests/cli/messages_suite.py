"""Whatever is wrong with flags and files ends with the right exit code and one sentence."""

import os
import shutil
import unittest

import gguf_layout
from support import PROMPT, CliTestCase, Setup, command, execute, least_budget, run, without_file_privileges

FAILED, USAGE, FILE, MEMORY = 1, 2, 3, 4


class Flags(CliTestCase):
    def test_no_model(self):
        self.assert_refused(execute([Setup.binary, "run", "-p", "x"]), USAGE, "no model", "-m FILE")

    def test_no_command(self):
        self.assert_refused(execute([Setup.binary]), USAGE)
        self.assert_refused(execute([Setup.binary, "fly"]), USAGE)

    def test_help_and_version(self):
        for flags in (["--help"], ["run", "--help"], ["--version"]):
            result = execute([Setup.binary, *flags])
            self.assert_fine(result)
            self.assertNotEqual(result.out, b"")
            self.assertEqual(result.err, "")

    def test_values_that_make_no_sense(self):
        cases = {
            "--ram": ["12Q", "-5", "x", "1..5G", "G", "1e3M", "99999999999T", ""],
            "--draft-depth": ["-1", "65", "x", "4x", ""],
            "--temp": ["-1", "nan", "hot", "1000", ""],
            "--top-k": ["-1", "x", "1.5", ""],
            "--top-p": ["0", "-0.1", "1.01", "nan", "x", ""],
            "--min-p": ["-0.1", "1.01", "nan", "x", ""],
            "--repeat-penalty": ["0", "-1", "nan", "x", ""],
            "--repeat-last-n": ["-1", "x", ""],
            "--seed": ["-1", "x", "1.5", "99999999999999999999999", ""],
            "--accept": ["x", "Noise", ""],
            "--stop": [""],
            "--grammar": [""],
            "--chat-template": ["", "nobody", "/"],
            "--ctx": ["0", "-1", "x", "99999999999", ""],
            "-n": ["-1", "x", "1.5", ""],
            "--threads": ["0", "-1", "x", "100000", ""],
            "--eviction": ["nobody", "LRU", ""],
            "--io": ["nobody", ""],
            "--isa": ["nobody", "AVX2", ""],
            "-d": [""],
            "-f": [""],
            "--stats-file": [""],
        }
        for flag, values in cases.items():
            for value in values:
                with self.subTest(flag=flag, value=value):
                    prompt = [] if flag == "-f" else ["-p", "x"]
                    self.assert_refused(run(*prompt, "-n", "1", flag, value), USAGE)

    def test_values_are_named_in_messages(self):
        self.assert_refused(run("-p", "x", "--ram", "12Q"), USAGE, "12Q")
        self.assert_refused(run("-p", "x", "--eviction", "nobody"), USAGE, "nobody", "list")
        self.assert_refused(run("-p", "x", "--io", "nobody"), USAGE, "nobody", "uring", "pread")
        self.assert_refused(run("-p", "x", "--isa", "nobody"), USAGE, "nobody", "portable")
        self.assert_refused(run("-p", "x", "--draft-depth", "65"), USAGE, "65", "64", "auto")
        self.assert_refused(run("-p", "x", "--temp", "-0.7"), USAGE, "-0.7", "greedy")
        self.assert_refused(run("-p", "x", "--top-p", "1.5"), USAGE, "1.5")
        self.assert_refused(run("-p", "x", "--chat", "--chat-template", "nobody"), USAGE, "nobody", "list")
        self.assert_refused(run("-p", "x", "-n", "-1"), USAGE, "--tokens")

    def test_unknown_and_contradicting_flags(self):
        self.assert_refused(run("-p", "x", "--nope"), USAGE, "--nope")
        self.assert_refused(run("-p", "x", "extra"), USAGE, "extra")
        self.assert_refused(run("-p"), USAGE, "--prompt")
        self.assert_refused(run("-p", "x", "-f", "y"), USAGE, "--prompt", "--file")
        self.assert_refused(run("-p", "x", "--json", "--grammar", "y"), USAGE, "--json", "--grammar")
        self.assert_refused(run("-p", "x", "--json", "--ignore-eos"), USAGE, "--ignore-eos")
        self.assert_refused(run("-p", "x", "--system", "Be brief."), USAGE, "--chat")

    def test_drafters_that_cannot_draft(self):
        self.assert_refused(run("-p", "x", "--drafter", "shared-kv"), USAGE, "shared-kv", "-d")
        self.assert_refused(run("-p", "x", "--drafter", "model"), USAGE, "model", "-d")
        self.assert_refused(
            run("-p", "x", "-d", Setup.draft(), "--drafter", "shared-kv"), USAGE, "experts", "--drafter model"
        )
        self.assert_refused(run("-p", "x", "--drafter", "ngrm"), USAGE, "did you mean ngram?")
        self.assert_refused(
            execute([Setup.binary, "run", "-m", Setup.draft(), "-p", "x", "--drafter", "resident"]), USAGE, "experts"
        )
        listed = run("--drafter", "list").out.decode().split()
        self.assertEqual(listed, ["auto", "model", "shared-kv", "ngram", "resident", "none"])
        result = run("-p", PROMPT, "-n", "2", "-d", Setup.draft(), "--drafter", "ngram")
        self.assert_fine(result)
        self.assertIn("not loaded", result.err)

    def test_depth_without_a_draft(self):
        self.assert_refused(run("-p", "x", "--draft-depth", "3"), USAGE, "-d")

    def test_lists_need_no_model(self):
        evictions = execute([Setup.binary, "run", "--eviction", "list"])
        self.assert_fine(evictions)
        self.assertIn(b"lru", evictions.out.split(b"\n"))
        ways = execute([Setup.binary, "run", "--io", "list"])
        self.assert_fine(ways)
        self.assertEqual(ways.out.split(), [b"uring", b"pread"])
        sets = execute([Setup.binary, "run", "--isa", "list"])
        self.assert_fine(sets)
        self.assertEqual(sets.out.split(b"\n")[0], b"portable")
        for listing in (evictions, ways):
            self.assertEqual(listing.err, "")
            self.assertRegex(listing.out, rb"^([a-z-]+\n)+$")
        self.assertEqual(run("--io", "list").out, ways.out)

    def test_every_listed_value_works(self):
        reference = run("-p", PROMPT, "-n", "8").out
        for flag in ("--eviction", "--io", "--isa"):
            for name in execute([Setup.binary, "run", flag, "list"]).out.decode().split():
                result = run("-p", PROMPT, "-n", "8", flag, name)
                self.assert_fine(result)
                self.assertEqual(result.out, reference, name)


class Prompts(CliTestCase):
    def test_longer_than_the_context(self):
        for flags in ([], ["-d", Setup.draft()]):
            result = run("-p", "word " * 50, "--ctx", "20", *flags)
            self.assert_refused(result, USAGE, "context", "20", "--ctx")

    def test_file(self):
        self.assert_refused(run("-f", self.folder / "missing"), FILE, self.folder / "missing")
        self.assert_refused(run("-f", self.folder), FILE, self.folder)
        locked = self.write("locked.txt", b"x")
        locked.chmod(0)
        self.assert_refused(run("-f", locked, preexec_fn=without_file_privileges), FILE, locked)


class Models(CliTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.data = Setup.target().read_bytes()
        cls.layout = gguf_layout.read_layout(cls.data)

    def refuse(self, path, *said, code=FILE, **options):
        self.assert_refused(run("-p", "x", "-n", "1", model=path, **options), code, *said)
        # The same file is no better as a draft.
        self.assert_refused(run("-p", "x", "-n", "1", "-d", path, **options), code, *said)

    def test_missing(self):
        path = self.folder / "missing.gguf"
        self.refuse(path, path, "check the path")

    def test_directory(self):
        self.refuse(self.folder, self.folder, "not a regular file")

    def test_pipe(self):
        path = self.folder / "pipe"
        os.mkfifo(path)
        self.addCleanup(path.unlink)
        self.refuse(path, path, "not a regular file")

    def test_unreadable(self):
        path = self.write("locked.gguf", self.data)
        path.chmod(0)
        self.refuse(path, path, "permissions", preexec_fn=without_file_privileges)

    def test_empty(self):
        self.refuse(self.write("empty.gguf", b""), "empty.gguf")

    def test_text(self):
        self.refuse(
            self.write("text.gguf", b"This is a text about llamas.\n" * 100), "text.gguf", "not a GGUF file"
        )

    def test_truncated(self):
        table, tensors = self.layout.table_begin, self.layout.table_end
        middle = (tensors + self.layout.data_end) // 2
        cuts = [
            1,
            3,
            4,
            7,
            8,
            15,
            23,
            24,
            100,
            4096,
            table - 1,
            table,
            table + 100,
            tensors - 1,
            tensors,
            tensors + 1,
        ]
        for length in [*cuts, middle, self.layout.data_end - 1]:
            with self.subTest(length=length):
                self.refuse(self.write("cut.gguf", self.data[:length]), "cut.gguf")

    def test_unknown_architecture(self):
        at = self.layout.values["general.architecture"] + 8
        self.assertEqual(self.data[at : at + 5], b"llama")
        path = self.write("llamb.gguf", self.data[:at] + b"llamb" + self.data[at + 5 :])
        self.refuse(path, path, "'llamb'", "llama")

    def test_draft_with_another_vocabulary(self):
        draft = bytearray(Setup.draft().read_bytes())
        layout = gguf_layout.read_layout(draft)
        at, length = gguf_layout.nth_string(draft, layout, "tokenizer.ggml.tokens", 1500)
        draft[at : at + length] = b"~" * length
        path = self.write("foreign.gguf", draft)
        self.assert_fine(run("-p", "x", "-n", "1", model=path))
        self.assert_refused(run("-p", "x", "-d", path), FILE, path, Setup.target(), "1500", "vocabulary")


class Outputs(CliTestCase):
    def test_full_standard_output(self):
        with open("/dev/full", "wb") as full:
            result = execute_to(full.fileno(), command("-p", PROMPT, "-n", "8"))
        self.assertEqual(result.code, FAILED, result)
        self.assert_one_sentence(result)
        self.assertIn("standard output", result.err)

    def test_full_standard_output_for_lists(self):
        with open("/dev/full", "wb") as full:
            result = execute_to(full.fileno(), [Setup.binary, "run", "--io", "list"])
        self.assertEqual(result.code, FAILED, result)
        self.assertIn("standard output", result.err)

    def test_closed_standard_output(self):
        # The next file opened gets the free descriptor: the text must not end up in it.
        stats = self.folder / "stats.json"
        result = run("-p", PROMPT, "-n", "8", "--stats-file", stats, preexec_fn=lambda: os.close(1))
        self.addCleanup(stats.unlink, missing_ok=True)
        self.assertEqual(result.code, FAILED, result)
        self.assertIn("standard output", result.err)
        self.assertEqual(stats.read_bytes() if stats.exists() else b"", b"")

    def test_closed_standard_input_and_error(self):
        reference = run("-p", PROMPT, "-n", "8").out
        result = run("-p", PROMPT, "-n", "8", stdin=None, preexec_fn=lambda: (os.close(0), os.close(2)))
        self.assert_fine(result)
        self.assertEqual(result.out, reference)

    def test_full_standard_error(self):
        # As with a full disk behind 2>log: the text matters more than the remarks.
        reference = run("-p", PROMPT, "-n", "8").out
        with open("/dev/full", "wb") as full:
            result = run("-p", PROMPT, "-n", "8", "--stats", preexec_fn=lambda: os.dup2(full.fileno(), 2))
        self.assert_fine(result)
        self.assertEqual(result.out, reference)

    def test_unwritable_statistics_are_noticed_before_anything_is_generated(self):
        for path in (self.folder / "no" / "stats.json", self.folder):
            self.assert_refused(run("-p", PROMPT, "-n", "8", "--stats-file", path), FILE, path, "statistics")

    def test_full_disk_for_statistics(self):
        result = run("-p", PROMPT, "-n", "8", "--stats-file", "/dev/full")
        self.assertEqual(result.code, FILE, result)
        self.assertRegex(result.err, r"(?m)^drafthorse: /dev/full: .*statistics")


def execute_to(descriptor, arguments):
    """execute() with a file descriptor as standard output."""
    return execute(arguments, preexec_fn=lambda: os.dup2(descriptor, 1), pass_fds=[descriptor])


class Budgets(CliTestCase):
    def least_mib(self, *flags):
        result = run("-p", PROMPT, "-n", "8", "--ram", "1M", *flags)
        self.assert_refused(result, MEMORY, "too small", "the largest part is")
        return least_budget(*flags) >> 20

    def test_least_budget_is_named_and_works(self):
        reference = run("-p", PROMPT, "-n", "8").out
        draft = ["-d", Setup.draft()]
        deep = ["-d", Setup.target(), "--draft-depth", "4"]
        for flags in ([], draft, ["--ctx", "64"], [*draft, "--ctx", "512"], [*draft, "--ctx", "1500"], deep):
            with self.subTest(flags=flags):
                least = self.least_mib(*flags)
                # Again and again: no two processes are of the same size.
                for _ in range(10):
                    result = run("-p", PROMPT, "-n", "8", "--ram", f"{least}M", *flags)
                    self.assert_fine(result)
                    self.assertEqual(result.out, reference)
                self.assert_refused(run("-p", PROMPT, "-n", "8", "--ram", f"{least - 4}M", *flags), MEMORY)

    def test_shorter_context_needs_less(self):
        self.assertLess(self.least_mib("--ctx", "64"), self.least_mib("--ctx", "2048"))


class ReadingWays(CliTestCase):
    """Where files cannot be read directly they are read through the page cache."""

    MEMORY_FILES = "/dev/shm"

    @unittest.skipUnless(os.path.isdir(MEMORY_FILES), "no tmpfs at /dev/shm")
    def test_tmpfs(self):
        reference = run("-p", PROMPT, "-n", "40").out
        copies = [
            f"{self.MEMORY_FILES}/drafthorse-cli-test-{os.getpid()}-{name}.gguf" for name in ("target", "draft")
        ]
        for source, copy in zip((Setup.target(), Setup.draft()), copies):
            self.addCleanup(os.unlink, copy)
            shutil.copyfile(source, copy)
        for way in ("uring", "pread"):
            for flags in ([], ["-d", copies[1]], ["--ram", least_budget()]):
                result = run("-p", PROMPT, "-n", "40", "--io", way, *flags, model=copies[0])
                self.assert_fine(result)
                self.assertEqual(result.out, reference)
                self.assertLessEqual(sum("O_DIRECT" in line for line in result.notices()), 1, result)
