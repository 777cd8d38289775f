"""`run --trace-routing` and `simulate`: what was recorded, replayed."""

import json
import re

from support import PROMPT, CliTestCase, Setup, execute, least_budget, run

USAGE, FILE, MEMORY = 2, 3, 4
LONG_PROMPT = "def mean(values):\n    return sum(values) / len(values)\n\n\ndef median(values):\n    ordered ="


class Simulating(CliTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model, cls.draft = Setup.target("fine"), Setup.draft("fine")
        cls.trace, cls.stats = cls.record("drafted", "-d", cls.draft, "--draft-depth", "6")

    @classmethod
    def record(cls, name, *flags, tokens="48", extra=3 << 20, model=None):
        """A traced run with little memory: its file, and its statistics."""
        model = model or cls.model
        path = cls.folder / f"{name}.jsonl"
        stats = cls.folder / f"{name}.json"
        drafted = tuple(map(str, flags[flags.index("-d"):][:2])) if "-d" in flags else ()
        budget = least_budget(*drafted, model=model) + extra
        result = run("-p", LONG_PROMPT, "-n", tokens, "--ram", budget, "--ignore-eos", "--trace-routing", path,
                     "--stats-file", stats, *flags, model=model)  # fmt: skip
        if result.code != 0:
            raise AssertionError(str(result))
        return path, json.loads(stats.read_text(encoding="utf-8"))

    def simulate(self, *arguments):
        return execute([Setup.binary, "simulate", *map(str, arguments)])

    def simulated(self, *arguments):
        result = self.simulate(*arguments, "--json")
        self.assert_fine(result)
        self.assertEqual(result.err, "")
        return json.loads(result.out)

    def totals(self, stats):
        return {key: sum(layer[key] for layer in stats["decode_layers"]) for key in ("hits", "misses")}

    def test_a_real_run_without_timing_is_replayed_exactly(self):
        # Windows so short that nothing is read ahead of a router: what that brings in time is the disk's to say.
        ways = (("--drafter", "none"), ("--drafter", "ngram", "--draft-depth", "4"), ("-d", self.draft, "--draft-depth", "2"))
        for policy in ("on-demand", "next-use"):
            for flags in ways:
                with self.subTest(policy=policy, flags=flags):
                    trace, stats = self.record("exact", "--policy", policy, *flags)
                    replayed = self.simulated(trace)
                    self.assertEqual(replayed["expert_slots"], stats["expert_slots"])
                    self.assertGreater(self.totals(stats)["misses"], 0)
                    for counted in (replayed["policies"][0], replayed["recorded"]):
                        self.assertEqual({key: counted[key] for key in ("hits", "misses")}, self.totals(stats))
                        self.assertEqual(counted["tokens"], stats["generated_tokens"])
                        self.assertEqual(counted["cycles"], stats["steps"])
                        self.assertEqual(counted["accepted_tokens"], stats["accepted_tokens"])
                    read = stats["bytes_read_per_token"] * stats["generated_tokens"]
                    self.assertEqual(round(replayed["recorded"]["bytes_read_per_token"] * counted["tokens"]), round(read))
                    # Where a matrix begins within a block is its own matter; a replay takes the most of its layer.
                    more = replayed["policies"][0]["bytes_read_per_token"] * counted["tokens"] - read
                    self.assertGreaterEqual(more, -0.5)
                    self.assertLessEqual(more, 3 * 4096 * self.totals(stats)["misses"])

    def test_the_recording_agrees_with_the_statistics(self):
        recorded = self.simulated(self.trace)["recorded"]
        tokens = self.stats["generated_tokens"]
        self.assertAlmostEqual(recorded["stall_s_per_token"] * tokens, self.stats["stall_s"], delta=1e-4)
        # Cycles are timed one by one: what lies between them, which a busy machine makes long, is not in them.
        self.assertLessEqual(recorded["tpot_s"] * tokens, self.stats["decode_s"] + 1e-4)
        self.assertGreater(recorded["tpot_s"], recorded["stall_s_per_token"])

    def test_windows_of_another_depth_are_those_of_a_run_at_it(self):
        # A text in which no guess of what was not recorded is wrong.
        flags = ("-d", Setup.draft(), "--draft-depth")
        deep, _ = self.record("deep", *flags, "6", model=Setup.target())
        trace, stats = self.record("shallow", *flags, "2", "--policy", "next-use", model=Setup.target())
        cut = self.simulated(deep, "--depth", "2", "--policy", "next-use", "--slots", stats["expert_slots"])
        replayed = self.simulated(trace)
        for key in ("cycles", "accepted_tokens", "drafted_tokens", "tokens"):
            self.assertEqual(cut["policies"][0][key], replayed["policies"][0][key], key)
        if cut["policies"][0]["guessed"]["agreement"] == 0:
            self.assertEqual(cut["policies"][0]["misses"], self.totals(stats)["misses"])

    def test_all_policies_and_the_bound(self):
        for depth in ("0", "3", "auto"):
            report = self.simulated(self.trace, "--policy", "all", "--depth", depth, "--link", "200M/s")
            self.assertEqual(len(report["policies"]), 8)
            for policy in report["policies"]:
                self.assertLessEqual(policy["bound"]["share"], 1, policy["policy"])
                self.assertLessEqual(policy["bound"]["tpot_s"], policy["tpot_s"] * 1.000001, policy["policy"])
                self.assertEqual(policy["tokens"], 48)

    def test_the_same_bytes_again(self):
        for flags in (["--policy", "all"], ["--depth", "auto", "--preset", "a100", "--scale", "phi-3.5-moe", "--json"]):
            first = self.simulate(self.trace, *flags)
            self.assert_fine(first)
            self.assertEqual(self.simulate(self.trace, *flags).out, first.out)

    def test_a_faster_link_and_more_slots_help(self):
        def tpot(*flags):
            return self.simulated(self.trace, "--policy", "next-use", *flags)["policies"][0]["tpot_s"]

        self.assertLess(tpot("--link", "2G/s"), tpot("--link", "100M/s"))
        self.assertLess(tpot("--link", "100M/s", "--slots", "60"), tpot("--link", "100M/s", "--slots", "20"))
        self.assertLess(tpot("--link", "1G/s"), tpot("--link", "1G/s", "--latency", "5ms"))
        self.assertLess(tpot("--link", "1G/s"), tpot("--link", "1G/s", "--expert-bytes", "4M"))
        self.assertLess(tpot("--link", "1G/s"), tpot("--link", "1G/s", "--layer-ms", "30"))

    def test_other_hardware_says_what_it_is(self):
        text = self.simulate(self.trace, "--preset", "rtx4090", "--scale", "mixtral-8x7b", "--policy", "sp-moe").out
        self.assertRegex(text.decode(), r"the routing is that of target\.gguf .*stretched to mixtral-8x7b")
        report = self.simulated(self.trace, "--preset", "rtx4090", "--scale", "mixtral-8x7b", "--policy", "sp-moe",
                                "--stack", "paper", "--depth", "1")  # fmt: skip
        self.assertEqual(report["experts"], 256)
        self.assertEqual(report["slot_bytes"], 336 << 20)
        self.assertEqual(report["policies"][0]["paper_tpot_s"], 0.77)

    def test_recording_changes_no_text(self):
        plain = run("-p", PROMPT, "-n", "24", "-d", Setup.draft())
        traced = run("-p", PROMPT, "-n", "24", "-d", Setup.draft(), "--trace-routing", self.folder / "same.jsonl")
        self.assert_fine(traced)
        self.assertEqual(plain.out, traced.out)

    def test_a_run_that_was_killed_can_be_replayed(self):
        data = self.trace.read_bytes()
        cut = self.write("cut.jsonl", data[: data.rindex(b"{") + 30])
        self.assertLess(self.simulated(cut)["recorded"]["tokens"], 48)

    def test_wrong_requests(self):
        wrong = (
            (["--policy", "sp-mo"], "sp-moe"),
            (["--link", "fast"], "--link"),
            (["--link", "0"], "--link"),
            (["--latency", "3"], "--latency"),
            (["--depth", "65"], "--depth"),
            (["--depth", "-1"], "--depth"),
            (["--slots", "1"], "--slots"),
            (["--expert-bytes", "0"], "--expert-bytes"),
            (["--scale", "mixtral-8x7b"], "--preset"),
            (["--stack", "paper"], "--scale"),
            (["--preset", "rtx5090"], "rtx4090"),
        )
        for flags, said in wrong:
            with self.subTest(flags=flags):
                self.assert_refused(self.simulate(self.trace, *flags), USAGE, said)
        self.assert_refused(self.simulate(self.trace, "--fast", "10M"), MEMORY, "--fast")
        self.assert_refused(self.simulate(), USAGE, "--trace-routing")
        self.assert_refused(run("-p", "x", "--trace-routing", self.folder / "no" / "such"), FILE, "no/such")
        plain, _ = self.record("plain", tokens="8")
        self.assert_refused(self.simulate(plain, "--depth", "2"), USAGE, "draft")
        dense = run("-p", "x", "-n", "4", "--trace-routing", self.folder / "dense.jsonl", model=Setup.draft())
        self.assert_refused(dense, USAGE, "no experts")

    def test_files_that_are_none(self):
        lines = self.trace.read_bytes().splitlines(keepends=True)
        cycle = next(i for i, line in enumerate(lines) if b'"committed"' in line)
        self.assert_refused(self.simulate(self.folder / "none.jsonl"), FILE, "none.jsonl")
        self.assert_refused(self.simulate(self.folder), FILE, "--trace-routing")
        for name, data, said in (
            ("empty", b"", "--trace-routing"),
            ("not-json", b"GGUF\0\0", "--trace-routing"),
            ("only-the-model", lines[0], "generated nothing"),
            ("no-such-expert", self.changed(lines, cycle, used=lambda u: [[99] * len(one) for one in u]), "line"),
            ("twice-the-same", self.changed(lines, cycle, used=lambda u: [[1] * len(one) for one in u]), "line"),
            ("too-few", self.changed(lines, cycle, used=lambda u: u[:-1]), "line"),
            ("negative-time", self.changed(lines, cycle, draft_s=lambda s: -1), "line"),
            ("no-window", self.changed(lines, cycle, tokens=lambda t: 0), "line"),
            ("wide-window", self.changed(lines, cycle, tokens=lambda t: 1 << 40), "line"),
            ("no-layers", self.changed(lines, 0, layers=lambda layers: []), "--trace-routing"),
            ("huge-experts", self.changed(lines, 0, layers=lambda layers: [{"experts": 16, "extent_bytes": [1 << 62]}] * 4),
             "--trace-routing"),
        ):  # fmt: skip
            with self.subTest(name=name):
                self.assert_refused(self.simulate(self.write(name, data)), FILE, said)

    def changed(self, lines, number, **changes):
        line = json.loads(lines[number])
        for key, change in changes.items():
            line[key] = change(line[key])
        return b"".join([*lines[:number], json.dumps(line).encode() + b"\n", *lines[number + 1 :]])

    def test_the_table_is_readable(self):
        result = self.simulate(self.trace, "--policy", "sp-moe,auto", "--depth", "4")
        self.assert_fine(result)
        lines = result.out.decode().splitlines()
        self.assertTrue(all(len(line) <= 120 for line in lines if not line.startswith("note:")), result)
        for name in ("sp-moe", "auto"):
            self.assertTrue(any(re.match(rf"{name} +\d", line) for line in lines), result)
