"""Damaged models: refused in one sentence or generated from, never a crash and never a hang."""

import collections
import concurrent.futures
import random
import struct
import subprocess

import gguf_layout
from support import CliTestCase, Setup, least_budget, run

FINE, FILE = 0, 3
WORKERS = 2
LIMIT_S = 60
BLOCK = 4096

# kind -> whether the damage is always visible
KINDS = {
    "bits flipped in the metadata": False,
    "bytes replaced in the metadata": False,
    "bits flipped in the tensor table": False,  # another type may still be a sensible one
    "tensor table misplaced": True,
    "bits flipped in the payload": False,
    "bytes replaced in the payload": False,
    "truncated": True,
    "zeroed blocks": False,
    "swapped blocks": False,
    "inflated count": True,
}


class Damager:
    """Makes damaged copies of a model. The same seed makes the same ones."""

    def __init__(self, data):
        self.data = data
        self.layout = gguf_layout.read_layout(data)

    def damaged(self, kind, number):
        rng = random.Random(f"{Setup.seed} {kind} {number}")
        data = bytearray(self.data)
        layout = self.layout
        header, table, tensors = (
            (0, layout.table_begin),
            (layout.table_begin, layout.table_end),
            layout.table_end,
        )
        payload = (tensors, layout.data_end)
        if kind == "bits flipped in the metadata":
            # Half of it where the numbers are, before the long lists.
            self.flip(data, rng, (0, 1200) if number % 2 else header)
        elif kind == "bytes replaced in the metadata":
            self.replace(data, rng, (0, 1200) if number % 2 else header)
        elif kind == "bits flipped in the tensor table":
            self.flip(data, rng, table)
        elif kind == "tensor table misplaced":
            at = rng.randrange(*table)
            data[at:at] = bytes([rng.randrange(256)]) * rng.randint(1, 31)
        elif kind == "bits flipped in the payload":
            for _ in range(200):
                self.flip(data, rng, payload)
        elif kind == "bytes replaced in the payload":
            for _ in range(200):
                self.replace(data, rng, payload)
        elif kind == "truncated":
            del data[rng.randrange(rng.choice((64, layout.table_end, layout.data_end))) :]
        elif kind == "zeroed blocks":
            for _ in range(rng.randint(1, 50)):
                at = self.block(rng)
                data[at : at + BLOCK] = bytes(len(data[at : at + BLOCK]))
        elif kind == "swapped blocks":
            for _ in range(rng.randint(1, 50)):
                a, b = self.block(rng), self.block(rng)
                data[a : a + BLOCK], data[b : b + BLOCK] = data[b : b + BLOCK], data[a : a + BLOCK]
        elif kind == "inflated count":
            counts = [gguf_layout.TENSOR_COUNT_OFFSET, gguf_layout.KEY_COUNT_OFFSET]
            at = rng.choice([*counts, *layout.array_counts.values(), *layout.tensor_dimensions])
            (count,) = struct.unpack_from("<Q", data, at)
            more = rng.choice(
                (count + 1, count * 2, count + (1 << 20), 1 << 32, 1 << 40, 1 << 63, (1 << 64) - 1)
            )
            struct.pack_into("<Q", data, at, more)
        else:
            raise ValueError(kind)
        return data

    def block(self, rng):
        return rng.randrange(len(self.data) // BLOCK) * BLOCK

    @staticmethod
    def flip(data, rng, within):
        data[rng.randrange(*within)] ^= 1 << rng.randrange(8)

    @staticmethod
    def replace(data, rng, within):
        data[rng.randrange(*within)] = rng.randrange(256)


class Damage(CliTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.budget = least_budget(model=Setup.target("fine")) + (6 << 20)

    def run_with(self, path):
        # Few experts fit, so that most of the file is read again and again.
        return run("-p", "def main():", "-n", "8", "--ram", self.budget, model=path, timeout=LIMIT_S)

    def outcome(self, damager, kind, number):
        """The run with a damaged copy, or None for a hang."""
        path = self.folder / f"{kind.replace(' ', '-')}-{number}.gguf"
        path.write_bytes(damager.damaged(kind, number))
        try:
            return self.run_with(path)
        except subprocess.TimeoutExpired:
            return None
        finally:
            path.unlink()

    def test_every_kind(self):
        damager = Damager(Setup.target("fine").read_bytes())
        whole = self.run_with(Setup.target("fine"))
        self.assert_fine(whole)
        self.assertTrue(whole.out)
        kinds = list(KINDS)
        cases = [(kinds[i % len(kinds)], i // len(kinds)) for i in range(Setup.copies)]
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as workers:
            results = list(workers.map(lambda case: self.outcome(damager, *case), cases))
        counts = collections.defaultdict(collections.Counter)
        for (kind, _), result in zip(cases, results):
            counts[kind]["hang" if result is None else result.code] += 1
        print(f"\n  {len(cases)} damaged copies, seed {Setup.seed}")
        for kind, codes in counts.items():
            print(
                f"  {kind:<34}", ", ".join(f"{code}: {count}" for code, count in sorted(codes.items(), key=str))
            )
        for (kind, number), result in zip(cases, results):
            with self.subTest(kind=kind, number=number):
                self.assertIsNotNone(result, "hangs")
                self.assertIn(result.code, [FILE] if KINDS[kind] else [FINE, FILE], result)
                if result.code == FILE:
                    self.assert_refused(result, FILE, f"{number}.gguf")
