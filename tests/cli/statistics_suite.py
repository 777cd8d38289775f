"""The statistics file: one JSON object whose numbers fit together."""

import json
import math
import os

from support import PROMPT, CliTestCase, Setup, least_budget, run

COUNTS = (
    "prompt_tokens", "generated_tokens", "peak_rss_bytes", "ram_budget_bytes", "steps", "drafted_tokens",
    "accepted_tokens", "expert_slots", "experts", "threads", "context", "read_retries",
)  # fmt: skip
NUMBERS = (
    "decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s", "bytes_read_per_token", "acceptance",
    "tokens_per_verification", "stall_s", "hit_rate", "prefill_s", "decode_s", "draft_s", "verify_s",
)  # fmt: skip
LAYER_COUNTS = ("layer", "hits", "in_flight_hits", "misses", "evictions", "bytes_demanded", "bytes_read_ahead")


def refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


class Statistics(CliTestCase):
    def statistics(self, *flags, model=None, tokens="24"):
        path = self.folder / "stats.json"
        result = run("-p", PROMPT, "-n", tokens, "--stats-file", path, *flags, model=model)
        self.addCleanup(path.unlink, missing_ok=True)
        self.assert_fine(result)
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)

    def check_schema(self, stats):
        for key in COUNTS:
            self.assertIs(type(stats[key]), int, key)
            self.assertGreaterEqual(stats[key], 0, key)
        for key in NUMBERS:
            self.assertIn(type(stats[key]), (int, float), key)
            self.assertTrue(math.isfinite(stats[key]) and stats[key] >= 0, key)
        for key in ("model", "draft", "stop", "eviction", "io", "isa"):
            self.assertIs(type(stats[key]), str, key)
        self.assertEqual(stats["schema"], 1)
        self.assertLessEqual(stats["acceptance"], 1)
        self.assertLessEqual(stats["hit_rate"], 1)
        self.assertLessEqual(stats["peak_rss_bytes"], stats["ram_budget_bytes"])
        self.assertLessEqual(stats["accepted_tokens"], stats["drafted_tokens"])
        for entry in stats["memory"]:
            self.assertIs(type(entry["tag"]), str)
            self.assertIs(type(entry["bytes"]), int)
            self.assertGreaterEqual(entry["bytes"], 0)
        tags = [entry["tag"] for entry in stats["memory"]]
        self.assertEqual(len(set(tags)), len(tags))
        self.assertIn("expert slots", tags)
        self.assertLessEqual(sum(entry["bytes"] for entry in stats["memory"]), stats["ram_budget_bytes"])
        for layer in stats["prefill_layers"] + stats["decode_layers"]:
            for key in LAYER_COUNTS:
                self.assertIs(type(layer[key]), int, key)
                self.assertGreaterEqual(layer[key], 0, key)
            self.assertTrue(math.isfinite(layer["stall_s"]) and layer["stall_s"] >= 0)

    def check_sums(self, stats):
        layers = stats["decode_layers"]
        self.assertEqual([layer["layer"] for layer in layers], list(range(8)))
        read = sum(layer["bytes_demanded"] + layer["bytes_read_ahead"] for layer in layers)
        self.assertAlmostEqual(stats["bytes_read_per_token"] * stats["generated_tokens"], read, delta=1)
        there = sum(layer["hits"] + layer["in_flight_hits"] for layer in layers)
        wanted = there + sum(layer["misses"] for layer in layers)
        self.assertAlmostEqual(stats["hit_rate"], there / wanted, places=9)
        self.assertLessEqual(stats["draft_s"] + stats["verify_s"], stats["decode_s"] * 1.001)
        self.assertLessEqual(stats["stall_s"], stats["verify_s"] * 1.001)
        self.assertGreaterEqual(stats["ttft_s"], stats["prefill_s"])
        self.assertAlmostEqual(
            stats["tokens_per_verification"], stats["generated_tokens"] / max(1, stats["steps"]), places=9
        )
        self.assertEqual(sum(stats["depth"]["steps_by_depth"]), stats["steps"])

    def test_without_a_draft(self):
        stats = self.statistics("--drafter", "none")
        self.check_schema(stats)
        self.check_sums(stats)
        self.assertEqual(stats["generated_tokens"], 24)
        self.assertEqual(stats["stop"], "token limit")
        self.assertEqual((stats["drafted_tokens"], stats["acceptance"], stats["draft"]), (0, 0, ""))
        self.assertEqual((stats["drafter"], stats["drafters"]), ("none", []))

    def test_drafters(self):
        budget = least_budget()
        for drafter in ("ngram", "resident"):
            stats = self.statistics("--drafter", drafter, "--draft-depth", "2", "--ram", budget)
            self.check_schema(stats)
            self.check_sums(stats)
            (own,) = stats["drafters"]
            self.assertEqual(own["name"], drafter)
            self.assertGreater(own["drafted_tokens"], 0)
            for key in ("drafted_tokens", "accepted_tokens"):
                self.assertEqual(own[key], stats[key])
            self.assertIn(f"{drafter}, depth 2: as asked for", stats["depth"]["explanation"])
        stats = self.statistics("--ram", budget)
        self.assertEqual([one["name"] for one in stats["drafters"]], ["resident", "ngram"])
        self.assertEqual(sum(one["drafted_tokens"] for one in stats["drafters"]), stats["drafted_tokens"])
        self.assertLessEqual(sum(one["steps"] for one in stats["drafters"]), stats["steps"])

    def test_sharing_the_kv_cache_saves_it(self):
        shared = self.statistics("-d", Setup.target())
        own = self.statistics("-d", Setup.target(), "--drafter", "model")
        self.assertEqual(shared["drafters"][0]["name"], "shared-kv")
        self.assertEqual(own["drafters"][0]["name"], "model")
        self.assertNotIn("draft KV cache", [part["tag"] for part in shared["memory"]])
        self.assertIn("draft KV cache", [part["tag"] for part in own["memory"]])
        self.assertEqual(shared["text_hash"], own["text_hash"])

    def test_with_a_draft(self):
        for depth in ("auto", "0", "1", "8"):
            stats = self.statistics("-d", Setup.draft(), "--draft-depth", depth)
            self.check_schema(stats)
            self.check_sums(stats)
            self.assertEqual(stats["depth"]["policy"], depth)
            self.assertEqual(stats["generated_tokens"], 24)
        self.assertGreater(stats["drafted_tokens"], 0)
        self.assertGreater(stats["acceptance"], 0)

    def test_small_budget(self):
        budget = least_budget(model=Setup.target("fine")) + (4 << 20)
        stats = self.statistics("--ram", budget, "--io", "pread", model=Setup.target("fine"))
        self.check_schema(stats)
        self.check_sums(stats)
        self.assertLess(stats["expert_slots"], stats["experts"])
        self.assertGreater(sum(layer["evictions"] for layer in stats["decode_layers"]), 0)
        self.assertEqual(stats["ram_budget_bytes"], budget)
        self.assertEqual(stats["io"], "pread")

    def test_dense_model(self):
        stats = self.statistics(model=Setup.draft())
        for key in COUNTS + NUMBERS:
            self.assertGreaterEqual(stats[key], 0, key)
        self.assertEqual((stats["experts"], stats["bytes_read_per_token"], stats["stall_s"]), (0, 0, 0))

    def test_nothing_generated(self):
        stats = self.statistics(tokens="0")
        self.check_schema(stats)
        self.assertEqual((stats["generated_tokens"], stats["steps"], stats["decode_tokens_per_s"]), (0, 0, 0))

    def test_full_context(self):
        stats = self.statistics("--ctx", "20", tokens="1000")
        self.check_schema(stats)
        self.check_sums(stats)
        self.assertEqual(stats["stop"], "context full")
        self.assertEqual(stats["context"], 20)

    def test_last_run_replaces_the_file(self):
        path = self.write("stats.json", b"x" * 100_000)
        self.statistics(tokens="1")
        self.assertLess(path.stat().st_size, 50_000)

    def test_path_of_any_bytes(self):
        path = os.fsencode(self.folder) + b"/\xff\xfe.gguf"
        os.symlink(Setup.target(), path)
        self.addCleanup(os.unlink, path)
        stats = self.statistics(model=os.fsdecode(path), tokens="1")
        self.check_schema(stats)
