"""`drafthorse bench`: what it runs, keeps, draws, and what it does when things go wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree

from support import CliTestCase, Setup, execute, measured_machine

FAILED, USAGE, FILE, MEMORY, INTERRUPTED = 1, 2, 3, 4, 130
SVG = "{http://www.w3.org/2000/svg}"


def bench(*flags, draft=True, timeout=120, **options):
    """Tiny unless told otherwise."""
    drafting = ["-d", str(Setup.draft("fine"))] if draft else []
    arguments = [Setup.binary, "bench", "-m", str(Setup.target("fine")), *drafting, *map(str, flags)]
    return execute(arguments, timeout=timeout, **options)


def fnv(data):
    """FNV-1a, 64 bits, as the program writes it."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{value:016x}"


class BenchTestCase(CliTestCase):
    def out(self, name="bench"):
        """A folder to write to that is not there yet."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        self.addCleanup(shutil.rmtree, path, True)
        return path

    def lines(self, folder, kind="run"):
        text = (folder / "runs.jsonl").read_text(encoding="utf-8")
        self.assertTrue(text.endswith("\n"))
        return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]

    def report(self, folder):
        """Parsed: XHTML is what XML's parser takes."""
        text = (folder / "report.html").read_text(encoding="utf-8")
        self.assertNotRegex(text, r"<script|https?://(?!www\.w3\.org)|\bnan\b|\binf\b")
        return text, ElementTree.fromstring(text)


class Comparing(BenchTestCase):
    def test_quick(self):
        out = self.out()
        result = bench("-n", 6, "--out", out, "--prompt-count", 1, "--budgets", "60%")
        self.assert_fine(result)
        runs = self.lines(out)
        self.assertEqual([run["contender"] for run in runs], ["on-demand", "sp-moe", "auto"])
        self.assertEqual(len({run["text_hash"] for run in runs}), 1)
        for run in runs:
            self.assertEqual(run["generated_tokens"], 6)
            self.assertEqual(len(run["hit_rate_by_layer"]), 8)
            self.assertLessEqual(run["peak_rss_bytes"], run["ram_bytes"])
            self.assertEqual(run["model"], str(Setup.target("fine")))
            for key in ("machine", "version", "bench", "command"):
                self.assertTrue(run[key], key)
        # A line of the table for each, which fits a terminal.
        table = result.out.decode()
        self.assertLessEqual(max(map(len, table.splitlines())), 100)
        for name in ("on-demand", "sp-moe", "auto"):
            self.assertRegex(table, rf"(?m)^{name} +60% +[\d.]+ \([\d.]+-[\d.]+\) +[\d.]+x")
        # The numbers are in the report, and the traces' timelines.
        text, page = self.report(out)
        for run in runs:
            self.assertIn(f"{1e3 * run['tpot_s']:.2f} (", text)
        self.assertGreaterEqual(len(list(page.iter(f"{SVG}svg"))), 3)
        self.assertEqual([t["contender"] for t in self.lines(out, "timeline")], ["on-demand", "sp-moe", "auto"])
        self.assertEqual(sorted(p.name for p in out.iterdir()), ["prompts", "report.html", "runs.jsonl"])

    def test_a_run_can_be_made_again_by_its_command(self):
        out = self.out()
        self.assert_fine(bench("-n", 6, "--out", out, "--prompt-count", 1, "--policies", "auto", "--depths", "2"))
        run = self.lines(out)[0]
        stats = self.folder / "again.json"
        self.addCleanup(stats.unlink, missing_ok=True)
        again = run["command"].split()
        self.assertEqual(again[0], "drafthorse")
        self.assert_fine(execute([Setup.binary, *again[1:], "--stats-file", str(stats)]))
        written = json.loads(stats.read_text(encoding="utf-8"))
        self.assertEqual(written["text_hash"], run["text_hash"])
        self.assertEqual(written["ram_budget_bytes"], run["ram_bytes"])
        self.assertEqual(written["depth"]["policy"], "2")

    def test_every_suite_is_drawn(self):
        out = self.out()
        flags = ["-n", 4, "--rounds", 1, "--prompt-count", 1, "--suite", "all", "--budgets", "40%,100%", "--out", out]
        self.assert_fine(bench(*flags))
        text, page = self.report(out)
        for title in (
            "Time per token by policy", "Time per token, one part added", "Time per token by cutoff layer",
            "Time per token by memory", "Time per token by tokens drafted", "Hit rate by layer", "What happens when",
        ):  # fmt: skip
            self.assertIn(title, text)
        self.assertIn("the formula takes", text)
        self.assertIn("auto drafts", text)
        titles = {element.text for element in page.iter(f"{SVG}title")}
        for name in ("adapmoe", "+ deadlines", "40% at 4", "auto at 100%"):
            self.assertTrue(any(name in title for title in titles if title), name)
        runs = self.lines(out)
        fixed = [run for run in runs if run["suite"] == "cutoff" and run["cutoff"] != "auto"]
        for run in fixed:
            if run["mean_depth"] > 0:
                self.assertEqual(run["cutoff_layers"], int(run["cutoff"]))
        undrafted = [run for run in runs if run["contender"] == "no draft"]
        self.assertTrue(undrafted and all(run["draft"] == "" and run["mean_depth"] == 0 for run in undrafted))
        # More memory, more slots.
        slots = {run["budget"]: run["slots"] for run in runs if run["suite"] == "memory" and run["policy"] == "auto"}
        self.assertLess(slots["40%"], slots["100%"])
        self.assertEqual(slots["100%"], 256)

    def test_without_a_draft(self):
        out = self.out()
        result = bench("-n", 4, "--out", out, "--prompt-count", 1, draft=False)
        self.assert_fine(result)
        self.assertRegex(result.err, r"(?m)^note: sp-moe: .*predict nothing")
        runs = self.lines(out)
        self.assertTrue(all(run["depth"] == "off" for run in runs))
        # A contender that cannot do what its name says is pointed out.
        self.assertEqual([bool(run["note"]) for run in runs], [False, True, False])
        self.assertIn("Note: sp-moe", self.report(out)[0])

    def test_other_drafters(self):
        out = self.out()
        flags = ("--drafter", "ngram", "--depths", "off,2", "--rounds", 1, "--prompt-count", 1, "-n", 8, "--out", out)
        self.assert_fine(bench(*flags, draft=False))
        runs = self.lines(out)
        self.assertEqual([(run["depth"], run["drafter"], run["draft"]) for run in runs],
                         [("off", "none", ""), ("2", "ngram", "")])  # fmt: skip
        self.assertIn("drafter ngram", self.report(out)[0])
        self.assert_refused(bench("--drafter", "none"), USAGE, "ngram")
        self.assert_refused(bench(*flags[2:], "--drafter", "resident", "--resume", draft=False), USAGE, "--drafter ngram")

    def test_prompts_of_a_file(self):
        prompts = self.write("p.jsonl", b'{"id": "a", "text": "def f(x):"}\n{"text": "Once <upon> & a time"}\n')
        out = self.out()
        self.assert_fine(
            bench("-n", 4, "--prompts", prompts, "--policies", "auto,next-use", "--rounds", 1,
                  "--depths", "off", "--baseline", "next-use", "--out", out)
        )  # fmt: skip
        runs = self.lines(out)
        self.assertEqual([run["prompt"] for run in runs], ["a", "a", "2", "2"])
        self.assertEqual([run["contender"] for run in runs], ["auto", "next-use", "next-use", "auto"])
        self.assertEqual((out / "prompts" / "02.txt").read_text(), "Once <upon> & a time")
        self.assertEqual({run["baseline"] for run in runs}, {"next-use"})

    def test_dry_run(self):
        out = self.out()
        result = bench("--suite", "policies,depth", "--dry-run", "--out", out)
        self.assert_fine(result)
        self.assertIn(b"300 runs of 64 tokens", result.out)
        self.assertFalse(out.exists())


class GoingOn(BenchTestCase):
    FLAGS = ("-n", 4, "--policies", "on-demand,auto", "--budgets", "50%", "--prompt-count", 2, "--rounds", 2)

    def test_resume_runs_what_is_missing(self):
        out = self.out()
        self.assert_fine(bench(*self.FLAGS, "--out", out))
        path = out / "runs.jsonl"
        whole = path.read_text(encoding="utf-8").splitlines(keepends=True)
        runs = [line for line in whole if '"kind":"run"' in line]
        self.assertEqual(len(runs), 8)
        # Cut in the middle of a line, as by a power failure.
        path.write_text("".join(runs[:3]) + runs[3][:100], encoding="utf-8")
        self.assert_fine(bench(*self.FLAGS, "--out", out, "--resume"))
        again = path.read_text(encoding="utf-8").splitlines(keepends=True)
        self.assertEqual(again[:3], runs[:3])
        lines = self.lines(out)
        keys = [(run["contender"], run["prompt"], run["round"]) for run in lines]
        self.assertEqual(len(keys), 8)
        self.assertEqual(len(set(keys)), 8)
        self.assertEqual(len({run["ram_bytes"] for run in lines}), 1)
        result = bench(*self.FLAGS, "--out", out, "--resume")
        self.assert_fine(result)
        self.assertIn("nothing is left to run", result.err)

    def test_resume_refuses_another_bench(self):
        out = self.out()
        flags = ("-n", 4, "--policies", "auto", "--prompt-count", 1, "--rounds", 1, "--depths", "1", "--out", out)
        self.assert_fine(bench(*flags))
        self.assert_refused(bench(*flags), USAGE, "--resume")
        other = ("-n", 5, *flags[2:], "--resume")
        self.assert_refused(bench(*other), USAGE, "-n 4")
        prompts = self.write("p.jsonl", b'{"text": "other"}')
        self.assert_refused(bench(*flags, "--resume", "--prompts", prompts), USAGE, "other prompts")
        self.assert_refused(bench(*flags[:-1], self.folder / "none", "--resume"), FILE, "none")
        self.assert_refused(bench(*flags[:-2], "--resume"), USAGE, "--out")

    def test_interrupted(self):
        out = self.out()
        flags = ["-n", "400", "--policies", "on-demand,auto", "--budgets", "50%", "--rounds", "9", "--out", str(out)]
        process = subprocess.Popen(
            [Setup.binary, "bench", "-m", Setup.target("fine"), "-d", Setup.draft("fine"), *flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        path = out / "runs.jsonl"
        deadline = time.monotonic() + 60
        while not (path.exists() and path.read_text().count("\n") >= 2):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        table, error = process.communicate(timeout=60)
        self.assertEqual(process.returncode, INTERRUPTED, error)
        self.assertIn(b"--resume", error)
        self.assertIn(b"on-demand", table)
        self.report(out)
        self.assertGreaterEqual(len(self.lines(out)), 2)
        self.assertFalse((out / "statistics.json").exists())


class Reports(BenchTestCase):
    def made(self, **changes):
        """A folder with a bench whose last run is changed."""
        out = self.out("made")
        if not hasattr(Reports, "text"):
            flags = ("-n", 4, "--policies", "on-demand,auto", "--prompt-count", 1, "--rounds", 1, "--budgets", "50%")
            self.assert_fine(bench(*flags, "--out", out))
            Reports.text = (out / "runs.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in Reports.text.splitlines()]
        runs = [line for line in lines if line["kind"] == "run"]
        runs[-1].update(changes)
        out.mkdir(exist_ok=True)
        (out / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (out / "report.html").unlink(missing_ok=True)
        return out

    def test_is_made_from_the_lines_alone(self):
        out = self.made(tpot_s=0.123456)
        result = execute([Setup.binary, "bench", "--report", str(out)])
        self.assert_fine(result)
        self.assertIn(b"123 (123-123)", result.out)
        text, _ = self.report(out)
        self.assertIn("123.46 (123.46-123.46)", text)

    def test_hostile_names(self):
        out = self.made(contender="</svg><script>x", policy="\"'><&\u0007", bench="<b>", machine="\x1b[31m&amp;")
        self.assert_fine(execute([Setup.binary, "bench", "--report", str(out)]))
        text, _ = self.report(out)
        self.assertNotIn("</svg><", text.replace("</svg>\n", ""))

    def test_texts_that_differ_are_an_error(self):
        out = self.made(text_hash="0123456789abcdef")
        result = execute([Setup.binary, "bench", "--report", str(out)])
        self.assertEqual(result.code, FAILED, result)
        self.assertIn("TEXTS DIFFER", result.err)
        self.assertIn("'auto'", result.err)
        self.assertIn("Texts differ", self.report(out)[0])

    def test_what_is_no_bench_is_refused(self):
        self.assert_refused(execute([Setup.binary, "bench", "--report", str(self.folder / "no")]), FILE, "no")
        for text in ("", "x\ny\n", "[]\n", "{}\n", '{"kind":"run"}\n'):
            out = self.out("none")
            out.mkdir()
            (out / "runs.jsonl").write_text(text)
            self.assert_refused(execute([Setup.binary, "bench", "--report", str(out)]), FILE, "runs.jsonl")
        whole = self.made(tpot_s=0)
        self.assert_refused(execute([Setup.binary, "bench", "--report", str(whole)]), FILE, "line 2")


class Batches(BenchTestCase):
    """`drafthorse bench --batch`."""

    FLAGS = ("--batch", "--sequences", "2,3", "-n", 6, "--rounds", 1)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.environment = measured_machine(cls.folder, "f16,f32,bf16,q8_0,q4_0")

    def batches(self, *flags, draft=True, **options):
        return bench(*flags, draft=draft, env=self.environment, **options)

    def test_runs_table_and_report(self):
        out = self.out()
        # A depth that is asked for: what is chosen may be not to draft.
        result = self.batches(*self.FLAGS, "--out", out, "--budgets", "60%", "--regimes", "auto,layered", "--depths", "off,2")
        self.assert_fine(result)
        runs = self.lines(out, "batch-run")
        contenders = ["no draft", "depth 2", "no draft, layered"]
        self.assertEqual(sorted((run["sequences"], run["contender"]) for run in runs),
                         sorted((n, name) for n in (2, 3) for name in contenders))  # fmt: skip
        for run in runs:
            self.assertEqual(run["requests"], run["sequences"])
            self.assertEqual(run["most_sequences"], run["sequences"])
            self.assertEqual(run["generated_tokens"], 6 * run["sequences"])
            self.assertAlmostEqual(run["tokens_per_s"], run["generated_tokens"] / run["busy_s"])
            self.assertLessEqual(run["peak_rss_bytes"], run["ram_bytes"])
            self.assertEqual(len(run["text_hashes"]), run["sequences"])
            decoding, predicted = run["decoding"], run["predicted"]
            self.assertGreater(decoding["iterations"], 0)
            parts = ("draft_s", "attention_s", "experts_s", "stall_s", "head_s")
            self.assertLessEqual(max(decoding[part] for part in parts), decoding["s"])
            self.assertGreater(predicted["s"], 0)
            self.assertEqual(decoding["depth"] > 0, run["contender"] == "depth 2")
            self.assertEqual(predicted["draft_s"] > 0, run["contender"] == "depth 2")
            self.assertEqual(run["acceptance"] > 0, run["contender"] == "depth 2")
            for key in ("machine", "version", "bench", "command"):
                self.assertTrue(run[key], key)
        # One text for a request, whoever writes it and however many there are.
        self.assertEqual(len({tuple(run["text_hashes"][:2]) for run in runs}), 1)
        self.assertEqual(len({run["text_hash"] for run in runs}), 2)
        table = result.out.decode()
        self.assertLessEqual(max(map(len, table.splitlines())), 100)
        for name in contenders:
            self.assertEqual(len(re.findall(rf"(?m)^  {name} +[\d.]+ \([\d.]+-[\d.]+\) +[\d.]+x", table)), 2, table)
        text, page = self.report(out)
        for run in runs:
            self.assertIn(f"{run['tokens_per_s']:.2f} (", text)
        for title in ("Tokens per second by depth, 60%", "Tokens per second by requests at once, 60%",
                      "Predicted against measured", "An iteration, part by part", "What happens when"):  # fmt: skip
            self.assertIn(title, text)
        timelines = self.lines(out, "batch-timeline")
        self.assertEqual([t["contender"] for t in timelines], ["no draft", "depth 2"])
        for timeline in timelines:
            self.assertGreater(len(timeline["begins_ms"]), 0)
            self.assertTrue(timeline["attention"] and timeline["experts"] and timeline["head"])
            self.assertEqual(bool(timeline["draft"]), timeline["contender"] == "depth 2")
        self.assertEqual(sorted(p.name for p in out.iterdir()), ["report.html", "requests", "runs.jsonl"])
        self.assertEqual(sorted(p.name for p in (out / "requests").iterdir()), ["2.jsonl", "3.jsonl"])

    def test_a_run_can_be_made_again_by_its_command(self):
        out = self.out()
        flags = ("--batch", "--sequences", 2, "--requests", 5, "-n", 5, "--rounds", 1, "--depths", 2, "--budgets", "80M")
        self.assert_fine(self.batches(*flags, "--out", out))
        run, = self.lines(out, "batch-run")
        self.assertEqual((run["requests"], run["generated_tokens"], run["most_sequences"]), (5, 25, 2))
        stats = self.folder / "again.json"
        self.addCleanup(stats.unlink, missing_ok=True)
        again = run["command"].split()
        self.assertEqual(again[:3], ["drafthorse", "--no-config", "batch"])
        self.assert_fine(execute([Setup.binary, *again[1:], "--stats-file", str(stats)]))
        written = json.loads(stats.read_text(encoding="utf-8"))
        self.assertEqual(written["ram_budget_bytes"], run["ram_bytes"])
        self.assertEqual(written["draft_depth"], 2)
        self.assertEqual(written["generated_tokens"], 25)
        results = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
        texts = [r["response"]["body"]["choices"][0]["text"] for r in sorted(results, key=lambda r: r["custom_id"])]
        self.assertEqual([fnv(text.encode()) for text in texts], run["text_hashes"])

    def test_resume_and_reports_anew(self):
        out = self.out()
        flags = (*self.FLAGS, "--budgets", "60%", "--out", out)
        self.assert_fine(self.batches(*flags))
        path = out / "runs.jsonl"
        runs = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if "batch-run" in line]
        path.write_text("".join(runs[:2]) + runs[2][:100], encoding="utf-8")
        self.assert_refused(self.batches(*flags), USAGE, "--resume")
        self.assert_fine(self.batches(*flags, "--resume"))
        lines = self.lines(out, "batch-run")
        self.assertEqual(len(lines), 4)
        self.assertEqual(len({(run["contender"], run["sequences"]) for run in lines}), 4)
        self.assertEqual(len({run["ram_bytes"] for run in lines}), 1)
        self.assertIn("nothing is left to run", self.batches(*flags, "--resume").err)
        self.assert_refused(self.batches(*flags, "--resume", "--kv", "q8_0"), USAGE, "--kv f16")
        self.assert_refused(self.batches(*flags, "--resume", "--prompt-count", 1), USAGE, "other prompts")
        self.assert_refused(bench("-n", 6, "--out", out, "--resume"), USAGE, "give --batch")
        # A text that differs, in a file from elsewhere, with a hostile name.
        changed = json.loads(runs[1])
        changed["text_hashes"][1] = "0123456789abcdef"
        changed["contender"] = "</svg><script>x"
        path.write_text(runs[0] + json.dumps(changed) + "\n", encoding="utf-8")
        result = execute([Setup.binary, "bench", "--report", str(out)])
        self.assertEqual(result.code, FAILED, result)
        self.assertIn("TEXTS DIFFER: request 2", result.err)
        text, _ = self.report(out)
        self.assertIn("Texts differ", text)
        self.assertNotIn("</svg><", text.replace("</svg>\n", ""))

    def test_without_a_profile(self):
        out = self.out()
        empty = {**os.environ, "XDG_CACHE_HOME": str(self.folder / "none")}
        result = bench(*self.FLAGS, "--out", out, draft=False, env=empty)
        self.assert_fine(result)
        self.assertRegex(result.err, "note: nothing is predicted: .*drafthorse profile")
        for run in self.lines(out, "batch-run"):
            self.assertIsNone(run["predicted"])
            self.assertIsNone(run["disk_share"])
            self.assertIsNotNone(run["decoding"])
        again = bench(*self.FLAGS, "--out", self.out("b"), "--profile", self.folder / "no", draft=False, env=empty)
        self.assert_refused(again, FILE, "no")

    def test_what_does_not_fit(self):
        # All of it, and what is left where a part does not.
        self.assert_refused(self.batches(*self.FLAGS, "--budgets", "1M", "--out", self.out()), MEMORY, "nothing fits", "1M")
        flags = ("--batch", "--sequences", "2,512", "-n", 900, "--budgets", "80M", "--out", self.out(), "--dry-run")
        result = self.batches(*flags)
        self.assert_fine(result)
        said = result.out.decode()
        self.assertRegex(said, r"note: 80M, 512 at once, 'no draft': does not fit: there is memory for the texts of \d+")
        self.assertIn("2 requests, 2 at once", said)
        self.assertNotIn("512 requests", said)
        self.assertIn("6 runs: 3 rounds", said)
        self.assertFalse((self.folder / "bench").exists())

    def test_flags(self):
        for flags, said in (
            (("--suite", "quick"), "--suite"),
            (("--policies", "auto"), "--policies"),
            (("--cutoffs", "1"), "--cutoffs"),
            (("--sequences", "0"), "--sequences"),
            (("--sequences", "many"), "'many'"),
            (("--regimes", "streem"), "stream"),
            (("--depths", "deep"), "'deep'"),
            (("--requests", "2"), "--requests 2"),
            (("--budgets", "0%"), "0%"),
            (("--drafter", "resident"), "resident"),
            (("-n", "9000"), "context"),
            (("--resume",), "--out"),
        ):
            self.assert_refused(self.batches("--batch", *flags), USAGE, said)
        self.assert_refused(self.batches("--batch", "--depths", "4", draft=False), USAGE, "-d FILE")
        for flag in ("--sequences", "--regimes", "--requests", "--profile"):
            self.assert_refused(self.batches(flag, "1"), USAGE, flag, "--batch")


class Refused(BenchTestCase):
    def test_flags(self):
        for flags, said in (
            (("--suite", "everything"), "policies"),
            (("--policies", "sp-mo"), "sp-moe"),
            (("--depths", "4,many"), "'many'"),
            (("--depths", "-1"), "-1"),
            (("--cutoffs", "x"), "'x'"),
            (("--budgets", "0%"), "0%"),
            (("--budgets", "120%"), "120%"),
            (("--budgets", "lots"), "lots"),
            (("--baseline", "me"), "on-demand"),
            (("--rounds", "0"), "--rounds"),
            (("-n", "0"), "--tokens"),
        ):
            self.assert_refused(bench(*flags, "--out", self.out()), USAGE, said)
        self.assert_refused(bench("--suite", "depth", draft=False), USAGE, "-d FILE")
        self.assert_refused(bench("--depths", "4", draft=False), USAGE, "-d FILE")
        self.assert_refused(execute([Setup.binary, "bench"]), USAGE, "-m FILE")
        self.assertFalse((self.folder / "bench").exists())

    def test_files(self):
        self.assert_refused(execute([Setup.binary, "bench", "-m", "/no/model.gguf"]), FILE, "/no/model.gguf")
        dense = execute([Setup.binary, "bench", "-m", str(Setup.draft("fine"))])
        self.assert_refused(dense, USAGE, "no experts")
        self.assert_refused(bench("--prompts", "/no/prompts"), FILE, "--prompts")
        bad = self.write("bad.jsonl", b'{"text": "x"}\nnothing\n')
        self.assert_refused(bench("--prompts", bad), FILE, "line 2")
        self.assert_refused(bench("--out", "/proc/none"), FILE, "/proc/none")

    def test_memory(self):
        self.assert_refused(bench("--budgets", "1M", "--out", self.out()), MEMORY, "--budgets 1M")
        self.assert_refused(bench("--budgets", "900000G", "--out", self.out()), MEMORY, "900000G")

    def test_a_run_that_fails_ends_it(self):
        out = self.out()
        prompts = self.write("long.jsonl", json.dumps({"text": "word " * 400}).encode())
        result = bench("--prompts", prompts, "--ctx", 32, "-n", 4, "--out", out)
        self.assertEqual(result.code, FAILED, result)
        self.assertRegex(result.err, r"(?m)^drafthorse: a run failed \(exit code 2\): .*context")
        self.assertIn("drafthorse --no-config run", result.err)
        self.assertEqual((out / "runs.jsonl").read_text(), "")
