"""--trace, --explain and the picture of --stats: what happened, for machines and for people."""

import json
import re

from support import PROMPT, CliTestCase, Setup, least_budget, run

FILE = 3


class Traces(CliTestCase):
    def traced(self, *flags):
        path = self.folder / "trace.json"
        self.addCleanup(path.unlink, missing_ok=True)
        budget = least_budget("-d", str(Setup.draft("fine")), model=Setup.target("fine")) + (4 << 20)
        result = run("-p", PROMPT, "-n", "24", "--ram", budget, "--trace", path, *flags, model=Setup.target("fine"))
        self.assert_fine(result)
        return json.loads(path.read_text(encoding="utf-8"))["traceEvents"], result

    def check_events(self, events):
        # What the format ("Trace Event Format", Chrome) asks of each kind of event.
        needed = {"M": {"pid", "name", "args"}, "X": {"pid", "tid", "name", "ts", "dur"},
                  "b": {"pid", "name", "cat", "id", "ts"}, "e": {"pid", "name", "cat", "id", "ts"},
                  "i": {"pid", "tid", "name", "ts", "s"}}
        threads = {e["tid"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
        for event in events:
            self.assertLessEqual(needed[event["ph"]], set(event))
            self.assertTrue(all(isinstance(event[key], int) for key in ("pid", "tid", "id") if key in event), event)
            self.assertIsInstance(event.get("args", {}), dict)
            self.assertIn(event.get("s", "t"), "gpt")
            if event["ph"] in "Xi":  # reads are no thread's
                self.assertIn(event["tid"], threads)
            self.assertIn(event["ph"], "MXbei")
            self.assertGreaterEqual(event.get("ts", 0), -1e6)
            self.assertGreaterEqual(event.get("dur", 0), 0)
        # What the engine's thread does is nested: neighbours never overlap in part.
        spans = sorted(
            ((e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e["ph"] == "X"),
            key=lambda span: (span[0], -span[1]),
        )
        self.assertTrue(spans)
        enclosing = []
        for begin, end, name in spans:
            while enclosing and enclosing[-1][1] <= begin + 0.0015:
                enclosing.pop()
            if enclosing:
                self.assertLessEqual(end, enclosing[-1][1] + 0.0015, (name, enclosing[-1]))
            enclosing.append((begin, end, name))
        # A read that begins ends, once, and later.
        begun = {e["id"]: e for e in events if e["ph"] == "b"}
        ended = {e["id"]: e for e in events if e["ph"] == "e"}
        self.assertTrue(begun)
        self.assertLessEqual(len(begun) - len(ended), 2)  # a fill may be under way at the end
        self.assertEqual(len(begun), len([e for e in events if e["ph"] == "b"]))
        for identity, event in ended.items():
            self.assertGreaterEqual(event["ts"], begun[identity]["ts"])
            self.assertEqual(event["name"], begun[identity]["name"])

    def test_without_a_draft(self):
        events, _ = self.traced("--drafter", "none")
        self.check_events(events)
        verified = [e for e in events if e["name"] == "verify"]
        self.assertEqual(len(verified), 24)
        layers = [e for e in events if re.fullmatch(r"layer \d", e["name"]) and e["ph"] == "X"]
        self.assertEqual(len(layers), 8 * 25)  # the prompt's pass too
        self.assertTrue(any(e["name"] == "stall" for e in events))

    def test_with_a_draft(self):
        events, _ = self.traced("-d", Setup.draft("fine"), "--draft-depth", "3")
        self.check_events(events)
        self.assertTrue(all(e["args"]["tokens"] <= 3 for e in events if e["name"] == "draft"))
        self.assertTrue(any(e["name"] == "draft" for e in events))

    def test_text_is_the_same(self):
        plain = run("-p", PROMPT, "-n", "24").out
        for flags in (["--trace", self.folder / "t.json"], ["--explain"], ["--explain", self.folder / "why.txt"]):
            result = run("-p", PROMPT, "-n", "24", *flags)
            self.assert_fine(result)
            self.assertEqual(result.out, plain)
        (self.folder / "t.json").unlink()
        (self.folder / "why.txt").unlink()

    def test_explanations(self):
        path = self.folder / "why.txt"
        self.addCleanup(path.unlink, missing_ok=True)
        budget = least_budget("-d", str(Setup.draft("fine")), model=Setup.target("fine")) + (4 << 20)
        flags = ["-p", PROMPT, "-n", "24", "--ram", budget, "-d", Setup.draft("fine")]
        self.assert_fine(run(*flags, "--explain", path, model=Setup.target("fine")))
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            self.assertRegex(line, r"^ +-?\d+\.\d{6} (fetch|evict|drop|depth) +\S")
        for verb in ("fetch", "evict", "depth"):
            self.assertTrue(any(f" {verb} " in line for line in lines), verb)
        self.assertRegex(run(*flags, "--explain", model=Setup.target("fine")).err, r"(?m)^ +\d+\.\d{6} fetch")

    def test_files_that_cannot_be_written(self):
        for flag in ("--trace", "--explain"):
            self.assert_refused(run("-p", PROMPT, "-n", "1", flag, self.folder / "no" / "f"), FILE, "no/f")
            result = run("-p", PROMPT, "-n", "4", flag, "/dev/full")
            self.assertEqual(result.code, FILE, result)
            self.assertIn("/dev/full", result.err)

    def test_interrupted_run_leaves_a_valid_trace(self):
        path = self.folder / "cut.json"
        self.addCleanup(path.unlink, missing_ok=True)
        result = run("-p", "word " * 50, "--ctx", "20", "--trace", path)
        self.assertEqual(result.code, 2, result)
        json.loads(path.read_text(encoding="utf-8"))

    def test_picture_of_hits(self):
        result = run("-p", PROMPT, "-n", "24", "--stats", "--ram", least_budget(model=Setup.target("fine")) + (4 << 20),
                     model=Setup.target("fine"))
        self.assert_fine(result)
        bars = re.findall(r"(?m)^ +(\d) \[([#+.]{50})\] +(\d+) %$", result.err)
        self.assertEqual([bar[0] for bar in bars], list("01234567"))
        for _, marks, percent in bars:
            self.assertAlmostEqual(marks.count("#") * 2, int(percent), delta=6)
        self.assertNotIn("experts by layer", run("-p", PROMPT, "-n", "2", "--stats", model=Setup.draft("fine")).err)
