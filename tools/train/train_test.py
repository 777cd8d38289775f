"""Trains every shape at a tiny size for a few steps, exports it, and compares with libllama on the file.

Skips itself (exit 77) where torch is not installed; tools/train/setup installs it.
"""

import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import unittest
import unittest.mock
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "drafthorse"
VENV_PYTHON = CACHE / "train/venv/bin/python"

if importlib.util.find_spec("torch") is None:
    if not VENV_PYTHON.exists() or Path(sys.prefix) == VENV_PYTHON.parents[1]:
        print("torch is not installed: tools/train/setup does it; skipped")
        sys.exit(77)
    os.execv(VENV_PYTHON, [str(VENV_PYTHON), "-B", *sys.argv])

import card
import corpus
import figures
import gguf
import numpy as np
import optimizer
import pack_corpus
import pair_model
import torch
import train
from export_gguf import TYPES, write_model
from gguf_model import GgufModel
from shapes import SHAPES, fine_llama

TINY = [name for name in SHAPES if name.endswith("-tiny")]
PROMPT = "def mean(values):\n    return sum(values) / len(values)\n\n\ndef main(argv):\n    print(mean("
torch.set_num_threads(1)


def quietly(function, *args):
    """Runs it and returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        function(*args)
    return output.getvalue()


class StopAfterSteps:
    """Stands in for train.Stop: lets three steps pass."""

    def __init__(self, minutes):
        self.steps = 0

    def __bool__(self):
        self.steps += 1
        return self.steps > 3


class WithCorpus(unittest.TestCase):
    """A little of the standard library, packed once."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.corpus = Path(cls.folder.name) / "corpus"
        arguments = [str(cls.corpus), "--vocab", "512", "--prose", "0", "--megabytes", "0.6", "--no-tests"]
        cls.printed = quietly(pack_corpus.main, arguments)

    def scratch(self, name):
        return str(Path(self.folder.name) / name)

    def train(self, shape, out, *more, tokens=1024):
        lengths = [part for phase in train.PHASES for part in (f"--{phase}-tokens", str(tokens))]
        common = ["--corpus", str(self.corpus), "--out", self.scratch(out), "--seq", "32", "--batch", "4"]
        return quietly(train.main, [shape, *common, "--device", "cpu", "--f32", *lengths, *more])


class EveryShape(WithCorpus):
    def test_libllama_computes_the_same(self):
        for name in TINY:
            self.train(name, name, "--export", self.scratch(name + "-files"), "--export-type", "F32")
            for part in ("draft", "target"):
                with self.subTest(shape=name, part=part):
                    model = GgufModel(self.scratch(f"{name}-files/{part}.gguf"))
                    self.sharpen(model)
                    self.compare_with_libllama(model, getattr(SHAPES[name], part))

    def sharpen(self, model):
        """Larger weights, so that attention, its positions and the routers matter; hardly trained they are all even."""
        for name, tensor in model.params.items():
            if "attn_" in name and tensor.ndim > 1:
                tensor *= 4 if "output" not in name else 2
            if "ffn_gate_inp" in name or "ffn_down" in name:
                tensor *= 4
        vocabulary = json.loads((self.corpus / "tokenizer.json").read_text())
        params = {name: tensor for name, tensor in model.params.items() if name != "output.weight"}
        model.path = self.scratch("sharp.gguf")
        write_model(model.path, "sharp", model.shape, params, vocabulary, TYPES["F32"])

    def compare_with_libllama(self, model, shape):
        for field in ("architecture", "layers", "experts", "used", "shared_ff", "leading_dense", "mla", "heads"):
            self.assertEqual(getattr(model.shape, field), getattr(shape, field))
        import llama_cpp

        wide = llama_cpp.GGML_TYPE_F32
        llama = llama_cpp.Llama(
            model.path, n_ctx=128, n_threads=1, logits_all=True, verbose=False, type_k=wide, type_v=wide
        )
        tokens = model.encode(PROMPT)
        self.assertEqual(llama.tokenize(PROMPT.encode(), add_bos=True), tokens)
        llama.eval(tokens)
        theirs = np.array(llama.scores[: len(tokens)])
        with torch.no_grad():
            ours = pair_model.forward(model.shape, model.params, torch.tensor([tokens])).logits[0].numpy()
        scale = np.abs(ours).max()
        self.assertLess(np.abs(ours - theirs).max(), 2e-3 * scale)
        self.assertEqual(ours[-1].argmax(), theirs[-1].argmax())


class Training(WithCorpus):
    def parameters(self, out, phase="target"):
        return torch.load(Path(self.scratch(out)) / f"{phase}.pt", weights_only=True)

    def test_learns(self):
        self.train("fine-tiny", "learns", "--phases", "draft", tokens=24000)
        first, last = (self.parameters("learns", "draft")["history"][i]["held_out"] for i in (0, -1))
        self.assertLess(last, first - 0.3)
        self.assertLess(last, np.log(512) - 1)

    def test_goes_on_as_if_never_stopped(self):
        self.train("fine-tiny", "whole", tokens=1280)
        with unittest.mock.patch.object(train, "Stop", StopAfterSteps):
            for _ in range(40):
                printed = self.train("fine-tiny", "stopped", tokens=1280)
                if "stopped in phase" not in printed:
                    break
            else:
                self.fail("it never ended")
        for phase in train.PHASES:
            whole, stopped = self.parameters("whole", phase), self.parameters("stopped", phase)
            self.assertEqual(whole["tokens"], stopped["tokens"])
            for name, tensor in whole["params"].items():
                self.assertTrue(torch.equal(tensor, stopped["params"][name]), f"{phase} {name}")

    def test_finished_phases_are_skipped(self):
        self.train("fine-tiny", "twice")
        self.assertIn("target is done", self.train("fine-tiny", "twice"))

    def test_an_exported_pair_is_trained_on(self):
        files = self.scratch("exported")
        self.train("deepseek1-tiny", "first", "--export", files, "--export-type", "F32")
        more = ("--begin-with", files, "--phases", "target,distill", "--rate", "0")
        self.train("deepseek1-tiny", "more", *more, tokens=512)
        for phase, before in (("target", "target"), ("distill", "distill")):
            wanted, given = self.parameters("first", before), self.parameters("more", phase)
            self.assertEqual(given["tokens"], 512)
            self.assertEqual(wanted["params"].keys(), given["params"].keys())
            for name, tensor in wanted["params"].items():
                self.assertTrue(torch.equal(tensor, given["params"][name]), f"{phase} {name}")

    def test_an_exported_target_teaches(self):
        files = self.scratch("teacher")
        self.train("fine-tiny", "taught", "--export", files, "--export-type", "F32")
        again = ("--begin-with", files, "--phases", "distill")
        self.train("fine-tiny", "by-file", *again)
        # As from checkpoints of the same models, in a folder of their own.
        self.train("fine-tiny", "by-checkpoint", "--begin-with", files, "--phases", "target", "--rate", "0", tokens=128)
        self.train("fine-tiny", "by-checkpoint", "--begin-with", files, "--phases", "target,distill", tokens=128)
        self.train("fine-tiny", "by-file-short", *again, tokens=128)
        one, other = self.parameters("by-checkpoint", "distill"), self.parameters("by-file-short", "distill")
        for name, tensor in one["params"].items():
            self.assertTrue(torch.equal(tensor, other["params"][name]), name)
        self.assertEqual(self.parameters("by-file", "distill")["tokens"], 1024)

    def test_a_pair_is_trained_on_in_its_own_vocabulary(self):
        files = self.scratch("own")
        self.train("fine-tiny", "own", "--phases", "draft,target", "--export", files)
        self.corpus, first = Path(self.scratch("other-corpus")), self.corpus
        self.addCleanup(setattr, self, "corpus", first)
        pack = [str(self.corpus), "--no-tests", "--megabytes", "1", "--prose", "0.4"]
        quietly(pack_corpus.main, [*pack, "--vocab", "512"])
        with self.assertRaisesRegex(SystemExit, "has other tokens than the corpus"):
            self.train("fine-tiny", "foreign", "--begin-with", files)
        quietly(pack_corpus.main, [*pack, "--vocabulary-of", f"{files}/target.gguf"])
        with self.assertRaisesRegex(SystemExit, "is not of the shape to train"):
            self.train("mixtral-tiny", "shapeless", "--begin-with", files)
        self.train("fine-tiny", "kin", "--begin-with", files)

    def test_distilling_follows_the_target_not_the_text(self):
        self.train("fine-tiny", "near", "--phases", "draft,target", tokens=4000)
        path = Path(self.scratch("near")) / "target.pt"
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["params"]["output_norm.weight"] *= -1  # now it prefers what the text never has
        torch.save(checkpoint, path)
        self.train("fine-tiny", "near", tokens=4000)
        rows = figures.held_out_rows(np.load(self.corpus / "tokens.npz")["held_out"], 32, 64)[:, :-1]
        shape = SHAPES["fine-tiny"]
        distances = []
        with torch.no_grad():
            wanted = pair_model.forward(shape.target, checkpoint["params"], rows).logits.log_softmax(-1)
            for phase in ("draft", "distill"):
                given = pair_model.forward(shape.draft, self.parameters("near", phase)["params"], rows).logits
                distances.append((wanted.exp() * (wanted - given.log_softmax(-1))).sum(-1).mean().item())
        self.assertLess(distances[1], distances[0] / 2)

    def test_wrong_use_is_refused(self):
        self.train("fine-tiny", "one", "--phases", "draft")
        with self.assertRaisesRegex(SystemExit, "of shape fine-tiny, not mixtral-tiny"):
            self.train("mixtral-tiny", "one")
        with self.assertRaisesRegex(SystemExit, "train the draft first"):
            self.train("fine-tiny", "none", "--phases", "target")
        with self.assertRaisesRegex(SystemExit, "vocabulary of 512, shape fine-cpu one of 4096"):
            self.train("fine-cpu", "none")
        self.corpus, corpus_folder = Path(self.scratch("nothing")), self.corpus
        self.addCleanup(setattr, self, "corpus", corpus_folder)
        with self.assertRaisesRegex(SystemExit, "has no tokens.npz"):
            self.train("fine-tiny", "none")


class Models(unittest.TestCase):
    def test_experts_in_turn_and_padded_are_the_same(self):
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(37, 16, generator=generator, requires_grad=True)
        scores = torch.rand(37, 7, generator=generator)
        scores[:, 3] = -1  # nobody's
        weights, chosen = scores.topk(3, -1)
        matrices = [torch.randn(*sizes, generator=generator) for sizes in ((7, 12, 16), (7, 12, 16), (7, 16, 12))]
        results = []
        for run in (pair_model.experts_in_turn, pair_model.experts_padded):
            leaves = [x, *(matrix.clone().requires_grad_() for matrix in matrices)]
            output = run(leaves[0], chosen, weights, *leaves[1:])
            results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
        for one, other in zip(*results):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        plain = sum(
            weights[:, r, None] * torch.stack([pair_model.gated_ffn(x[t], *(m[e] for m in matrices))
                                               for t, e in enumerate(chosen[:, r].tolist())])
            for r in range(3)
        )  # fmt: skip
        torch.testing.assert_close(results[0][0], plain, rtol=1e-4, atol=1e-4)

    def test_upcycled_target_begins_as_its_draft(self):
        common = dict(layers=2, width=32, heads=2, kv_heads=1, head_dim=16, vocab=64)
        shape = fine_llama("whole", ff=48, expert_ff=48, **common)
        draft = pair_model.new_parameters(shape.draft, 1)
        noise, pair_model.EXPERT_NOISE = pair_model.EXPERT_NOISE, 0.0
        self.addCleanup(setattr, pair_model, "EXPERT_NOISE", noise)
        target = pair_model.upcycle(draft, shape.draft, shape.target, 2)
        tokens = torch.arange(40).reshape(2, 20)
        ours = pair_model.forward(shape.draft, draft, tokens).logits
        theirs = pair_model.forward(shape.target, target, tokens).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)

    def test_centered_routers_favour_no_expert(self):
        shape = SHAPES["fine-tiny"].target
        params = pair_model.new_parameters(shape, 1)
        tokens = torch.randint(0, 512, (4, 32), generator=torch.Generator().manual_seed(3))
        pair_model.center_routers(shape, params, tokens)
        with torch.no_grad():
            trace = pair_model.forward(shape, params, tokens, with_trace=True).trace
        self.assertLess(trace[0].router_logits.mean(0).abs().max(), 1e-5)
        self.assertGreater(trace[0].router_logits.std(), 0.05)

    def test_large_shapes_keep_the_draft_small(self):
        for name, shape in SHAPES.items():
            if name in TINY:
                continue
            self.assertLessEqual(5 * size(shape.draft), size(shape.target), name)

    def test_muon_steps_are_nearly_orthogonal(self):
        x = optimizer.orthogonal(torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(2)))
        singular = torch.linalg.svdvals(x)
        self.assertGreater(singular.min(), 0.5)
        self.assertLess(singular.max(), 1.4)


def size(shape):
    return sum(tensor.numel() for tensor in pair_model.new_parameters(shape, 1).values())


class Corpus(WithCorpus):
    def test_held_out_files_are_not_trained_on(self):
        summary = json.loads((self.corpus / "corpus.json").read_text())
        held_out = {name.split("/", 1)[1] for name in summary["held_out"]}
        files = {file.name: file for file in corpus.python_files(corpus.default_python_library(), with_tests=False)}
        self.assertTrue(held_out)
        for name in held_out:
            self.assertTrue(files[name].is_held_out)
        streams = np.load(self.corpus / "tokens.npz")
        counts = {part: sum(kind["tokens"] for kind in summary["summary"][part].values()) for part in streams.files}
        self.assertEqual(counts, {part: len(streams[part]) for part in streams.files})

    def test_manuals_lose_their_markup(self):
        page = '.TH X 1\n.\\" secret\n.SH "NAME"\nx \\- does \\fBit\\fR\n.PP\n'
        page += ".B bold\ntext\\&.\n.de Vb\nmacro\n..\n.ft\n"
        self.assertEqual(corpus.plain_manual(page), "NAME\nx - does it\n\nbold\ntext.\n")

    def test_only_free_packages_are_taken(self):
        with tempfile.TemporaryDirectory() as folder:
            dpkg = Path(folder)
            (dpkg / "info").mkdir()
            packages = (
                ("good", "doc", "Debian Team <team@lists.debian.org>"),
                ("elsewhere", "doc", "Vendor <someone@example.com>"),
                ("unfree", "non-free/doc", "Debian Team <team@lists.debian.org>"),
            )
            status = ""
            for name, section, maintainer in packages:
                status += f"Package: {name}\nSection: {section}\nMaintainer: {maintainer}\nArchitecture: all\n\n"
                (dpkg / f"info/{name}.list").write_text(f"/usr/share/doc/{name}/README\n")
            (dpkg / "status").write_text(status)
            self.assertIn("/usr/share/doc/good/README", corpus.debian_files(dpkg))
            for name in ("elsewhere", "unfree"):
                self.assertNotIn(f"/usr/share/doc/{name}/README", corpus.debian_files(dpkg))

    def test_a_machine_without_packages_has_no_prose(self):
        self.assertEqual(corpus.debian_files("/nonexistent"), set())


class Card(WithCorpus):
    def test_figures_of_a_pair(self):
        self.train("fine-tiny", "pair", "--export", self.scratch("pair-files"), "--export-type", "Q8_0")
        models = [self.scratch(f"pair-files/{part}.gguf") for part in ("target", "draft")]
        arguments = [*models, "--corpus", str(self.corpus), "--most-prompts", "2", "--tokens", "20"]
        result = json.loads(quietly(card.main, arguments))
        self.assertEqual(result["target"]["types"], ["F32", "Q8_0"])
        self.assertEqual(result["routing_on_prompts"]["experts_touched_by_window"]["1"], 4)
        self.assertEqual(len(result["routing_on_prompts"]["layers"]), 2)
        self.assertLess(abs(result["held_out"]["target_loss"] - np.log(512)), 2)
        shares = list(result["on_prompts"]["draft"]["accepted_by_depth"].values())
        self.assertEqual(shares, sorted(shares, reverse=True))
        self.assertIn("| layer |", quietly(card.main, [*arguments, "--markdown"]))

    def test_a_model_agrees_with_itself(self):
        self.train("fine-tiny", "self", "--export", self.scratch("self-files"), "--export-type", "F16")
        target = self.scratch("self-files/target.gguf")
        result = json.loads(quietly(card.main, [target, target, "--most-prompts", "2", "--tokens", "20"]))
        self.assertEqual(result["on_prompts"]["draft"]["same_argmax"], 1.0)
        self.assertAlmostEqual(result["on_prompts"]["acceptance_at_temperature_1"], 1.0, places=3)
        for layer in result["routing_on_prompts"]["layers"]:
            self.assertEqual(layer["foretold"]["draft"], [1.0, 1.0, 1.0, 1.0])

    def test_by_hand(self):
        agreements = [np.array([True, True, False, True])]
        shares = figures.accepted_by_depth(agreements)
        self.assertEqual((shares[1], shares[2]), (0.75, 1 / 3))
        self.assertEqual(figures.overlap(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 5], [4, 3]])), 0.75)


class Export(WithCorpus):
    def test_rows_that_fill_no_block_stay_wide(self):
        shape = SHAPES["fine-tiny"].draft
        params = pair_model.new_parameters(shape, 1)
        params["blk.0.ffn_up.weight"] = params["blk.0.ffn_up.weight"][:, :40]
        vocabulary = json.loads((self.corpus / "tokenizer.json").read_text())
        path = write_model(self.scratch("odd.gguf"), "odd", shape, params, vocabulary, TYPES["Q8_0"])
        types = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
        self.assertEqual(types["blk.0.ffn_up.weight"], gguf.GGMLQuantizationType.F32)
        self.assertEqual(types["blk.0.ffn_gate.weight"], gguf.GGMLQuantizationType.Q8_0)


if __name__ == "__main__":
    unittest.main()
