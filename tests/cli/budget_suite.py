"""Memory stays within --ram, and the text is the same whatever the budget. On a model of 800 MiB."""

import json
import os
import subprocess
import time

from support import CliTestCase, Run, Setup, command, execute, least_budget

PROMPT = "def main(arguments):\n"
TOKENS = 24


def run_measured(arguments):
    """Runs it and returns it with its peak of resident memory in bytes, as the kernel counted it.

    The peak is at least that of this process: the child begins as a copy of it.
    """
    with subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        out, err = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return Run(process.returncode, out, err), usage.ru_maxrss * 1024


class Budget(CliTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.wide = cls.folder / "wide.gguf"
        cls.draft = cls.folder / "wide-q4_0.gguf"
        for path, kind in ((cls.wide, "BF16"), (cls.draft, "Q4_0")):
            flags = ["--embd", "1024", "--ff", "2560", "--type", kind]
            done = execute([Setup.widen, str(Setup.target()), str(path), *flags], timeout=120)
            if done.code != 0:
                cls.tearDownClass()
                raise AssertionError(f"drafthorse-widen: {done}")
        cls.bytes = cls.wide.stat().st_size
        # Long enough for the KV cache and the activations to be touched to their ends.
        cls.long_prompt = cls.folder / "long.txt"
        cls.long_prompt.write_text("for word in words:\n    print(word)\n" * 155)
        cls.texts = {}

    def check(self, budget, *flags):
        """Runs within the budget; asserts that it was kept and that the text is that of the other budgets."""
        stats = self.folder / "stats.json"
        self.addCleanup(stats.unlink, missing_ok=True)
        drafted = " with a draft" if "-d" in flags else ""
        for prompt in (["-p", PROMPT], ["-f", self.long_prompt]):
            flags_of_all = [*prompt, "-n", TOKENS, "--ram", budget, "--stats-file", stats]
            begin = time.monotonic()
            result, peak = run_measured(command(*flags_of_all, *flags, model=self.wide))
            taken = time.monotonic() - begin
            self.assert_fine(result)
            self.assertNotEqual(result.out, b"")
            self.assertEqual(result.out, self.texts.setdefault(prompt[0], result.out))
            print(
                f"\n  {prompt[0]}{drafted}: {peak / budget:.1%} of {budget >> 20} MiB, {taken:.1f} s",
                end=" ",
            )
            self.assertLessEqual(peak, budget)
            # The kernel counts per processor and adds up now and then.
            self.assertLessEqual(json.loads(stats.read_text())["peak_rss_bytes"], peak + (1 << 20))

    def test_shares_of_the_model(self):
        for share in (0.25, 0.5, 1.0):
            self.check(int(self.bytes * share))

    def test_with_a_draft(self):
        self.check(int(self.bytes * 0.6), "-d", self.draft)

    def test_least_that_is_named(self):
        for flags in ([], ["-d", self.draft]):
            self.check(least_budget(*flags, model=self.wide), *flags)
