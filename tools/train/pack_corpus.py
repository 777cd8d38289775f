#!/usr/bin/env python3
"""Gathers the corpus, trains the tokenizer on it (or takes a model's), and packs both into a folder that can be
carried to another machine.

What it writes:
  tokens.npz       train and held_out: token streams (uint16), files end to end, each behind the end-of-text token
  tokenizer.json   byte-level BPE, for the tokenizers library
  corpus.json      where the text came from, how much of it, and the held-out files

Needs numpy and tokenizers; --vocabulary-of needs gguf and torch.
"""

import argparse
import collections
import json
import random
import sys
from pathlib import Path

import corpus
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the folder to write")
    parser.add_argument("--vocab", type=int, default=4096, help="tokens of the vocabulary (default %(default)s)")
    parser.add_argument(
        "--vocabulary-of", metavar="GGUF", help="pack with this model's vocabulary, to train the model on"
    )
    parser.add_argument(
        "--python", action="append", metavar="DIR", help="a Python library; may be given again (default: this Python's)"
    )
    parser.add_argument("--no-tests", action="store_true", help="leave the libraries' tests out")
    parser.add_argument("--manuals", default="/usr/share/man", metavar="DIR", help="manual pages (default %(default)s)")
    parser.add_argument("--docs", default="/usr/share/doc", metavar="DIR", help="documents (default %(default)s)")
    parser.add_argument(
        "--prose", type=float, default=0.25, help="largest share of manuals and documents (default %(default)s)"
    )
    parser.add_argument("--megabytes", type=float, default=200, help="most text to take (default %(default)s)")
    return parser.parse_args(argv)


def gather(args):
    """The files, in an order shuffled the same way each time."""
    libraries = args.python or [corpus.default_python_library()]
    python = [file for library in libraries for file in corpus.python_files(library, not args.no_tests)]
    allowed = corpus.debian_files()
    prose = [*corpus.manual_pages(args.manuals, allowed), *corpus.documents(args.docs, allowed)]
    python, prose = (list(corpus.without_copies(files)) for files in (python, prose))
    for files in (python, prose):
        random.Random(1).shuffle(files)
    python = up_to(python, args.megabytes * 1e6 * (1 - args.prose))
    prose = up_to(prose, sum(len(file.text) for file in python) * args.prose / (1 - args.prose))
    files = python + prose
    random.Random(2).shuffle(files)
    return files


def up_to(files, most):
    """The first files of at most so many characters in all."""
    taken, size = [], 0
    for file in files:
        if size + len(file.text) <= most:
            taken.append(file)
            size += len(file.text)
    return taken


def train_tokenizer(texts, vocab):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main(argv=None):
    args = parse_arguments(argv)
    tokenizer = None
    if args.vocabulary_of:
        from gguf_model import GgufModel

        tokenizer = GgufModel(args.vocabulary_of).tokenizer
        args.vocab = tokenizer.get_vocab_size()
    if not 257 <= args.vocab <= 65536:
        sys.exit("the vocabulary: from 257 (bytes and end of text) to 65536 tokens, which are packed in 16 bits")
    files = gather(args)
    parts = {
        "train": [file for file in files if not file.is_held_out],
        "held_out": [file for file in files if file.is_held_out],
    }
    if not all(parts.values()):
        sys.exit(f"only {len(files)} usable files were found: too few to train on and to hold out")
    if tokenizer is None:
        tokenizer = train_tokenizer((file.text for file in parts["train"]), args.vocab)
        if tokenizer.get_vocab_size() != args.vocab:
            sys.exit(f"the text yields only {tokenizer.get_vocab_size()} tokens; choose a smaller --vocab")

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    streams, summary = {}, {}
    for part, members in parts.items():
        encoded = tokenizer.encode_batch([file.text for file in members])
        streams[part] = np.concatenate([np.array([0] + one.ids, np.uint16) for one in encoded])
        kinds = collections.defaultdict(lambda: {"files": 0, "characters": 0, "tokens": 0})
        for file, one in zip(members, encoded):
            kinds[file.kind]["files"] += 1
            kinds[file.kind]["characters"] += len(file.text)
            kinds[file.kind]["tokens"] += len(one.ids) + 1
        summary[part] = dict(kinds)
    np.savez_compressed(out / "tokens.npz", **streams)
    (out / "corpus.json").write_text(
        json.dumps(
            {
                "vocab": args.vocab,
                "summary": summary,
                "held_out": sorted(f"{file.kind}/{file.name}" for file in parts["held_out"]),
            },
            indent=1,
        )
    )
    for part, kinds in summary.items():
        for kind, counts in kinds.items():
            print(
                f"{part:8} {kind:8} {counts['files']:6} files {counts['characters'] / 1e6:7.2f} M characters "
                f"{counts['tokens'] / 1e6:6.2f} M tokens"
            )
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
