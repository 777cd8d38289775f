"""drafthorse against llama.cpp on one file under one real memory limit, alternating, the page cache cold.

Each round takes another prompt and runs every contender on it inside a memory cgroup (version 1 or 2; needs root).
Reported per contender: median and range over the rounds of tokens/s while decoding, bytes read from the disk per
token, the share of decoding during which the disk was busy, and the bandwidth reached over what an O_DIRECT probe of
the same file got in the same minute. Results go to standard output as JSON lines, a table to standard error.

    bench/against_llama.py --model BIG.gguf --limit 1.2G [--draft DRAFT.gguf ...] [--rounds 5] [--tokens 64]
        [--speculative PATH/llama-speculative-simple --peer-depths 3,8]     the peer with the same drafts
    bench/against_llama.py --model BIG.gguf --resident      no limit: everything in memory, no draft
"""

import argparse
import hashlib
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "drafthorse"
SECTOR = 512


def parse_size(text):
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(float(text[:-1]) * units[text[-1].upper()]) if text[-1].upper() in units else int(text)


class Cgroup:
    """A memory cgroup of our own, or none where the limit is 0."""

    def __init__(self, limit):
        self.folder = None
        if not limit:
            return
        v1 = pathlib.Path("/sys/fs/cgroup/memory")
        base = v1 if v1.is_dir() else pathlib.Path("/sys/fs/cgroup")
        self.folder = base / f"drafthorse-bench-{os.getpid()}"
        self.folder.mkdir()
        name = "memory.limit_in_bytes" if v1.is_dir() else "memory.max"
        (self.folder / name).write_text(str(limit))

    def enter(self):
        if self.folder:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self):
        if self.folder:
            self.folder.rmdir()


def disk_of(path):
    """The block device under a file, as a folder of /sys/class/block."""
    device = os.stat(path).st_dev
    folder = pathlib.Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    return folder if (folder / "queue").exists() else folder.parent


def disk_stat(disk):
    """(bytes read, seconds busy) since boot."""
    fields = (disk / "stat").read_text().split()
    return int(fields[2]) * SECTOR, int(fields[9]) / 1000


def drop_cache(path):
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def probe_bandwidth(probe, path):
    """Bytes per second of random O_DIRECT reads of 1 MiB, by the engine's own means."""
    return float(subprocess.run([probe, path], capture_output=True, check=True).stdout)


class Sampler(threading.Thread):
    """Records the disk's counters while a process runs."""

    def __init__(self, disk):
        super().__init__(daemon=True)
        self.disk = disk
        self.samples = []
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.wait(0.01):
            self.samples.append((time.monotonic(), *disk_stat(self.disk)))

    def between(self, start, end):
        """(bytes read, seconds busy) between two times."""
        inside = [sample for sample in self.samples if start <= sample[0] <= end]
        if len(inside) < 2:
            return 0, 0
        return inside[-1][1] - inside[0][1], inside[-1][2] - inside[0][2]


def peer_statistics(said):
    """What llama-speculative-simple reports in the end."""
    number = lambda pattern: float(re.search(pattern, said).group(1))
    generated = int(number(r"decoded +(\d+) tokens"))
    drafted = number(r"n_drafted *= *(\d+)")
    return {"generated_tokens": generated,
            "decode_tokens_per_s": generated / number(r"decoded .* in +([\d.]+) seconds"),
            "ttft_s": number(r"encoded .* in +([\d.]+) seconds"), "peak_rss_bytes": 0,
            "acceptance": number(r"n_accept *= *(\d+)") / max(1, drafted)}


def run_once(command, stats_file, limit, disk):
    """stats_file: None where the process says in the end what it did."""
    group = Cgroup(limit)
    sampler = Sampler(disk)
    sampler.start()
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=group.enter)
        errors = []
        listener = threading.Thread(target=lambda: errors.append(process.stderr.read()))
        listener.start()
        text = process.stdout.read(1)
        first = time.monotonic()
        while chunk := process.stdout.read1(4096):
            text += chunk
            last = time.monotonic()
        listener.join()
        error = errors[0].decode(errors="replace")
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(map(str, command))}\n{error}")
    finally:
        sampler.stopping.set()
        sampler.join()
        group.remove()
    if stats_file:
        stats = json.loads(pathlib.Path(stats_file).read_text())
    else:
        stats = peer_statistics(text.decode(errors="replace") + error)
    read, busy = sampler.between(first, last)
    tokens = max(1, stats["generated_tokens"] - 1)
    return {
        "tokens_per_s": stats["decode_tokens_per_s"],
        "ttft_s": stats["ttft_s"],
        "bytes_per_token": read / tokens,
        "disk_busy": busy / (last - first),
        "disk_bytes_per_s": read / (last - first),
        "stall_share": stats["stall_s"] / stats["decode_s"] if "stall_s" in stats else None,
        "acceptance": stats.get("acceptance"),
        "peak_rss_bytes": stats["peak_rss_bytes"],
        "text_hash": hashlib.sha256(text).hexdigest()[:16],
        "tokens": stats["generated_tokens"],
    }


def contenders(args, prompt, stats_file, budget):
    common = ["-p", prompt, "-n", str(args.tokens), "--ctx", str(args.ctx), "--threads", str(args.threads),
              "--stats-file", stats_file]
    yield "llama.cpp", [args.llama_python, ROOT / "bench/llama_generate.py", "-m", args.model, *common], stats_file
    for draft in args.draft if args.speculative else []:
        for depth in args.peer_depths.split(","):
            yield f"llama.cpp, draft {pathlib.Path(draft).stem}, {depth}", [
                args.speculative, "-m", args.model, "-md", draft, "-p", prompt, "-n", args.tokens, "-c", args.ctx,
                "-t", args.threads, "--temp", 0, "--spec-type", "draft-simple",
                "--spec-draft-n-max", depth], None
    ours = [args.binary, "run", "-m", args.model, "--ram", budget, *common]
    yield "drafthorse", [*ours, "--drafter", "none"], stats_file
    for draft in args.draft:
        yield f"drafthorse, draft {pathlib.Path(draft).stem}", [*ours, "-d", draft], stats_file


def commit():
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", action="append", default=[])
    parser.add_argument("--limit", help="memory limit of every contender; default: the file's size over 2.5")
    parser.add_argument("--resident", action="store_true", help="no limit, no draft")
    parser.add_argument("--speculative", help="llama-speculative-simple: the peer with the drafts, too")
    parser.add_argument("--peer-depths", default="3,8", help="tokens that the peer drafts at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--read-ahead-kib", type=int, help="set the disk's read-ahead for the run (the peer maps the file)")
    parser.add_argument("--binary", default=ROOT / "build/release/bin/drafthorse")
    parser.add_argument("--probe", default=ROOT / "build/release/bin/drafthorse-disk-probe")
    parser.add_argument("--llama-python", default=CACHE / "python")
    parser.add_argument("--prompts", default=ROOT / "models/prompts.jsonl")
    args = parser.parse_args()

    size = os.path.getsize(args.model)
    limit = 0 if args.resident else parse_size(args.limit) if args.limit else int(size / 2.5)
    # The cgroup counts the page cache and the kernel's own pages too; the rest of the limit is drafthorse's budget.
    budget = "32G" if args.resident else f"{(limit - 24 * 2**20) // 2**20}M"
    disk = disk_of(args.model)
    read_ahead = disk / "queue/read_ahead_kb"
    before = read_ahead.read_text()
    if args.read_ahead_kib:
        read_ahead.write_text(str(args.read_ahead_kib))
    prompts = [json.loads(line)["text"] for line in open(args.prompts)]
    results = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            stats_file = os.path.join(folder, "stats.json")
            for round_number in range(args.rounds):
                prompt = prompts[round_number * 7 % len(prompts)]
                bandwidth = probe_bandwidth(args.probe, args.model)
                for name, command, stats in contenders(args, prompt, stats_file, budget):
                    if not args.resident:
                        drop_cache(args.model)
                    one = run_once(list(map(str, command)), stats, limit, disk)
                    one.update(round=round_number, contender=name, probe_bytes_per_s=bandwidth, limit=limit, commit=commit(),
                               model=os.path.basename(args.model), machine=platform.processor() or platform.machine(),
                               read_ahead_kib=int(read_ahead.read_text()), command=" ".join(sys.argv))
                    print(json.dumps(one), flush=True)
                    results.setdefault(name, []).append(one)
    finally:
        read_ahead.write_text(before)

    base = results["llama.cpp"]
    print(f"\n{os.path.basename(args.model)}, {size / 2**30:.2f} GiB, limit {limit / 2**30:.2f} GiB, {args.tokens} tokens, "
          f"{args.rounds} rounds, read-ahead {base[0]['read_ahead_kib']} KiB, "
          f"disk {statistics.median(r['probe_bytes_per_s'] for r in base) / 1e9:.2f} GB/s", file=sys.stderr)
    print(f"{'':<40} {'tokens/s':>22} {'x llama.cpp':>20} {'MB/token':>9} {'busy':>6} {'of disk':>8} {'stall':>6}",
          file=sys.stderr)
    for name, rows in results.items():
        speed = [row["tokens_per_s"] for row in rows]
        ratio = [row["tokens_per_s"] / other["tokens_per_s"] for row, other in zip(rows, base)]
        median = lambda key: statistics.median(row[key] for row in rows)
        share = statistics.median(row["disk_bytes_per_s"] / row["probe_bytes_per_s"] for row in rows)
        stall = f"{median('stall_share'):6.0%}" if rows[0]["stall_share"] is not None else "     -"
        print(f"{name:<40} {statistics.median(speed):7.2f} ({min(speed):.2f}-{max(speed):.2f})".ljust(63) +
              f"{statistics.median(ratio):7.2f} ({min(ratio):.2f}-{max(ratio):.2f})".rjust(20) +
              f" {median('bytes_per_token') / 1e6:9.0f} {median('disk_busy'):6.0%} {share:8.0%} {stall}", file=sys.stderr)
    same = all(a["text_hash"] == b["text_hash"] for name, rows in results.items() if not name.startswith("llama.cpp")
               for a, b in zip(rows, results["drafthorse"]))
    print(f"drafthorse's texts are {'equal' if same else 'DIFFERENT'} with and without a draft; equal to llama.cpp's in "
          f"{sum(a['text_hash'] == b['text_hash'] for a, b in zip(base, results['drafthorse']))} of {len(base)} rounds",
          file=sys.stderr)


if __name__ == "__main__":
    main()
