"""`drafthorse simulate`, called by the scripts beside this one."""

import json
import subprocess


def replay(binary, recording, *flags):
    """What it prints with --json, as a dictionary; ends the script with its message where it fails."""
    done = subprocess.run([binary, "simulate", recording, *flags, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip())
    return json.loads(done.stdout)
