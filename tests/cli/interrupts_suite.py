"""Ctrl-C ends a run cleanly: exit code 130, the text so far, the statistics."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time

from support import PROMPT, CliTestCase, Setup, command, least_budget, run

INTERRUPTED = 130
SET_PIPE_SIZE = getattr(fcntl, "F_SETPIPE_SZ", 1031)
PIPE_BYTES = 4096
ROOM_BYTES = 512  # of them left for text; the texts here are longer


class Blocked:
    """A long run that can't get ahead of us: its text goes into a pipe that is nearly full from the start."""

    def __init__(self, *flags):
        self.reading, writing = os.pipe()
        fcntl.fcntl(writing, SET_PIPE_SIZE, PIPE_BYTES)
        os.write(writing, bytes(PIPE_BYTES - ROOM_BYTES))
        self.process = subprocess.Popen(
            command("-p", PROMPT, *flags), stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE
        )
        os.close(writing)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        os.close(self.reading)

    def written(self):
        """Bytes of text in the pipe."""
        waiting = fcntl.ioctl(self.reading, termios.FIONREAD, bytes(4))
        return int.from_bytes(waiting, sys.byteorder) - (PIPE_BYTES - ROOM_BYTES)

    def wait_until(self, condition):
        """Looks at the number of bytes written again and again."""
        deadline = time.monotonic() + 60
        while not condition(self.written()):
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.001)

    def read_rest(self):
        """The text, until the run closes its end."""
        everything = b""
        while piece := os.read(self.reading, 65536):
            everything += piece
        return everything[PIPE_BYTES - ROOM_BYTES :]


class CtrlC(CliTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.reference = run("-p", PROMPT)
        cls.stats = cls.folder / "stats.json"

    @classmethod
    def tearDownClass(cls):
        cls.stats.unlink(missing_ok=True)
        super().tearDownClass()

    def test_reference_is_longer_than_the_room(self):
        self.assert_fine(self.reference)
        self.assertGreater(len(self.reference.out), 4 * ROOM_BYTES)

    def check_interrupted(self, *flags):
        self.stats.unlink(missing_ok=True)
        with Blocked("--stats-file", self.stats, *flags) as blocked:
            blocked.wait_until(lambda written: written > 0)
            blocked.process.send_signal(signal.SIGINT)
            text = blocked.read_rest()
            error = blocked.process.stderr.read().decode()
            self.assertEqual(blocked.process.wait(timeout=60), INTERRUPTED, error)
        self.assertTrue(self.reference.out.startswith(text))
        self.assertLess(len(text), len(self.reference.out))
        self.assertRegex(error, r"(?m)^\d+ tokens, ")
        self.assertNotIn("drafthorse: ", error)
        stats = json.loads(self.stats.read_text())
        self.assertEqual(stats["stop"], "interrupted")
        self.assertGreater(stats["generated_tokens"], 0)
        # What was counted is what was written.
        again = run("-p", PROMPT, "-n", stats["generated_tokens"])
        self.assertEqual(again.out, text)

    def test_while_generating(self):
        self.check_interrupted()

    def test_with_a_draft(self):
        self.check_interrupted("-d", Setup.draft())
        self.check_interrupted("-d", Setup.draft(), "--draft-depth", "16")

    def test_with_few_experts(self):
        budget = least_budget()  # 14 to 28 of 64
        self.check_interrupted("--ram", budget)
        self.check_interrupted("--ram", budget, "--io", "pread")

    def test_second_one_ends_at_once(self):
        # Token by token: a burst of drafted ones is written whole or not at all, and may wait with much room left.
        with Blocked("--drafter", "none") as blocked:
            # Too little room for another token: it sits in write().
            blocked.wait_until(lambda written: written > ROOM_BYTES - 32)
            time.sleep(0.3)
            deadline = time.monotonic() + 30
            while blocked.process.poll() is None and time.monotonic() < deadline:
                blocked.process.send_signal(signal.SIGINT)
                time.sleep(0.05)
            self.assertEqual(blocked.process.returncode, -signal.SIGINT)

    def test_at_any_moment(self):
        # Before the model is loaded there is nothing to clean up or to report: the signal may just end the process.
        # A shell shows 130 for both.
        prompt = "word " * 600
        codes = []
        for delay_ms in range(0, 100, 4):
            process = subprocess.Popen(
                command("-p", prompt, "-n", "100"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            time.sleep(delay_ms / 1000)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=60)
            codes.append(process.returncode)
            self.assertIn(process.returncode, (0, INTERRUPTED, -signal.SIGINT), error)
            self.assertNotIn(b"CHECK failed", error)
        print(f"ended by {dict((code, codes.count(code)) for code in sorted(set(codes)))}", end=" ")
