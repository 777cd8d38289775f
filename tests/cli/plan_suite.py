"""`drafthorse profile` and `drafthorse plan`: the machine measured, and a run foreseen."""

import json
import os

from support import PROMPT, CliTestCase, Setup, execute, large_file, least_budget, run

USAGE, FILE, MEMORY = 2, 3, 4


class Planning(CliTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.environment = {**os.environ, "XDG_CACHE_HOME": str(cls.folder)}
        cls.large = large_file(cls.folder)
        done = cls.profile(cls, cls.large, "--types", "q8_0,f32", "--seconds", "0.01", "--json")
        if done.code != 0:
            cls.tearDownClass()
            raise AssertionError(str(done))
        cls.profiled = json.loads(done.out)
        cls.kept = cls.folder / "drafthorse" / "profile.json"

    def profile(self, *arguments):
        return execute([Setup.binary, "profile", *map(str, arguments)], env=self.environment, timeout=120)

    def plan(self, *arguments, model=None):
        flags = [Setup.binary, "plan", "-m", str(model or Setup.target()), *map(str, arguments)]
        return execute(flags, env=self.environment)

    def planned(self, *arguments, **options):
        result = self.plan(*arguments, "--json", **options)
        self.assert_fine(result)
        self.assertEqual(result.err, "")
        return json.loads(result.out)

    def test_profile_is_kept(self):
        self.assertEqual(json.loads(self.kept.read_text()), self.profiled)
        self.assertEqual([kernel["type"] for kernel in self.profiled["kernels"]], ["f32", "q8_0"])
        for rate in self.profiled["disk"]:
            self.assertGreater(rate["bytes_per_s"], 0)
        self.assertEqual([path.name for path in self.kept.parent.iterdir()], ["profile.json"])

    def test_profile_refusals(self):
        self.assert_refused(self.profile(self.folder / "missing"), FILE, "missing")
        self.assert_refused(self.profile(Setup.target()), FILE, "too few")
        self.assert_refused(self.profile(self.large, "--types", "q9"), USAGE, "q9")
        self.assert_refused(self.profile(self.large, "--seconds", "-1"), USAGE)
        # What was refused leaves the profile as it was.
        self.assertEqual(json.loads(self.kept.read_text()), self.profiled)

    def test_memory_is_what_a_run_books(self):
        budget = least_budget() + (4 << 20)
        stats = self.folder / "stats.json"
        self.addCleanup(stats.unlink, missing_ok=True)
        for flags in ([], ["-d", Setup.draft()], ["--ctx", "300"], ["--ram", budget]):
            plan = self.planned(*flags)
            self.assert_fine(run("-p", PROMPT, "-n", "4", "--stats-file", stats, *flags))
            ran = json.loads(stats.read_text())
            tags = [entry["tag"] for entry in plan["memory"]]
            self.assertEqual(tags, [entry["tag"] for entry in ran["memory"]])
            # What the process itself takes differs a little from one to the next, and slots get what it leaves.
            slack = 2 << 20
            for ours, theirs in zip(plan["memory"], ran["memory"]):
                allowed = slack if ours["tag"] in ("process and vocabulary", "expert slots") else 0
                self.assertLessEqual(abs(ours["bytes"] - theirs["bytes"]), allowed, ours["tag"])
            slot_bytes = sum(entry["bytes"] for entry in plan["memory"] if entry["tag"] == "expert slots") / max(
                1, plan["expert_slots"])
            self.assertLessEqual(abs(plan["expert_slots"] - ran["expert_slots"]) * slot_bytes, slack)
            self.assertLessEqual(plan["expected_peak_bytes"], plan["booked_bytes"])

    def test_more_memory_is_never_slower(self):
        least = least_budget()
        speeds = []
        for more in (1, 4, 8, 32):
            best = self.planned("--ram", least + (more << 20))["prediction"]["best"]
            self.assertGreater(best["tokens_per_s"], 0)
            speeds.append(best["tokens_per_s"])
        self.assertEqual(speeds, sorted(speeds))
        self.assertGreater(speeds[-1], speeds[0])

    def test_depths(self):
        plan = self.planned("-d", Setup.draft(), "--acceptance", "0.9")
        self.assertEqual(plan["prediction"]["by_depth"][0]["depth"], 0)
        self.assertGreater(len(plan["prediction"]["by_depth"]), 5)
        self.assertEqual(plan["prediction"]["best"]["depth"], "auto")
        self.assertEqual(plan["assumed"]["acceptance"], 0.9)
        self.assertEqual(self.planned("-d", Setup.draft(), "--draft-depth", "3")["prediction"]["best"]["depth"], 3)
        hopeless = self.planned("-d", Setup.draft(), "--acceptance", "0")
        self.assertLess(hopeless["prediction"]["best"]["drafted_per_cycle"], 0.5)
        self.assertEqual(len(self.planned()["prediction"]["by_depth"]), 1)

    def test_learns_from_a_run(self):
        stats = self.folder / "like.json"
        self.addCleanup(stats.unlink, missing_ok=True)
        model, draft = Setup.target("fine"), Setup.draft("fine")
        flags = ["--ram", least_budget("-d", str(draft), model=model) + (2 << 20), "-d", draft]
        self.assert_fine(run("-p", PROMPT, "-n", "48", "--draft-depth", "2", "--stats-file", stats, *flags, model=model))
        ran = json.loads(stats.read_text())
        self.assertLess(ran["hit_rate"], 0.95)  # else it says nothing of the skew
        plan = self.planned(*flags, "--like", stats, model=model)
        accepted = sum(ran["depth"]["accepted_by_position"]) / sum(ran["depth"]["reached_by_position"])
        self.assertAlmostEqual(plan["assumed"]["acceptance"], accepted)
        self.assertNotEqual(plan["assumed"]["skew"], self.planned(*flags, model=model)["assumed"]["skew"])
        for text in (b"", b"[]", b"{}", b'{"hit_rate": 1e999}', b'{"hit_rate": "x", "depth": 3}', b"\xff" * 99):
            bad = self.write("bad.json", text)
            self.assert_refused(self.plan("--like", bad), FILE, "bad.json", "--stats-file")

    def test_without_a_profile(self):
        self.environment = {**self.environment, "XDG_CACHE_HOME": str(self.folder / "elsewhere")}
        self.addCleanup(setattr, self, "environment", Planning.environment)
        plan = self.planned()
        self.assertIsNone(plan["prediction"])
        self.assertIn("drafthorse profile", plan["no_prediction"])
        self.assertGreater(plan["booked_bytes"], 0)
        self.assertIn(b"no prediction of speed", self.plan().out)

    def test_profile_of_another_machine(self):
        other = {**self.profiled, "machine": "a mainframe"}
        path = self.write("other.json", json.dumps(other).encode())
        self.assertIn("another machine", self.planned("--profile", path)["no_prediction"])

    def test_profile_of_another_version(self):
        older = {key: value for key, value in self.profiled.items() if key != "compute_slowdown_while_reading"}
        path = self.write("older.json", json.dumps(older).encode())
        said = self.planned("--profile", path)["no_prediction"]
        self.assertIn("compute_slowdown_while_reading", said)
        self.assertIn("another version", said)

    def test_damaged_profiles(self):
        whole = self.kept.read_bytes()
        cases = [whole[: len(whole) // 2], b"", b"[1]", b"null", b'{"schema": 1}']
        for key in self.profiled:
            for value in (None, -1, "x", [], {}, 1e300, [[]], [{}], True):
                if isinstance(value, str) and isinstance(self.profiled[key], str):
                    continue
                cases.append(json.dumps({**self.profiled, key: value}).encode())
        for text in cases:
            plan = self.planned("--profile", self.write("damaged.json", text))
            if plan["prediction"] is not None:  # a value that happened to be allowed
                self.assertGreater(plan["prediction"]["best"]["tokens_per_s"], 0)
            else:
                self.assertIn("drafthorse profile", plan["no_prediction"], text[:200])

    def test_damaged_rates(self):
        for rates in ([], [[1]], [[0, 1]], [[2, 1], [1, 1]], [["x", 1]], [[1, -1]], [[1, 0]], [[10**11, 1]]):
            kernel = {**self.profiled["kernels"][0], "experts_seconds_per_weight": rates}
            text = json.dumps({**self.profiled, "kernels": [kernel]})
            plan = self.planned("--profile", self.write("damaged.json", text.encode()))
            self.assertIn("experts_seconds_per_weight", plan["no_prediction"], rates)

    def test_batch(self):
        flags = ("--batch", "--ctx", "256", "--prompt-tokens", "40", "-n", "60")
        budget = least_budget("--ctx", "256") + (96 << 20)
        plan = self.planned(*flags, "--ram", budget)
        best = plan["best"]
        self.assertEqual(plan["assumed"]["prompt_tokens"], 40)
        self.assertEqual({one["depth"] for one in plan["candidates"]}, {0})
        for one in plan["candidates"]:
            self.assertLessEqual(one["memory_bytes"], plan["ram_budget_bytes"])
            self.assertLessEqual(one["tokens_per_s"], best["tokens_per_s"])
            self.assertAlmostEqual(sum(one["critical_s"].values()), one["iteration_s"], delta=1e-6 * one["iteration_s"])
            self.assertEqual(one["limit"], max(one["critical_s"], key=one["critical_s"].get))
        self.assertLessEqual(plan["layer_by_layer"]["tokens_per_s"], best["tokens_per_s"])
        self.assertEqual(self.planned(*flags, "--ram", budget, "--sequences", "3")["best"]["sequences"], 3)
        self.assertLessEqual(self.planned(*flags, "--requests", "5")["best"]["sequences"], 5)
        smaller = self.planned(*flags, "--ram", budget, "--kv", "q8_0")["candidates"]
        self.assertGreaterEqual(max(one["sequences"] for one in smaller), best["sequences"])

    def test_batch_with_a_draft(self):
        flags = ("--batch", "-d", Setup.draft(), "--ctx", "256", "--prompt-tokens", "40", "-n", "60")
        plan = self.planned(*flags, "--acceptance", "0.9")
        self.assertEqual({one["depth"] for one in plan["candidates"]}, set(range(11)))
        self.assertEqual(plan["without_draft"]["depth"], 0)
        self.assertGreaterEqual(plan["best"]["tokens_per_s"], plan["without_draft"]["tokens_per_s"])
        self.assertEqual(self.planned(*flags, "--draft-depth", "3")["best"]["depth"], 3)
        text = self.plan(*flags).out.decode()
        for words in ("at once", "what limits", "against no draft", "layer by layer", "by depth", "by sequences"):
            self.assertIn(words, text)

    def test_batch_on_the_papers_machines(self):
        def plan(*arguments):
            return execute([Setup.binary, "plan", *arguments])

        long = json.loads(plan("--hardware", "a30", "--prompt-tokens", "566", "-n", "1024", "--json").out)
        self.assertEqual(max(one["sequences"] for one in long["candidates"]), 824)
        long = json.loads(plan("--hardware", "rtx4090d", "--prompt-tokens", "566", "-n", "1024", "--json").out)
        self.assertEqual(max(one["sequences"] for one in long["candidates"]), 515)
        text = plan("--hardware", "a30", "--stack", "paper", "--prompt-tokens", "512", "-n", "128").out.decode()
        for words in ("target, pipelined", "4.390", "1.53x in the paper"):
            self.assertIn(words, text)
        self.assert_refused(plan("--hardware", "h100"), USAGE, "a30")
        self.assert_refused(plan("--hardware", "a30", "--ram", "8G"), USAGE, "--ram")

    def test_batch_refusals(self):
        self.assert_refused(execute([Setup.binary, "plan", "--batch"]), USAGE, "no model")
        self.assert_refused(self.plan("--batch", "--ram", "1M"), MEMORY, "at least --ram")
        self.assert_refused(self.plan("--batch", "--prompt-tokens", "4000", "-n", "4000", "--ctx", "512"), USAGE, "512")
        self.assert_refused(self.plan("--batch", "--kv", "q3"), USAGE, "q3")
        self.assert_refused(self.plan("--batch", "--sequences", "0"), USAGE, "--sequences")
        self.assert_refused(self.plan("--batch", "--profile", self.folder / "none"), FILE, "drafthorse profile")

    def test_refusals(self):
        self.assert_refused(execute([Setup.binary, "plan"]), USAGE, "no model")
        self.assert_refused(self.plan("--ram", "1M"), MEMORY, "at least --ram")
        self.assert_refused(self.plan("--acceptance", "1.5"), USAGE, "--acceptance")
        self.assert_refused(self.plan("--draft-depth", "65"), USAGE, "65")
        self.assert_refused(self.plan(model=self.folder / "none"), FILE, "none")

    def test_text(self):
        text = self.plan("-d", Setup.draft()).out.decode()
        for words in ("memory, of a budget", "expert slots", "first token", "tokens/s", "what limits", "what would help"):
            self.assertIn(words, text)
