"""A device beside the CPU as a user meets it: a server of ggml's RPC backend over the CPU stands in for a GPU."""

import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import unittest

from support import PROMPT, Setup, execute, run

TOKENS = 24


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class OnDevice(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        port = free_port()
        cls.server = subprocess.Popen([Setup.device_server, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        cls.address = f"127.0.0.1:{port}"
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()
        cls.server.wait()

    def run_there(self, *flags, tokens=TOKENS, prompt=PROMPT):
        return run("--device", "RPC0", "--rpc", self.address, "-p", prompt, "-n", tokens, "--ram", "1G", "--ctx", "256",
                   *flags)

    def succeed_there(self, *flags, **options):
        done = self.run_there(*flags, **options)
        self.assertEqual(done.code, 0, done)
        return done

    def refuse(self, done, code, *words):
        self.assertEqual(done.code, code, done)
        self.assertEqual(done.out, b"", done)
        self.assertEqual(len(done.err.splitlines()), 1, done)
        for word in words:
            self.assertIn(word, done.err)

    def test_devices_are_listed(self):
        listed = execute([Setup.binary, "devices", "--rpc", self.address])
        self.assertEqual(listed.code, 0, listed)
        self.assertRegex(listed.out.decode(), r"(?m)^CPU ")
        self.assertRegex(listed.out.decode(), r"(?m)^RPC0 .* free")
        as_json = json.loads(execute([Setup.binary, "devices", "--rpc", self.address, "--json"]).out)
        self.assertEqual(as_json["schema"], 1)
        self.assertIn("RPC0", [device["name"] for device in as_json["devices"]])

    def test_without_a_device_nothing_changes(self):
        flags = ("-p", PROMPT, "-n", TOKENS, "--drafter", "none", "--ram", "1G")
        self.assertEqual(run(*flags, "--device", "cpu").out, run(*flags).out)

    def test_text_is_that_of_the_cpu(self):
        on_cpu = run("-p", PROMPT, "-n", TOKENS, "--drafter", "none", "--ram", "1G", "--ctx", "256")
        self.assertEqual(self.succeed_there("--drafter", "none").out, on_cpu.out)

    def test_fixed_placement_at_any_depth_and_budget(self):
        text = self.succeed_there("--drafter", "none", "--placement", "fixed").out
        for flags in (("--drafter", "ngram", "--draft-depth", "4"), ("-d", Setup.draft(), "--draft-depth", "8"),
                      ("-d", Setup.draft(), "--vram", "14M"), ("--vram", "8M")):
            self.assertEqual(self.succeed_there("--placement", "fixed", *flags).out, text, flags)

    def test_auto_takes_it(self):
        done = run("--device", "auto", "--rpc", self.address, "-p", PROMPT, "-n", "4", "--ram", "1G")
        self.assertEqual(done.code, 0, done)
        self.assertIn("device: RPC0", done.err)

    def test_what_it_did_is_told(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "stats.json"
            explained = pathlib.Path(folder) / "why.txt"
            done = self.succeed_there("--drafter", "none", "--vram", "8M", "--stats", "--stats-file", file, "--explain",
                                      explained)
            device = json.loads(file.read_text())["device"]
            self.assertRegex(explained.read_text(), r"(?m)^ *[\d.]+ (copy|here) +layer \d+ expert \d+: copying takes")
        self.assertIn("memory of RPC0", done.err)
        self.assertRegex(done.err, r"a missing expert of .* is copied in [\d.]+ ms")
        self.assertEqual(device["name"], "RPC0")
        self.assertLessEqual(sum(part["bytes"] for part in device["memory"]), 8 << 20)
        self.assertGreater(device["link_bytes_per_s"], 0)
        layers = device["decode_layers"]
        self.assertEqual(len(layers), 8)
        self.assertGreater(sum(layer["hits"] for layer in layers), 0)
        missing = sum(layer["copied"] + layer["on_host"] for layer in layers)
        self.assertGreater(missing, 0)
        self.assertEqual(sum(layer["bytes_copied"] for layer in layers) > 0, sum(layer["copied"] for layer in layers) > 0)

    def batch_there(self, requests, *flags, device="RPC0"):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            (path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests))
            done = execute([Setup.binary, "batch", "-m", Setup.target(), "--in", path / "in.jsonl", "--out",
                            path / "out.jsonl", "--stats-file", path / "stats.json", "--ram", "1G", "--ctx", "256",
                            "--device", device, "--rpc", self.address, *flags])  # fmt: skip
            if done.code == 0:
                lines = [json.loads(line) for line in (path / "out.jsonl").read_text().splitlines()]
                self.texts = {one["custom_id"]: one["response"]["body"]["choices"][0]["text"] for one in lines}
                self.stats = json.loads((path / "stats.json").read_text())
            return done

    def test_batch(self):
        requests = [{"custom_id": str(i), "url": "/v1/completions", "body": {"prompt": prompt, "max_tokens": 16}}
                    for i, prompt in enumerate((PROMPT, "class Queue:", "import os\n", "def main():"))]  # fmt: skip
        self.assertEqual(self.batch_there(requests, device="cpu").code, 0)
        on_cpu = self.texts
        self.assertIsNone(self.stats["device"])
        for flags in (("--vram", "34M"), ("-d", Setup.draft(), "--draft-depth", "3"), ("--kv", "q8_0", "--sequences", "2")):
            done = self.batch_there(requests, *flags)
            self.assertEqual(done.code, 0, done)
            self.assertIn("device: RPC0", done.err)
            if "--kv" not in flags:
                self.assertEqual(self.texts, on_cpu)
            self.assertEqual(self.stats["device"]["name"], "RPC0")
            if "--vram" in flags:
                experts = self.stats["device"]["experts"]
                self.assertGreater(experts["copied"] + experts["on_host"] + experts["prefetched"], 0)

    def test_statistics_without_a_device(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "stats.json"
            self.assertEqual(run("-p", PROMPT, "-n", "2", "--ram", "1G", "--stats-file", file).code, 0)
            self.assertIsNone(json.loads(file.read_text())["device"])

    def test_plan_tells_what_lies_where(self):
        plan = [Setup.binary, "plan", "-m", Setup.target(), "--ram", "1G", "--device", "RPC0", "--rpc", self.address]
        text = execute([*map(str, plan), "--vram", "40M"])
        self.assertEqual(text.code, 0, text)
        self.assertIn("memory of RPC0, of a budget of 40.0 MiB", text.out.decode())
        self.assertIn("experts that fit there", text.out.decode())
        as_json = json.loads(execute([*map(str, plan), "--vram", "40M", "--json"]).out)
        self.assertLessEqual(as_json["device"]["booked_bytes"], 40 << 20)
        self.refuse(execute([*map(str, plan), "--vram", "1M"]), 4, "at least --vram")

    def test_too_little_memory_names_the_least(self):
        refused = self.run_there("--vram", "2M")
        self.refuse(refused, 4, "RPC0", "at least --vram")
        least = re.search(r"at least --vram (\d+)M", refused.err).group(1)
        self.succeed_there("--vram", f"{least}M")
        self.refuse(self.run_there("--vram", f"{int(least) - 1}M"), 4, "at least --vram")

    def test_wrong_flags(self):
        self.refuse(self.run_there("--vram", "much"), 2, "much")
        self.refuse(self.run_there("--vram", "8"), 2, "8G or 8M")
        self.refuse(self.run_there("--placement", "fixed", "--draft-depth", "16", "-d", Setup.draft()), 2, "15")
        self.refuse(self.batch_there([], "--placement", "fixed"), 2, "--placement")
        self.refuse(run("--device", "CUDA3", "-p", "x"), 2, "CUDA3", "auto, cpu")
        self.refuse(run("--device", "RPC0", "--rpc", "127.0.0.1:1", "-p", "x"), 2, "no server answers")
        self.refuse(execute([Setup.binary, "devices", "--rpc", "nowhere"]), 2, "host:port")

    # The comparison for machines with a GPU, small, so that it cannot rot.
    def test_bench(self):
        bench = pathlib.Path(__file__).resolve().parents[2] / "bench/gpu.py"
        with tempfile.TemporaryDirectory() as folder:
            lines = pathlib.Path(folder) / "gpu.jsonl"
            done = execute([sys.executable, str(bench), "--device", "RPC0", "--rpc", self.address, "--models", "tiny",
                            "--shares", "25", "--tokens", "8", "--requests", "3", "--trace", folder, "--ram", "1G", "--binary", Setup.binary, "--widen",
                            Setup.widen, "--out", str(lines)], timeout=200)
            self.assertEqual(done.code, 0, done)
            rows = [json.loads(line) for line in lines.read_text().splitlines()]
            traces = [json.loads(trace.read_text()) for trace in pathlib.Path(folder).glob("tiny-25-*.json")]
            self.assertEqual(len(traces), 3)
            for trace in traces:
                link = [one for one in trace["traceEvents"] if one["ph"] == "X" and "ahead" in one["args"]]
                self.assertGreater(len(link), 0)
                for one, other in zip(link, link[1:]):
                    self.assertGreaterEqual(other["ts"], one["ts"] + one["dur"] - 0.01)
        self.assertEqual({row["share"] for row in rows}, {25, 100})
        batches = [row for row in rows if row["contender"].startswith("batch")]
        self.assertEqual((len(rows), len(batches)), (2 * 13 + 3, 3))
        self.assertTrue(any(row["ahead"] > 0 for row in rows if row["contender"] == "depth 4, sp-moe"))
        self.assertTrue(all(row["tokens_per_s"] > 0 for row in batches))
        self.assertIn("ms/token", done.out.decode())
