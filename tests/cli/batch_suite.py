"""`drafthorse batch`: formats, bad requests, interrupted jobs, and texts that are those of `drafthorse run`."""

import json
import random
import re
import resource
import signal
import subprocess
import time

from support import PROMPT, CliTestCase, Setup, execute, least_budget, measured_machine, run, without_file_privileges

FAILED, USAGE, FILE, MEMORY, SOME_FAILED, INTERRUPTED = 1, 2, 3, 4, 5, 130
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


def completion(name, prompt=PROMPT, **body):
    return {"custom_id": name, "method": "POST", "url": COMPLETION, "body": {"model": "any", "prompt": prompt, **body}}


def chat(name, *messages, **body):
    """Messages: what the user says, or pairs of role and content."""
    pairs = [("user", message) if isinstance(message, str) else message for message in messages]
    listed = [{"role": role, "content": content} for role, content in pairs]
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": {"model": "any", "messages": listed, **body}}


def as_lines(requests):
    """Bytes and strings are lines as they stand."""
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in requests]
    return b"".join(line + b"\n" for line in lines)


class BatchTestCase(CliTestCase):
    def setUp(self):
        self.out = self.folder / "results.jsonl"
        self.addCleanup(self.out.unlink, missing_ok=True)

    def command(self, requests, *flags, out=None, model=None):
        path = self.folder / "requests.jsonl"
        if requests is not None:
            path.write_bytes(requests if isinstance(requests, bytes) else as_lines(requests))
            self.addCleanup(path.unlink, missing_ok=True)
        return [Setup.binary, "batch", "-m", str(model or Setup.target()), "--in", str(path), "--out",
                str(out or self.out), *map(str, flags)]

    def batch(self, requests, *flags, out=None, model=None, timeout=120, **options):
        return execute(self.command(requests, *flags, out=out, model=model), timeout=timeout, **options)

    def results(self, text=None):
        """By custom_id, or the number of the line; whole lines, each once, in valid UTF-8."""
        text = self.out.read_bytes() if text is None else text
        self.assertTrue(text == b"" or text.endswith(b"\n"))
        found = {}
        for line in text.decode("utf-8").splitlines():
            result = json.loads(line)
            key = result["line"] if result["custom_id"] is None else result["custom_id"]
            self.assertNotIn(key, found)
            found[key] = result
        return found

    def text_of(self, result):
        self.assertEqual(result["response"]["status_code"], 200, result)
        choice = result["response"]["body"]["choices"][0]
        return choice["message"]["content"] if "message" in choice else choice["text"]

    def texts(self):
        return {name: self.text_of(result) for name, result in self.results().items()}

    def error_of(self, result):
        self.assertGreaterEqual(result["response"]["status_code"], 400, result)
        self.assertIsNone(result["error"])
        return result["response"]["body"]["error"]


class Formats(BatchTestCase):
    def test_results_are_as_openai_has_them(self):
        requests = [chat("a", "def main():", max_tokens=6), completion("b", max_tokens=5, temperature=1, seed=4)]
        self.assert_fine(self.batch(requests))
        found = self.results()
        self.assertEqual(set(found), {"a", "b"})
        ids = set()
        for name, kind, prefix in (("a", "chat.completion", "chatcmpl-"), ("b", "text_completion", "cmpl-")):
            result = found[name]
            self.assertEqual(list(result), ["id", "custom_id", "response", "error"])
            self.assertIsNone(result["error"])
            response = result["response"]
            self.assertEqual(response["status_code"], 200)
            body = response["body"]
            self.assertEqual(body["object"], kind)
            self.assertTrue(body["id"].startswith(prefix))
            self.assertLess(abs(body["created"] - time.time()), 300)
            self.assertEqual(body["model"], Setup.target().name)
            usage = body["usage"]
            self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
            self.assertGreater(usage["prompt_tokens"], 2)
            self.assertEqual(len(body["choices"]), 1)
            self.assertEqual(body["choices"][0]["index"], 0)
            ids |= {result["id"], body["id"], response["request_id"]}
        self.assertEqual(len(ids), 6)
        message = found["a"]["response"]["body"]["choices"][0]["message"]
        self.assertEqual(message["role"], "assistant")
        self.assertEqual(found["a"]["response"]["body"]["usage"]["completion_tokens"], 6)
        self.assertEqual(found["a"]["response"]["body"]["choices"][0]["finish_reason"], "length")
        self.assertEqual(found["b"]["response"]["body"]["seed"], 4)
        self.assertNotIn("seed", found["a"]["response"]["body"])

    def test_texts_are_those_of_run(self):
        """Twenty requests at once, each against a run of its own."""
        common = {"max_tokens": 40}
        cases = []  # (request, run's flags)
        for i, line in enumerate((Setup.models / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:8]):
            prompt = json.loads(line)["text"]
            flags = ["--temp", "0.9", "--seed", str(i)] if i % 2 else []
            body = {"temperature": 0.9, "seed": i} if i % 2 else {}
            cases.append((completion(f"completion {i}", prompt, **common, **body), ["-p", prompt, *flags]))
        for i, message in enumerate(("def main():", "Write a loop.", "x", "Ünïcödé <|im_end|> \N{SNOWMAN}", "a\nb\n")):
            cases.append((chat(f"chat {i}", message, temperature=1, seed=i, top_k=40, top_p=0.9, **common),
                          ["--chat", "-p", message, "--temp", "1", "--seed", str(i), "--top-k", "40", "--top-p", "0.9"]))
        cases += [
            (completion("stop", stop=["PipeHandle", "nowhere"], max_tokens=80), ["-p", PROMPT, "--stop", "PipeHandle"]),
            (completion("one stop", stop="\n", max_tokens=80), ["-p", PROMPT, "--stop", "\n"]),
            (completion("json", "settings = ", response_format={"type": "json_object"}, temperature=1.2, seed=5, **common),
             ["-p", "settings = ", "--json", "--temp", "1.2", "--seed", "5"]),
            (completion("min-p", min_p=0.1, temperature=1, seed=3, repeat_penalty=1.3, repeat_last_n=16, **common),
             ["-p", PROMPT, "--min-p", "0.1", "--temp", "1", "--seed", "3", "--repeat-penalty", "1.3",
              "--repeat-last-n", "16"]),
            (completion("huge seed", temperature=1, seed=2**64 - 1, **common),
             ["-p", PROMPT, "--temp", "1", "--seed", str(2**64 - 1)]),
            (chat("system", ("system", "Be brief."), "def main():", **common),
             ["--chat", "--system", "Be brief.", "-p", "def main():"]),
            (completion("to the end", "x", ignore_eos=True, temperature=1.5, seed=2), ["-p", "x", "--temp", "1.5",
                                                                                      "--seed", "2", "--ignore-eos"]),
        ]
        self.assertEqual(len(cases), 20)
        expected = {}
        for request, flags in cases:
            limit = request["body"].get("max_tokens")
            result = run(*flags, "--ctx", "256", *(["-n", limit] if limit else []))
            self.assert_fine(result)
            expected[request["custom_id"]] = result.out.decode("utf-8", "replace")
        requests = [request for request, _ in cases]
        drafting = ["-d", Setup.draft()]
        for flags in ([], drafting, [*drafting, "--draft-depth", "3", "--sequences", "5"], ["--sequences", "1"],
                      ["--regime", "stream"], ["--regime", "cache"], ["--regime", "layered"]):
            random.Random(len(flags)).shuffle(requests)
            self.out.unlink(missing_ok=True)
            self.assert_fine(self.batch(requests, "--ctx", "256", *flags))
            texts = self.texts()
            for name, text in expected.items():
                self.assertEqual(texts[name], text, (name, flags))
        reasons = {name: result["response"]["body"]["choices"][0]["finish_reason"]
                   for name, result in self.results().items()}
        self.assertEqual(reasons["stop"], "stop")
        self.assertEqual(reasons["to the end"], "length")
        self.assertEqual(reasons["completion 0"], "length")

    def test_models_of_every_shape(self):
        """Planned and run: many small experts, a shared one, layers without any."""
        measured = measured_machine(self.folder, "f32,q8_0,q5_0,q4_0")
        for folder in sorted(path.parent for path in Setup.models.glob("*/target.gguf")):
            model, draft = folder / "target.gguf", folder / "draft.gguf"
            prompts = [PROMPT, "import os\n", "x"]
            expected = {}
            for prompt in prompts:
                alone = run("-p", prompt, "-n", "12", "--ctx", "256", "--ignore-eos", model=model)
                self.assert_fine(alone)
                expected[prompt] = alone.out.decode("utf-8", "replace")
            for flags in (["--ctx", "256"], ["--ctx", "256", "-d", draft]):
                least = least_budget(*flags, model=model)
                for ram in ([], ["--ram", least + (24 << 20)]):
                    with self.subTest(model=folder.name, flags=flags, ram=ram):
                        self.out.unlink(missing_ok=True)
                        requests = [completion(prompt, prompt, max_tokens=12, ignore_eos=True) for prompt in prompts]
                        self.assert_fine(self.batch(requests, *flags, *ram, model=model))
                        self.assertEqual(self.texts(), expected)
                        self.assert_fine(execute([Setup.binary, "plan", "--batch", "-m", model, *map(str, flags + ram),
                                                  "--prompt-tokens", "20", "-n", "12"], env=measured))

    def test_flags_are_for_what_requests_do_not_say(self):
        requests = [completion("flags"), completion("says", temperature=0, max_tokens=30, stop="nowhere"),
                    chat("system", "def main():")]
        flags = ["-n", 20, "--temp", "0.8", "--seed", "6", "--stop", "PipeHandle", "--system", "Be brief.", "--chat-template",
                 "chatml"]
        self.assert_fine(self.batch(requests, *flags))
        texts = self.texts()
        self.assertEqual(texts["flags"].encode(), run("-p", PROMPT, *flags[:8]).out)
        self.assertEqual(texts["says"].encode(), run("-p", PROMPT, "-n", 30).out)
        self.assertEqual(texts["system"].encode(), run("--chat", "-p", "def main():", *flags).out)

    def test_without_a_seed_each_has_its_own_and_says_so(self):
        requests = [completion(name, max_tokens=20) for name in "abc"]
        self.assert_fine(self.batch(requests, "--temp", "1"))
        first = self.texts()
        self.assertEqual(len(set(first.values())), 3)
        seed = self.results()["b"]["response"]["body"]["seed"]
        self.assertEqual(run("-p", PROMPT, "-n", 20, "--temp", "1", "--seed", seed).out.decode(), first["b"])
        self.out.unlink()
        self.assert_fine(self.batch(requests[::-1], "--temp", "1"))
        self.assertEqual(self.texts(), first)

    def test_a_prompt_of_tokens(self):
        self.assert_fine(self.batch([completion("a", [10, 11, 12], max_tokens=4)]))
        self.assertEqual(self.results()["a"]["response"]["body"]["usage"]["prompt_tokens"], 3)

    def test_a_chat_of_several_turns(self):
        turns = [("system", "Be brief."), "def add(a, b):", ("assistant", " return a + b"), "and subtract?"]
        parts = [*turns[:-1], ("user", [{"type": "text", "text": "and "}, {"type": "text", "text": "subtract?"}])]
        self.assert_fine(self.batch([chat("a", *turns, max_tokens=12), chat("b", *parts, max_tokens=12)]))
        texts = self.texts()
        self.assertEqual(texts["a"], texts["b"])
        plain = "Be brief.\n\nUser: def add(a, b):\nAssistant: return a + b\nUser: and subtract?\nAssistant:"
        self.assertEqual(texts["a"].encode(), run("-p", plain, "-n", 12, "--stop", "\nUser:").out)

    def test_keys_and_values_in_fewer_bits(self):
        requests = [completion(f"{i}", PROMPT * (i + 1), max_tokens=40, temperature=0.7, seed=i) for i in range(4)]
        self.assert_fine(self.batch(requests, "--kv", "q8_0", "-d", Setup.draft()))
        for i, text in enumerate(self.texts()[str(i)] for i in range(4)):
            alone = run("-p", PROMPT * (i + 1), "-n", 40, "--temp", "0.7", "--seed", i, "--kv", "q8_0")
            self.assert_fine(alone)
            self.assertEqual(text.encode(), alone.out)

    def test_standard_input_and_output(self):
        requests = [completion(f"{i}", max_tokens=4) for i in range(3)]
        arguments = self.command(None, "-q", out="-")
        arguments[arguments.index("--in") + 1] = "-"
        piped = execute(arguments, stdin=as_lines(requests))
        self.assert_fine(piped)
        self.assertEqual(piped.err, "")
        self.assertEqual(set(self.results(piped.out)), {"0", "1", "2"})
        self.assert_fine(self.batch(requests))
        self.assertEqual({name: self.text_of(result) for name, result in self.results(piped.out).items()}, self.texts())

    def test_summary_and_statistics(self):
        stats = self.folder / "stats.json"
        self.addCleanup(stats.unlink, missing_ok=True)
        requests = [completion(f"{i}", max_tokens=10) for i in range(6)]
        result = self.batch(requests, "-d", Setup.draft(), "--draft-depth", 2, "--stats", "--stats-file", stats, "--ram",
                            "600M")
        self.assert_fine(result)
        self.assertRegex(result.err, r"(?m)^6 of 6 requests done$")
        self.assertRegex(result.err, r"(?m)^60 tokens in .*: [\d.]+ tokens/s, [\d.]+ end to end; prompts \d+ tokens$")
        self.assertRegex(result.err, r"(?m)^memory: .* of a budget of 600\.0 MiB$")
        self.assertIn("memory budget", result.err)
        figures = json.loads(stats.read_text(encoding="utf-8"))
        self.assertEqual((figures["schema"], figures["requests"], figures["done"], figures["failed"]), (1, 6, 6, 0))
        self.assertEqual(figures["answered_generated_tokens"], 60)
        self.assertEqual(figures["generated_tokens"], 60)
        self.assertLessEqual(figures["peak_rss_bytes"], figures["ram_budget_bytes"])
        self.assertGreater(figures["drafted_tokens"], 0)
        self.assertGreater(figures["busy_s"], 0)
        self.assertLess(figures["busy_s"], figures["seconds"])

    def test_iterations_and_trace(self):
        paths = {name: self.folder / name for name in ("iterations", "trace", "explained", "stats")}
        for path in paths.values():
            self.addCleanup(path.unlink, missing_ok=True)
        requests = [completion(f"{i}", max_tokens=6 + i) for i in range(6)]
        result = self.batch(requests, "-d", Setup.draft(), "--draft-depth", 2, "--iterations-file", paths["iterations"],
                            "--trace", paths["trace"], "--explain", paths["explained"], "--stats-file", paths["stats"])
        self.assert_fine(result)
        text = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
        lines = [json.loads(line) for line in text["iterations"].splitlines()]
        stats = json.loads(text["stats"])
        self.assertEqual([line["iteration"] for line in lines], list(range(1, stats["iterations"] + 1)))
        for key in ("generated_tokens", "drafted_tokens", "accepted_tokens", "prompt_tokens", "bytes_read"):
            self.assertEqual(sum(line[key] for line in lines), stats[key], key)
        self.assertAlmostEqual(sum(line["s"] for line in lines), stats["busy_s"], delta=1e-3)
        for line in lines:
            parts = sum(line[key] for key in ("draft_s", "pass_s", "head_s"))
            self.assertLessEqual(parts, line["s"] + 1e-4)
        events = json.loads(text["trace"])["traceEvents"]
        spans = [event["name"] for event in events if event["ph"] == "X"]
        self.assertEqual(spans.count("verify"), stats["iterations"])
        self.assertEqual(spans.count("head"), stats["iterations"])
        self.assertEqual(spans.count("draft"), sum(line["drafted_tokens"] > 0 for line in lines))
        self.assertEqual(len(re.findall(r"(?m)^ *[\d.]+ depth  ", text["explained"])), stats["iterations"])

    def test_iterations_that_cannot_be_written(self):
        result = self.batch([completion("a")], "--iterations-file", self.folder)
        self.assert_refused(result, FILE, str(self.folder))


class BadRequests(BatchTestCase):
    def test_each_has_its_error_and_the_rest_goes_on(self):
        long_prompt = "x = 1\n" * 400
        bad = {
            "n": completion("n", n=2),
            "tools": chat("tools", "a", tools=[{"type": "function"}]),
            "url": {**completion("url"), "url": "/v1/embeddings"},
            "method": {**completion("method"), "method": "GET"},
            "no body": {"custom_id": "no body", "url": CHAT},
            "long": completion("long", long_prompt),
            "long chat": chat("long chat", long_prompt),
            "empty": chat("empty"),
            "token": completion("token", [1, 10**6]),
            "type": completion("type", max_tokens="many"),
            "typo": completion("typo", max_token=5),
            "grammar": completion("grammar", response_format={"type": "json_object"}, ignore_eos=True),
        }
        nameless = [b"{", b"[1, 2]", b"\xff\xfe", b'{"custom_id": 7}', b'"' + b"x" * 100000, b"[" * 20000, b"nul \x00"]
        good = [completion("first", max_tokens=5), chat("last", "def main():", max_tokens=5)]
        requests = [good[0], *nameless, b"", b"   ", *bad.values(), good[1]]
        result = self.batch(requests, "--ctx", 512)
        self.assertEqual(result.code, SOME_FAILED, result)
        self.assertIn(f"{len(bad) + len(nameless)} failed", result.err)
        found = self.results()
        self.assertEqual(set(found), {"first", "last", *bad, *range(2, 2 + len(nameless))})
        self.assertEqual(self.text_of(found["first"]).encode(), run("-p", PROMPT, "-n", 5).out)
        self.text_of(found["last"])
        for name, one in found.items():
            if name in ("first", "last"):
                continue
            error = self.error_of(one)
            self.assertEqual(one["response"]["status_code"], 400)
            self.assertEqual(error["type"], "invalid_request_error")
            self.assertTrue(error["message"] and error["message"].isprintable() and len(error["message"]) < 300, error)
        for name, param in (("n", "n"), ("tools", "tools"), ("url", "url"), ("type", "max_tokens"), ("long", "prompt"),
                            ("typo", "max_token"), ("empty", "messages"), ("token", "prompt")):
            self.assertEqual(self.error_of(found[name])["param"], param)
        for name in ("long", "long chat"):
            self.assertEqual(self.error_of(found[name])["code"], "context_length_exceeded")
            self.assertIn("512", self.error_of(found[name])["message"])

    def test_nothing_but_bad_ones_needs_no_model(self):
        result = self.batch([b"{", completion("n", n=2)], model=self.folder / "none.gguf")
        self.assertEqual(result.code, SOME_FAILED, result)
        self.assertEqual(set(self.results()), {1, "n"})

    def test_a_custom_id_twice(self):
        requests = [completion("a"), completion("b"), b"", chat("a", "x")]
        self.assert_refused(self.batch(requests), USAGE, "lines 1 and 4", "'a'")
        self.assertFalse(self.out.exists())

    def test_long_lines_and_many_values(self):
        requests = [completion("text", "x" * (9 << 20)), completion("values", [1] * 300000),
                    completion("good", max_tokens=3)]
        result = self.batch(requests, "--ram", "600M")
        self.assertEqual(result.code, SOME_FAILED, result)
        self.assertEqual(set(self.results()), {1, 2, "good"})


class Usage(BatchTestCase):
    def test_what_is_missing_or_wrong(self):
        good = as_lines([completion("a", max_tokens=2)])
        path = self.write("good.jsonl", good)
        for arguments, code, *said in (
            ([], USAGE, "-m"),
            (["-m", Setup.target()], USAGE, "--in"),
            (["-m", Setup.target(), "--in", path], USAGE, "--out"),
            (["-m", Setup.target(), "--in", self.folder / "none", "--out", self.out], FILE, "none"),
            (["-m", Setup.target(), "--in", self.folder, "--out", self.out], FILE, self.folder, "folder"),
            (["-m", Setup.target(), "--in", self.write("empty", b""), "--out", self.out], FILE, "no requests"),
            (["-m", Setup.target(), "--in", path, "--out", self.folder], FILE, self.folder),
            (["-m", Setup.target(), "--in", path, "--out", self.folder / "no" / "where"], FILE, "where"),
            (["-m", Setup.target(), "--in", path, "--out", path], USAGE, "same file"),
            (["-m", Setup.target(), "--in", path, "--out", path, "--resume"], USAGE, "same file"),
            (["-m", Setup.target(), "--in", path, "--out", "-", "--resume"], USAGE, "nothing to resume"),
            (["-m", self.folder / "none.gguf", "--in", path, "--out", self.out], FILE, "none.gguf"),
            (["-m", Setup.target(), "--in", path, "--out", self.out, "--sequences", "0"], USAGE, "--sequences"),
            (["-m", Setup.target(), "--in", path, "--out", self.out, "-n", "0"], USAGE, "--tokens"),
            (["-m", Setup.target(), "--in", path, "--out", self.out, "--regime", "steam"], USAGE, "stream"),
            (["-m", Setup.target(), "--in", path, "--out", self.out, "--kv", "q4"], USAGE, "q8_0"),
            (["-m", Setup.target(), "--in", path, "--out", self.out, "--accept", "rejection"], USAGE, "--accept"),
            (["-m", Setup.target(), "--in", path, "--out", self.out, "--ram", "1M"], MEMORY, "--ram"),
            (["-m", Setup.target(), "--in", path, "--out", self.out, "--temp", "-1"], USAGE, "temperature"),
            (["-m", Setup.target(), "--in", path, "--out", self.out, "--stats-file", self.folder], FILE, self.folder),
            (["-m", Setup.target(), "--in", path, "--out", self.out, "--chat-template", "none"], USAGE, "none"),
            (["-m", Setup.target(), "--in", path, "--out", self.out, "--grammar",
              self.write("grammar", b"root ::= (")], USAGE, "grammar"),
            (["-m", Setup.target(), "--in", path, "--out", self.out, "--drafter", "resident"], USAGE, "resident"),
        ):
            self.assert_refused(execute([Setup.binary, "batch", *map(str, arguments)]), code, *said)
            self.out.unlink(missing_ok=True)
        self.assertEqual(path.read_bytes(), good)

    def test_lists(self):
        for flag, name in (("--regime", "stream"), ("--drafter", "ngram"), ("--isa", "portable"), ("--io", "uring"),
                           ("--chat-template", "chatml")):
            result = execute([Setup.binary, "batch", flag, "list"])
            self.assert_fine(result)
            self.assertIn(name, result.out.decode().split())

    def test_where_nothing_can_be_written(self):
        requests = [completion("a", max_tokens=2), completion("b", max_tokens=2)]
        full = self.batch(requests, out="/dev/full")
        self.assertEqual(full.code, FAILED, full)
        self.assertIn("drafthorse: /dev/full: cannot be written (No space left on device)", full.err)
        closed = self.write("closed", b"")
        closed.chmod(0o400)
        self.assert_refused(self.batch(requests, out=closed, preexec_fn=without_file_privileges), FILE, closed)

    def test_a_disk_that_fills_up_leaves_whole_lines(self):
        requests = [completion(f"{i}", max_tokens=20) for i in range(8)]

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

        result = self.batch(requests, preexec_fn=limit)
        self.assertEqual(result.code, FAILED, result)
        self.assertIn("--resume", result.err)
        self.assertIn("File too large", result.err)
        self.assertIn(len(self.results()), range(1, 8))
        self.assert_fine(self.batch(None, "--resume"))
        self.assertEqual(len(self.results()), 8)


class Resuming(BatchTestCase):
    requests = [completion(f"r{i}", max_tokens=3 + i) for i in range(6)]

    def setUp(self):
        super().setUp()
        self.assert_fine(self.batch(self.requests))
        self.whole = self.out.read_bytes()
        self.lines = self.whole.splitlines(keepends=True)

    def test_what_is_there_is_kept(self):
        expected = self.texts()
        for kept in (self.lines[:2], self.lines[::2], [], self.lines[:3] + [self.lines[4][:50]], [self.lines[0][:1]]):
            self.out.write_bytes(b"".join(kept))
            self.assert_fine(self.batch(None, "--resume"))
            self.assertEqual(self.texts(), expected)
            whole = [line for line in kept if line.endswith(b"\n")]
            self.assertTrue(self.out.read_bytes().startswith(b"".join(whole)))

    def test_where_all_is_done_no_model_is_needed(self):
        result = self.batch(None, "--resume", "--draft", self.folder / "none.gguf")
        self.assert_fine(result)
        self.assertIn("6 of 6 requests done, 6 of them before", result.err)
        self.assertEqual(self.out.read_bytes(), self.whole)

    def test_with_nothing_there_it_begins(self):
        self.out.unlink()
        self.assert_fine(self.batch(None, "--resume"))
        self.assertEqual(len(self.results()), 6)

    def test_without_the_flag_results_are_safe(self):
        self.assert_refused(self.batch(None), USAGE, "not empty", "--resume")
        self.assertEqual(self.out.read_bytes(), self.whole)

    def test_results_of_something_else(self):
        other = [completion("r0"), completion("other")]
        self.assert_refused(self.batch(other, "--resume"), USAGE, "line 2", "'r1'", "another --out")
        self.assert_refused(self.batch(self.requests, "--resume", model=Setup.draft()), USAGE, "target.gguf")
        for text in (b"notes\n", b"notes", self.lines[0] * 2, b"{}\n" + self.whole, self.lines[0][:50] + b"\n" + self.whole):
            self.out.write_bytes(text)
            self.assert_refused(self.batch(None, "--resume"), USAGE, "another --out")
            self.assertEqual(self.out.read_bytes(), text)

    def test_failures_are_kept_or_tried_again(self):
        requests = [*self.requests, completion("bad", n=2), b"{"]
        result = self.batch(requests, "--resume")
        self.assertEqual(result.code, SOME_FAILED, result)
        both = self.out.read_bytes()
        again = self.batch(None, "--resume")
        self.assertEqual(again.code, SOME_FAILED, again)
        self.assertEqual(self.out.read_bytes(), both)
        # Mended, one of them succeeds now.
        requests[6] = completion("bad", max_tokens=3)
        retried = self.batch(requests, "--retry-errors")
        self.assertEqual(retried.code, SOME_FAILED, retried)
        found = self.results()
        self.assertEqual(set(found), {*(f"r{i}" for i in range(6)), "bad", 8})
        self.text_of(found["bad"])
        self.assertTrue(self.out.read_bytes().startswith(self.whole))
        self.assertEqual([path.name for path in self.folder.glob("results*")], ["results.jsonl"])

    def test_two_at_once(self):
        requests = [completion(f"r{i}", max_tokens=2000, ignore_eos=True) for i in range(6)]
        self.out.unlink()
        with subprocess.Popen(self.command(requests), stderr=subprocess.DEVNULL) as first:
            deadline = time.monotonic() + 60
            while not self.out.exists():
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.01)
            time.sleep(0.1)
            for flag in ("--resume", "--retry-errors"):
                self.assert_refused(self.batch(None, flag), FILE, "another process")
            first.kill()
        self.assertEqual(first.returncode, -signal.SIGKILL)


class Stopping(BatchTestCase):
    def requests(self, count=80):
        """Of mixed lengths, with seeds and stop texts; long enough to be stopped in the middle."""
        random_ = random.Random(1)
        made = []
        for i in range(count):
            body = {"max_tokens": random_.choice((1, 5, 20, 60, 120)), "seed": i, "temperature": 0.8 * (i % 2)}
            if i % 7 == 0:
                body["stop"] = ["return", "3"]
            prompt = PROMPT * random_.choice((1, 2, 8))
            made.append(chat(f"r{i}", prompt, **body) if i % 5 == 0 else completion(f"r{i}", prompt, **body))
            if i % 20 == 10:
                made.append(b"not a request")
        return made

    def wait_for_results(self, process, count):
        deadline = time.monotonic() + 60
        while process.poll() is None:
            if self.out.exists() and self.out.read_bytes().count(b"\n") >= count:
                return
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.002)

    def test_ctrl_c_says_how_to_go_on(self):
        requests = [completion(f"r{i}", max_tokens=20 if i < 3 else 100000, ignore_eos=True) for i in range(8)]
        with subprocess.Popen(self.command(requests, "--ctx", 16384), stderr=subprocess.PIPE) as process:
            self.wait_for_results(process, 3)
            process.send_signal(signal.SIGINT)
            error = process.communicate(timeout=60)[1].decode()
        self.assertEqual(process.returncode, INTERRUPTED, error)
        self.assertRegex(error, r"(?m)^3 of 8 requests done$")
        self.assertRegex(error, r"(?m)^interrupted; the same command with --resume goes on")
        self.assertEqual(set(self.results()), {"r0", "r1", "r2"})

    def test_killed_fifty_times(self):
        """No result lost, none twice, and the texts are those of a job that nobody disturbed."""
        flags = ["-d", Setup.draft(), "--ctx", "512"]
        requests = self.requests()
        started = time.monotonic()
        whole = self.batch(requests, *flags)
        took = time.monotonic() - started
        self.assertEqual(whole.code, SOME_FAILED, whole)
        expected = {name: result["response"]["body"].get("choices", result["response"]["status_code"])
                    for name, result in self.results().items()}
        self.assertEqual(len(expected), len(requests))
        self.out.unlink()
        random_ = random.Random(Setup.seed)
        kills = rounds = 0
        while kills < 50:
            rounds += 1
            self.assertLess(rounds, 400)
            before = self.out.read_bytes() if self.out.exists() else b""
            with subprocess.Popen(self.command(None, "--resume", *flags), stderr=subprocess.DEVNULL) as process:
                try:
                    process.wait(timeout=random_.uniform(0, took))
                except subprocess.TimeoutExpired:
                    process.kill()
                    kills += 1
            after = self.out.read_bytes() if self.out.exists() else b""
            whole_lines = before[: before.rfind(b"\n") + 1]
            self.assertTrue(after.startswith(whole_lines), "a result was lost")
            if process.returncode >= 0:  # done: from the beginning
                self.assertEqual(process.returncode, SOME_FAILED)
                self.check_same(expected)
                self.out.unlink()
            elif random_.random() < 0.3 and after:  # as if it had been killed within a line
                cut = random_.randrange(len(after.splitlines()[-1]) + 1)
                self.out.write_bytes(after[: len(after) - cut])
        last = self.batch(None, "--resume", *flags)
        self.assertEqual(last.code, SOME_FAILED, last)
        self.check_same(expected)

    def check_same(self, expected):
        found = self.results()
        self.assertEqual(set(found), set(expected))
        for name, result in found.items():
            body = result["response"]["body"]
            self.assertEqual(body.get("choices", result["response"]["status_code"]), expected[name], name)


class ManyRequests(BatchTestCase):
    def test_all_are_accounted_for_within_the_budget(self):
        """Of mixed lengths, some wrong, some over the context, some with stop texts."""
        random_ = random.Random(3)
        requests, wrong = [], 0
        for i in range(300):
            prompt = PROMPT * random_.choice((1, 1, 2, 5, 15))
            body = {"max_tokens": random_.choice((1, 4, 8, 16, 48)), "temperature": random_.choice((0, 0.7)), "seed": i}
            kind = i % 25
            if kind == 3:
                prompt *= 2000  # over the context
            elif kind == 7:
                body["stop"] = random_.choice(("PipeHandle", ["\n", "x"]))
            elif kind == 11:
                body["n"] = 3
            elif kind == 13:
                body["response_format"] = {"type": "json_object"}
            wrong += kind in (3, 11, 17)
            requests.append(b'{"custom_id":' if kind == 17 else
                            chat(f"r{i}", prompt, **body) if kind % 4 == 0 else completion(f"r{i}", prompt, **body))
        budget = least_budget() + (64 << 20)
        stats = self.folder / "stats.json"
        self.addCleanup(stats.unlink, missing_ok=True)
        result = self.batch(requests, "--ram", budget, "--ctx", 1024, "--stats-file", stats, timeout=240)
        self.assertEqual(result.code, SOME_FAILED, result)
        found = self.results()
        self.assertEqual(len(found), 300)
        self.assertEqual(sum(one["response"]["status_code"] != 200 for one in found.values()), wrong)
        figures = json.loads(stats.read_text(encoding="utf-8"))
        self.assertEqual((figures["done"], figures["failed"]), (300, wrong))
        self.assertLessEqual(figures["peak_rss_bytes"], budget)


