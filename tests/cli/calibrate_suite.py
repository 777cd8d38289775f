"""`drafthorse calibrate`: what it prints, where it keeps what it fitted, and who finds it there."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

from support import PROMPT, CliTestCase, Setup, execute, run

RUNTIME, USAGE, FILE, MEMORY, INTERRUPTED = 1, 2, 3, 4, 130


def calibrate(*arguments, **options):
    return execute([Setup.binary, "calibrate", *map(str, arguments)], **options)


class Calibrate(CliTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.draft = cls.folder / "draft.gguf"
        shutil.copyfile(Setup.draft(), cls.draft)
        cls.pair = ["-m", Setup.target(), "-d", cls.draft]
        cls.kept = cls.folder / "draft.fitted-to-target.gguf"
        cls.result = calibrate(*cls.pair, "--json")

    def tearDown(self):
        left = [path.name for path in self.folder.iterdir() if path.name.endswith(".new")]
        self.assertEqual(left, [])

    def run_pair(self, *flags, draft=None):
        return run("-d", draft or self.draft, "-p", PROMPT, "-n", "8", "--draft-depth", "2", *flags)

    def test_what_is_reported(self):
        self.assert_fine(self.result)
        self.assertEqual(self.result.err, "")
        report = json.loads(self.result.out)
        self.assertEqual(report["file"], str(self.kept))
        self.assertEqual([layer["layer"] for layer in report["by_layer"]], list(range(8)))
        self.assertGreater(report["fitted_positions"], 3000)
        for layer in report["by_layer"]:
            self.assertGreater(layer["fitted"]["recall"], 0.6)
            self.assertGreater(layer["fitted"]["wide_recall"], layer["fitted"]["recall"])
            self.assertGreater(layer["fitted"]["recall"], layer["frequency"]["recall"] + 0.2)
            self.assertGreater(layer["cross"]["recall"], 0.6)

    def test_is_found_by_run_and_plan(self):
        shown = self.run_pair("--stats")
        self.assert_fine(shown)
        self.assertIn("fitted routers", shown.err)
        self.assertEqual(shown.notices(), [])
        without = self.run_pair("--stats", "--fitted", "none")
        self.assertNotIn("fitted routers", without.err)
        self.assertEqual(without.out, shown.out)
        plan = execute([Setup.binary, "plan", "--json", *map(str, self.pair)])
        self.assertIn("fitted routers", [entry["tag"] for entry in json.loads(plan.out)["memory"]])

    def test_text_of_the_user_and_tables(self):
        text = self.write("text.txt", b"def add(a, b):\n    return a + b\n\n" * 200)
        out = self.folder / "own.gguf"
        self.addCleanup(out.unlink)
        result = calibrate(*self.pair, "-f", text, "--positions", "1000", "-o", out)
        self.assert_fine(result)
        self.assertIn(b"most often used", result.out)
        self.assertIn(b"target's router", result.out)
        self.assert_fine(self.run_pair("--fitted", out, "--predictor", "fitted"))

    def test_prompts_and_writers(self):
        prompts = self.write("prompts.jsonl", b'{"text": "class Stack:"}\n{"text": "def f(x):"}\n')
        out = self.folder / "written.gguf"
        self.addCleanup(out.unlink)
        for writer in ("draft", "target"):
            result = calibrate(*self.pair, "--prompts", prompts, "--writer", writer, "--positions", "800", "-o", out)
            self.assert_fine(result)

    def test_refusals(self):
        missing = self.folder / "missing.gguf"
        self.assert_refused(calibrate("-d", self.draft), USAGE, "-m FILE")
        self.assert_refused(calibrate("-m", Setup.target()), USAGE, "-d FILE")
        self.assert_refused(calibrate("-m", missing, "-d", self.draft), FILE, missing)
        self.assert_refused(calibrate("-m", Setup.draft(), "-d", self.draft), USAGE, "no experts")
        self.assert_refused(calibrate(*self.pair, "-o", self.folder / "no" / "x.gguf"), FILE, "-o")
        self.assert_refused(calibrate(*self.pair, "-f", missing), FILE, missing)
        self.assert_refused(calibrate(*self.pair, "--prompts", missing), FILE, missing)
        bad = self.write("bad.jsonl", b'{"words": "no"}\n')
        self.assert_refused(calibrate(*self.pair, "--prompts", bad), FILE, "line 1")
        short = self.write("short.txt", b"too short")
        self.assert_refused(calibrate(*self.pair, "-f", short), USAGE, "too few")
        self.assert_refused(calibrate(*self.pair, "--ram", "20M"), MEMORY, "too small")
        self.assert_refused(calibrate(*self.pair, "--positions", "3"), USAGE, "positions")
        self.assert_refused(calibrate(*self.pair, "--writer", "me"), USAGE, "writer")
        self.assert_refused(calibrate(*self.pair, "-f", short, "--prompts", bad), USAGE)

    def test_a_stale_file(self):
        other = self.folder / "other.gguf"
        self.addCleanup(other.unlink)
        subprocess.run([Setup.widen, Setup.draft(), other, "--type", "Q8_0"], check=True, capture_output=True)
        refused = self.run_pair("--fitted", self.kept, draft=other)
        self.assert_refused(refused, FILE, "fitted to another draft", "drafthorse calibrate")
        beside = self.folder / "other.fitted-to-target.gguf"
        self.addCleanup(beside.unlink)
        shutil.copyfile(self.kept, beside)
        told = self.run_pair(draft=other)
        self.assert_fine(told)
        self.assertEqual(len(told.notices()), 1)
        self.assertIn("fitted to another draft", told.err)

    def test_damaged_files(self):
        whole = self.kept.read_bytes()
        rng = random.Random(Setup.seed)
        refused = 0
        for number in range(40):
            data = bytearray(whole)
            if number % 4 == 0:
                del data[rng.randrange(len(data)) :]
            else:
                at = rng.randrange(len(data) if number % 4 == 1 else 1000)
                data[at] ^= 1 << rng.randrange(8)
            path = self.write("damaged.gguf", data)
            result = self.run_pair("--fitted", path)
            self.assertIn(result.code, (0, FILE), result)
            if number % 4 == 0:
                self.assertEqual(result.code, FILE)
            if result.code == FILE:
                self.assert_refused(result, FILE, "damaged.gguf")
                refused += 1
        self.assertGreater(refused, 10)

    def test_interrupted(self):
        out = self.folder / "never.gguf"
        process = subprocess.Popen([Setup.binary, "calibrate", *map(str, self.pair), "--positions", "1000000", "-o", str(out)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=20)
        self.assertEqual(process.returncode, INTERRUPTED)
        self.assertEqual(output, b"")
        self.assertIn(b"nothing was kept", error)
        self.assertFalse(os.path.exists(out))
