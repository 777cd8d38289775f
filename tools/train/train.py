#!/usr/bin/env python3
"""Trains a pair of models the way Mistral became Mixtral, in three phases.

  draft    a dense model
  target   upcycled from the draft: each expert begins as rows of its FFN, with noise; trained on with load balancing
  distill  the draft again, now towards the target's distributions, so that the target accepts more of it

Each phase saves its checkpoint in OUT now and then, at its end, and when it is told to stop (SIGTERM, SIGINT, or the
time of --minutes is up). A later run goes on where the checkpoint stands, with the same steps it would have made; a
finished phase is skipped. How far a phase is counts in tokens (--target-tokens) or in seconds it has trained
(--target-minutes, for a machine that is lent by the minute), whichever comes first; the learning rate falls over the
last part of it, so a phase can be cut short by stopping it and going on with fewer tokens.

A pair whose checkpoints are gone can be trained on from its files (--begin-with), in the phases one wants; what a phase
would take from one that is left out it takes from the files, and --export writes what was trained.

Runs on a GPU if there is one (matrix products in BF16), else on the CPU. Needs torch and numpy; --export needs gguf.
"""

import argparse
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from optimizer import Optimizer
from pair_model import center_routers, forward, keep_freed_memory, new_parameters, upcycle
from shapes import SHAPES

PHASES = ("draft", "target", "distill")
WARM_UP = 0.02  # share of a phase over which the learning rate rises
DECAY = 0.4  # share of a phase over which it falls
LEAST_RATE = 0.02  # share of the peak at the end
RATE_OF_PHASE = {"draft": 1.0, "target": 0.7, "distill": 0.5}
HELD_OUT_SEQUENCES = 64
EVALUATIONS = 25  # of a phase
SEED = 1


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--corpus", required=True, metavar="DIR", help="what pack_corpus.py wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the checkpoints")
    parser.add_argument(
        "--begin-with", metavar="DIR", help="train the target.gguf and draft.gguf there on, instead of beginning anew"
    )
    parser.add_argument("--phases", default=",".join(PHASES), help="which to run (default %(default)s)")
    for phase in PHASES:
        parser.add_argument(f"--{phase}-tokens", type=float, default=math.inf, metavar="N", help="in all, such as 6e6")
        parser.add_argument(f"--{phase}-minutes", type=float, default=math.inf, metavar="M", help="in all")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="stop this run after so long")
    parser.add_argument("--export", metavar="DIR", help="write target.gguf and draft.gguf at the end")
    parser.add_argument("--export-type", default="Q8_0", help="type of their matrices (default %(default)s)")
    parser.add_argument("--export-expert-type", help="type of the routed experts' (default: as --export-type)")
    parser.add_argument("--export-draft-type", help="type of the draft's (default: as --export-type)")
    parser.add_argument("--seq", type=int, default=256, help="tokens of a sample (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step (default %(default)s)")
    parser.add_argument("--rate", type=float, default=6e-3, help="peak learning rate (default %(default)s)")
    parser.add_argument("--balance", type=float, default=0.02, help="weight of load balancing (default %(default)s)")
    parser.add_argument("--z-loss", type=float, default=1e-4, help="weight of routers' z-loss (default %(default)s)")
    parser.add_argument("--optimizer", default="muon", choices=("muon", "adam"), help="(default %(default)s)")
    parser.add_argument("--save-minutes", type=float, default=4, metavar="M", help="between (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(here %(default)s)")
    parser.add_argument("--f32", action="store_true", help="no BF16 products")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0: as torch thinks best")
    args = parser.parse_args(argv)
    args.phases = args.phases.split(",")
    for phase in args.phases:
        if phase not in PHASES:
            parser.error(f"--phases: '{phase}' is none of {', '.join(PHASES)}")
        if math.isinf(getattr(args, f"{phase}_tokens")) and math.isinf(getattr(args, f"{phase}_minutes")):
            parser.error(f"--{phase}-tokens or --{phase}-minutes must say how long the phase is")
    return args


def say(line):
    print(time.strftime("%H:%M:%S ") + line, flush=True)


class Data:
    """Samples of the corpus on the device."""

    def __init__(self, folder, seq, batch, device):
        if not (Path(folder) / "tokens.npz").exists():
            sys.exit(f"{folder} has no tokens.npz: make it with pack_corpus.py")
        self.folder = Path(folder)
        streams = np.load(self.folder / "tokens.npz")
        self.train, self.held_out = streams["train"], streams["held_out"]
        self.vocab = json.loads((Path(folder) / "corpus.json").read_text())["vocab"]
        self.seq, self.batch, self.device = seq, batch, device
        if len(self.held_out) < seq + 2 or len(self.train) < seq + 2:
            sys.exit(f"{folder}: fewer tokens than one sample of {seq}")

    def rows(self, stream, starts):
        rows = np.stack([stream[start : start + self.seq + 1] for start in starts]).astype(np.int64)
        return torch.from_numpy(rows).to(self.device, non_blocking=True)

    def training_batch(self, phase, step):
        """The same for the same step, whenever the run was stopped in between."""
        rng = np.random.default_rng([SEED, PHASES.index(phase), step])
        return self.rows(self.train, rng.integers(0, len(self.train) - self.seq - 1, self.batch))

    def held_out_batches(self):
        """The same sequences each time, spread evenly over the held-out files."""
        starts = np.linspace(0, len(self.held_out) - self.seq - 2, HELD_OUT_SEQUENCES).astype(int)
        for first in range(0, HELD_OUT_SEQUENCES, self.batch):
            yield self.rows(self.held_out, starts[first : first + self.batch])


class Stop:
    """Whether the run should end: a signal came or its time is up."""

    def __init__(self, minutes):
        self.end = time.monotonic() + minutes * 60
        self.signalled = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)

    def on_signal(self, *_):
        self.signalled = True

    def __bool__(self):
        return self.signalled or time.monotonic() > self.end


def checkpoint_path(args, phase):
    return Path(args.out) / f"{phase}.pt"


def load_checkpoint(args, phase):
    path = checkpoint_path(args, phase)
    if not path.exists():
        return None
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if checkpoint["shape"] != args.shape:
        sys.exit(f"{path} is of shape {checkpoint['shape']}, not {args.shape}; choose another --out")
    return checkpoint


def exported_parameters(folder, part, shape, data):
    """The parameters of an exported model, whose optimizer state is gone; its text must be cut as the corpus is."""
    from gguf_model import GgufModel

    model = GgufModel(Path(folder) / f"{part}.gguf")
    corpus_tokens = json.loads((data.folder / "tokenizer.json").read_text())["model"]["vocab"]
    if model.tokenizer.get_vocab() != corpus_tokens:
        sys.exit(f"{model.path} has other tokens than the corpus: pack it with --vocabulary-of {model.path}")
    for field in ("architecture", "used", "heads", "kv_heads", "rope_base", "mla"):
        given, wanted = getattr(model.shape, field), getattr(shape, field)
        if given != wanted:
            sys.exit(f"{model.path} is not of the shape to train: {field} is {given}, not {wanted}")
    wanted = new_parameters(shape, SEED)
    params = {name: model.params[name] for name in wanted if name in model.params}
    for name, tensor in wanted.items():
        if name not in params or params[name].shape != tensor.shape:
            sys.exit(f"{model.path} is not of the shape to train: {name} differs")
    return params


class Phase:
    """One phase: its model, what has been trained of it, and how to go on."""

    def __init__(self, args, name, data):
        self.args, self.name, self.data = args, name, data
        pair = SHAPES[args.shape]
        self.shape = pair.target if name == "target" else pair.draft
        self.most_tokens = getattr(args, f"{name}_tokens")
        self.most_seconds = getattr(args, f"{name}_minutes") * 60
        checkpoint = load_checkpoint(args, name)
        params = checkpoint["params"] if checkpoint else self.first_parameters(pair)
        self.params = {key: value.to(args.device).requires_grad_() for key, value in params.items()}
        self.optimizer = Optimizer(self.params, args.optimizer == "muon")
        self.tokens, self.seconds, self.steps, self.history = 0, 0.0, 0, []
        if checkpoint:
            self.optimizer.load_state(checkpoint["optimizer"])
            self.tokens, self.seconds = checkpoint["tokens"], checkpoint["seconds"]
            self.steps, self.history = checkpoint["steps"], checkpoint["history"]
        self.teacher_shape, self.teacher = None, None

    def first_parameters(self, pair):
        if self.args.begin_with and not (self.name == "distill" and "draft" in self.args.phases):
            part = "target" if self.name == "target" else "draft"
            return exported_parameters(self.args.begin_with, part, self.shape, self.data)
        draft = load_checkpoint(self.args, "draft")
        if self.name == "draft":
            return new_parameters(self.shape, SEED)
        if draft is None:
            sys.exit(f"{checkpoint_path(self.args, 'draft')} is missing: train the draft first")
        if self.name == "distill":
            return draft["params"]
        target = upcycle(draft["params"], pair.draft, pair.target, SEED + 1)
        center_routers(pair.target, target, self.data.training_batch("target", 0)[:, :-1].cpu())
        return target

    def load_teacher(self):
        self.teacher_shape = SHAPES[self.args.shape].target
        if self.args.begin_with and "target" not in self.args.phases:
            params = exported_parameters(self.args.begin_with, "target", self.teacher_shape, self.data)
        else:
            target = load_checkpoint(self.args, "target")
            if target is None:
                sys.exit(f"{checkpoint_path(self.args, 'target')} is missing: train the target first")
            params = target["params"]
        self.teacher = {key: value.to(self.args.device) for key, value in params.items()}

    def progress(self):
        return max(self.tokens / self.most_tokens, self.seconds / self.most_seconds)

    def rate(self):
        done = self.progress()
        decay = max(LEAST_RATE, (1 - done) / DECAY)
        return self.args.rate * RATE_OF_PHASE[self.name] * min(1, (done + 1e-4) / WARM_UP, decay)

    def autocast(self):
        return torch.autocast(torch.device(self.args.device).type, torch.bfloat16, enabled=not self.args.f32)

    def losses(self, rows):
        """What is minimized, what is reported, and the output."""
        tokens, wanted = rows[:, :-1], rows[:, 1:]
        with self.autocast():
            output = forward(self.shape, self.params, tokens)
            logits = output.logits.float().flatten(0, 1)
            if self.teacher is not None:
                with torch.no_grad():
                    taught = forward(self.teacher_shape, self.teacher, tokens).logits.float().flatten(0, 1)
                loss = F.cross_entropy(logits, taught.softmax(-1))
            else:
                loss = F.cross_entropy(logits, wanted.flatten())
        return loss + self.args.balance * output.balance + self.args.z_loss * output.z_loss, loss, output

    @torch.no_grad()
    def held_out_loss(self):
        """Mean cross-entropy of the text, and the load of the busiest and idlest expert in shares of even."""
        losses, loads = [], []
        for rows in self.data.held_out_batches():
            with self.autocast():
                output = forward(self.shape, self.params, rows[:, :-1])
            losses.append(F.cross_entropy(output.logits.float().flatten(0, 1), rows[:, 1:].flatten()).item())
            if output.load is not None:
                loads.append(output.load * self.shape.experts)
        load = torch.stack(loads).mean(0) if loads else None
        return float(np.mean(losses)), (load.min().item(), load.max().item()) if loads else None

    def evaluate(self):
        loss, load = self.held_out_loss()
        self.history.append({"tokens": self.tokens, "seconds": round(self.seconds), "held_out": round(loss, 4)})
        busy = f", experts' load {load[0]:.2f} to {load[1]:.2f} of even" if load else ""
        say(f"{self.name} held-out loss {loss:.4f} at {self.tokens / 1e6:.2f} M tokens{busy}")

    def save(self):
        path = checkpoint_path(self.args, self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        torch.save(
            {
                "shape": self.args.shape,
                "params": {key: value.detach().cpu() for key, value in self.params.items()},
                "optimizer": self.optimizer.state(),
                "tokens": self.tokens,
                "seconds": self.seconds,
                "steps": self.steps,
                "history": self.history,
            },
            new,
        )
        os.replace(new, path)

    def run(self, stop):
        """Trains until the phase is done or the run must stop; returns whether it is done."""
        if self.progress() >= 1:
            say(f"{self.name} is done: {self.tokens / 1e6:.2f} M tokens")
            return True
        if self.name == "distill":
            self.load_teacher()
        size = sum(param.numel() for param in self.params.values())
        say(f"{self.name}: {size / 1e6:.2f} M parameters on {self.args.device}, from {self.tokens / 1e6:.2f} M tokens")
        began, first_tokens, mean_loss = time.monotonic(), self.tokens, None
        saved = reported = began
        evaluated = self.progress()
        while self.progress() < 1 and not stop:
            step_began = time.monotonic()
            rows = self.data.training_batch(self.name, self.steps)
            loss, shown, _ = self.losses(rows)
            loss.backward()
            self.optimizer.step(self.rate())
            shown = shown.item()
            self.steps += 1
            self.tokens += rows[:, 1:].numel()
            now = time.monotonic()
            self.seconds += now - step_began
            mean_loss = shown if mean_loss is None else 0.95 * mean_loss + 0.05 * shown
            if not math.isfinite(shown):
                sys.exit(f"{self.name}: the loss is no number any more at step {self.steps}; lower --rate")
            if now - reported > 15:
                reported = now
                speed = (self.tokens - first_tokens) / (now - began)
                say(
                    f"{self.name} {100 * self.progress():5.1f}% {self.tokens / 1e6:7.2f} M tokens, "
                    f"loss {mean_loss:.3f}, rate {self.rate():.1e}, {speed:.0f} tokens/s"
                )
            if self.progress() - evaluated > 1 / EVALUATIONS:
                evaluated = self.progress()
                self.evaluate()
            if time.monotonic() - saved > self.args.save_minutes * 60:
                self.save()
                saved = time.monotonic()
        self.evaluate()
        self.save()
        return self.progress() >= 1


def main(argv=None):
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cpu":
        keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = True
    data = Data(args.corpus, args.seq, args.batch, args.device)
    pair = SHAPES[args.shape]
    if data.vocab != pair.draft.vocab:
        sys.exit(f"{args.corpus} has a vocabulary of {data.vocab}, shape {args.shape} one of {pair.draft.vocab}")
    stop = Stop(args.minutes)
    for name in args.phases:
        if not Phase(args, name, data).run(stop):
            say(f"stopped in phase {name}; the same command goes on")
            break
    if args.export:
        from export_gguf import export_pair

        types = args.export_type, args.export_expert_type, args.export_draft_type
        for path in export_pair(args.shape, args.out, args.corpus, args.export, *types):
            say(f"wrote {path}")


if __name__ == "__main__":
    main()
