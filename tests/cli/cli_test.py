"""Tests of the command line as a user meets it: `cli_test.py --binary ... SUITE [unittest arguments]`.

A suite is a module beside this one. Only the standard library is needed.
"""

import argparse
import importlib
import os
import pathlib
import sys
import unittest

from support import Setup

SUITES = ("messages", "prompts", "statistics", "interrupts", "budget", "damage", "inspect", "plan", "simulate",
          "trace", "help", "sampling", "chat", "bench", "batch", "calibrate", "device")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=pathlib.Path, required=True, help="drafthorse")
    parser.add_argument("--widen", type=pathlib.Path, required=True, help="drafthorse-widen")
    parser.add_argument("--device-server", type=pathlib.Path, default="device_server", help="for the device suite")
    parser.add_argument(
        "--models", type=pathlib.Path, required=True, help="where target.gguf and draft.gguf lie"
    )
    parser.add_argument(
        "--scratch", type=pathlib.Path, required=True, help="for files; about 1.1 GiB are needed"
    )
    parser.add_argument("--copies", type=int, default=Setup.copies, help="damaged models to run (%(default)s)")
    parser.add_argument("--seed", type=int, default=Setup.seed, help="of their damage (%(default)s)")
    parser.add_argument("suite", choices=SUITES)
    arguments, rest = parser.parse_known_args()
    Setup.binary = str(arguments.binary.resolve())
    Setup.widen = str(arguments.widen.resolve())
    Setup.device_server = str(arguments.device_server.resolve())
    Setup.models = arguments.models.resolve()
    Setup.scratch = arguments.scratch.resolve()
    Setup.copies = arguments.copies
    Setup.seed = arguments.seed
    # What the user who runs the tests has configured and measured is not for them.
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        os.environ[name] = str(Setup.scratch / "nobody")
    module = importlib.import_module(f"{arguments.suite}_suite")
    unittest.main(module=module, argv=[sys.argv[0], *rest], verbosity=2)


if __name__ == "__main__":
    main()
