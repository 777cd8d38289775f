"""What all tests of the command line share: running it, and judging what it says."""

import ctypes
import functools
import os
import pathlib
import re
import shutil
import subprocess
import unittest

PROMPT = "def main():\n    "


class Setup:
    """Filled in by cli_test.py from its arguments."""

    binary = ""
    widen = ""
    device_server = ""
    models = pathlib.Path()
    scratch = pathlib.Path()
    copies = 200  # damaged models
    seed = 2024  # of their damage

    # The fine pair's experts outweigh what memory is rounded to: for tests that need memory to be short.
    @classmethod
    def target(cls, pair="mixtral"):
        return cls.models / pair / "target.gguf"

    @classmethod
    def draft(cls, pair="mixtral"):
        return cls.models / pair / "draft.gguf"


class Run:
    """A finished run: exit code (negative: the signal that ended it), both outputs as bytes."""

    def __init__(self, code, out, err):
        self.code = code
        self.out = out
        self.err = err.decode("utf-8", "replace")

    def __str__(self):
        return f"exit code {self.code}\nstdout: {self.out[:300]!r}\nstderr: {self.err[:2000]}"

    def notices(self):
        return [line for line in self.err.splitlines() if line.startswith("note: ")]


def command(*arguments, model=None):
    """`drafthorse run` with the demo target unless told otherwise."""
    return [Setup.binary, "run", "-m", str(model or Setup.target()), *map(str, arguments)]


def execute(arguments, stdin=b"", timeout=60, **options):
    """Runs it to its end. A hang fails the test with subprocess.TimeoutExpired."""
    done = subprocess.run(arguments, input=stdin, capture_output=True, timeout=timeout, check=False, **options)
    return Run(done.returncode, done.stdout, done.stderr)


def run(*arguments, model=None, stdin=b"", **options):
    """execute() of command()."""
    return execute(command(*arguments, model=model), stdin=stdin, **options)


def without_file_privileges():
    """For preexec_fn: even root then obeys the permission bits of files."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    pr_capbset_drop, cap_dac_override, cap_dac_read_search = 24, 1, 2
    for capability in (cap_dac_override, cap_dac_read_search):
        if os.geteuid() == 0 and prctl(pr_capbset_drop, capability, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


@functools.cache
def least_budget(*flags, model=None):
    """The budget named by the refusal of one that is too small, in bytes."""
    refused = run("-p", PROMPT, "--ram", "1M", *flags, model=model)
    if refused.code != 4:
        raise AssertionError(f"1 MiB should be refused: {refused}")
    return int(re.search(r"at least --ram (\d+)M is needed", refused.err).group(1)) << 20


def large_file(folder):
    """A file to measure the disk with, which the caller removes."""
    path = folder / "large.bin"
    path.write_bytes(os.urandom(1 << 20) * 80)
    return path


def measured_machine(folder, types):
    """An environment in which `drafthorse profile` has measured these kernels, for a moment: for tests alone."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    large = large_file(folder)
    done = execute([Setup.binary, "profile", str(large), "--types", types, "--seconds", "0.01"], env=environment, timeout=120)
    large.unlink()
    if done.code != 0:
        raise AssertionError(str(done))
    return environment


class CliTestCase(unittest.TestCase):
    """Assertions about runs, and a folder of its own for each class."""

    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        cls.folder = Setup.scratch / cls.__name__
        shutil.rmtree(cls.folder, ignore_errors=True)  # a run that was killed left it behind
        cls.folder.mkdir(parents=True)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def write(self, name, data):
        """A file in the folder, removed after the test that wrote it."""
        path = self.folder / name
        path.write_bytes(data)
        self.addCleanup(path.unlink, missing_ok=True)
        return path

    def assert_fine(self, result):
        self.assertEqual(result.code, 0, result)
        self.assertNotIn("CHECK failed", result.err)

    def assert_one_sentence(self, result):
        """Standard error is one line, after notices, that a person can read."""
        lines = [line for line in result.err.splitlines() if not line.startswith("note: ")]
        self.assertEqual(len(lines), 1, result)
        self.assertRegex(lines[0], r"^drafthorse: \S", result)
        self.assertLess(len(lines[0].replace(str(Setup.scratch), "")), 300, result)
        self.assertTrue(lines[0].isprintable(), result)
        # One sentence: no full stop but in names, numbers and at the end.
        self.assertNotRegex(re.sub(r"'[^']*'", "", lines[0]), r"\. [A-Z]", result)

    def assert_refused(self, result, code, *said):
        """Nothing generated, this exit code, and one sentence that holds all of `said`."""
        self.assertEqual(result.code, code, result)
        self.assertEqual(result.out, b"", result)
        self.assert_one_sentence(result)
        for words in said:
            self.assertIn(str(words), result.err)
