"""What helps a person at the prompt: suggestions, a configuration file, completion, the manual page, --quiet."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
import unittest

from support import PROMPT, CliTestCase, Setup, command, execute, run

USAGE = 2
COMMANDS = ("run", "plan", "batch", "bench", "inspect", "calibrate", "profile", "simulate", "completion", "man")


class Zsh:
    """An interactive zsh at a pseudo-terminal, with nothing of this person's."""

    def __init__(self, set_up):
        self.ours, theirs = pty.openpty()
        self.shell = subprocess.Popen(["zsh", "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs,
                                      start_new_session=True, env={"PATH": os.environ["PATH"], "TERM": "dumb"})
        os.close(theirs)
        # Ctrl-T shows the line as it stands, and empties it.
        self.send("show() { print -r -- \"<<$BUFFER>>\"; BUFFER=''; zle redisplay }; zle -N show; bindkey '^T' show; "
                  f"PS1=; unsetopt prompt_cr prompt_sp; {set_up}; echo rea''dy\n")
        self.read_until(r"ready")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shell.kill()
        self.shell.wait()
        os.close(self.ours)

    def send(self, text):
        os.write(self.ours, text.encode())

    def read_until(self, pattern):
        seen = b""
        deadline = time.monotonic() + 30
        while not (found := re.search(pattern.encode(), seen)):
            assert time.monotonic() < deadline, f"no {pattern} in {seen!r}"
            if select.select([self.ours], [], [], 1)[0]:
                seen += os.read(self.ours, 65536)
        return found

    def complete(self, line):
        self.send(line + "\t\x14")
        return self.read_until(r"<<([^$].*?)>>")[1].decode().strip()


class Help(CliTestCase):
    def test_suggestions(self):
        cases = {
            ("rnu", "-p", "x"): "'run'",
            ("inspekt", "x"): "'inspect'",
            ("run", "--evicton", "lru"): "--eviction",
            ("run", "--statsfile", "x"): "--stats-file",
            ("plan", "--acceptence", "1"): "--acceptance",
            ("run", "--eviction", "lur"): "lru",
            ("run", "--io", "urnig"): "uring",
            ("completion", "bahs"): "bash",
        }
        for arguments, meant in cases.items():
            self.assert_refused(execute([Setup.binary, *arguments]), USAGE, "did you mean", meant)
        self.assert_refused(execute([Setup.binary, "run", "--evicton", "lru"]), USAGE, "there is no flag --evicton;")
        self.assert_refused(execute([Setup.binary, "rnu"]), USAGE, "there is no command 'rnu';")
        unknown = execute([Setup.binary, "run", "--xyzzyplugh", "1"])
        self.assert_refused(unknown, USAGE, "there is no flag --xyzzyplugh; run with --help")
        self.assertNotIn("did you mean", unknown.err)
        self.assertIn("the commands are", execute([Setup.binary, "xyzzyplugh"]).err)
        for hostile in ("--" + "x" * 100_000, "--\x1b[31m", "\xff", "--", "-", ""):
            result = execute([Setup.binary, "run", hostile])
            self.assertEqual(result.code, USAGE, result)
            self.assertNotIn("\x1b", result.err)

    def test_memory_without_a_unit(self):
        self.assert_refused(run("-p", PROMPT, "--ram", "8"), USAGE, "--ram 8 is 8 bytes", "8G")
        self.assert_fine(run("-p", PROMPT, "-n", "1", "--ram", str(1 << 30)))

    def test_help_of_every_command(self):
        overview = execute([Setup.binary, "--help"]).out.decode()
        for name in COMMANDS:
            self.assertIn(f"\n  {name} ", overview)
            result = execute([Setup.binary, name, "--help"])
            self.assert_fine(result)
        self.assertIn("First steps", overview)

    def test_completion_knows_every_flag(self):
        for name in COMMANDS:
            listed = execute([Setup.binary, name, "--help"]).out.decode()
            flags = {word.split("=")[0] for word in listed.replace(",", " ").split() if word.startswith("--")}
            for shell in ("bash", "zsh"):
                script = execute([Setup.binary, "completion", shell]).out.decode()
                for flag in flags - {"--"}:
                    self.assertIn(flag.rstrip(".;:)"), script, f"{name} in {shell}")

    def test_bash_completes(self):
        def complete(*words):
            script = f"source <({Setup.binary} completion bash); COMP_WORDS=({' '.join(words)}); "
            script += f"COMP_CWORD={len(words) - 1}; _drafthorse; echo ${{COMPREPLY[@]}}"
            return execute(["bash", "-c", script]).out.decode().split()

        self.assertEqual(complete("drafthorse", "ins"), ["inspect"])
        self.assertEqual(complete("drafthorse", "run", "--evi"), ["--eviction"])
        self.assertEqual(complete("drafthorse", "run", "--io", "ur"), ["uring"])
        self.assertIn("--acceptance", complete("drafthorse", "plan", "--"))
        self.assertNotIn("--acceptance", complete("drafthorse", "run", "--"))

    @unittest.skipIf(shutil.which("zsh") is None, "no zsh here")
    def test_zsh_script_parses(self):
        script = self.write("_drafthorse", execute([Setup.binary, "completion", "zsh"]).out)
        self.assert_fine(execute(["zsh", "-n", str(script)]))

    @unittest.skipIf(shutil.which("zsh") is None, "no zsh here")
    def test_zsh_completes(self):
        """At a terminal: a line is typed, then the tab key."""
        folder = self.folder / "zsh"
        folder.mkdir()
        script = execute([Setup.binary, "completion", "zsh"]).out
        (folder / "_drafthorse").write_bytes(script)
        by_eval = f'eval "$({Setup.binary} completion zsh)"'
        for set_up in (f"fpath=({folder} $fpath); autoload -U compinit; compinit -u -D",
                       f"autoload -U compinit; compinit -u -D; {by_eval}"):
            with Zsh(set_up) as shell:
                self.assertEqual(shell.complete("drafthorse ins"), "drafthorse inspect")
                self.assertEqual(shell.complete("drafthorse run --evic"), "drafthorse run --eviction")
                self.assertEqual(shell.complete("drafthorse run --io ur"), "drafthorse run --io uring")
                self.assertEqual(shell.complete("drafthorse plan --acc"), "drafthorse plan --acceptance")
                # A switch takes no value; a short name is the same flag.
                self.assertEqual(shell.complete("drafthorse run --quiet --stats-f"), "drafthorse run --quiet --stats-file")
                self.assertEqual(shell.complete("drafthorse run -q --stats-f"), "drafthorse run -q --stats-file")
                self.assertEqual(shell.complete(f"drafthorse run -m {folder}/_dra"), f"drafthorse run -m {folder}/_drafthorse")
        shutil.rmtree(folder)

    def test_man_page(self):
        page = execute([Setup.binary, "man"])
        self.assert_fine(page)
        self.assertTrue(page.out.startswith(b".TH DRAFTHORSE 1"))
        for words in (b"EXIT STATUS", b"\\-\\-eviction", b"PLAN FLAGS"):
            self.assertIn(words, page.out)

    def test_quiet(self):
        result = run("-p", PROMPT, "-n", "8", "--quiet", "--ctx", "100000")
        self.assert_fine(result)
        self.assertEqual(result.err, "")
        self.assertEqual(result.out, run("-p", PROMPT, "-n", "8").out)
        self.assert_refused(run("-p", PROMPT, "-q", "--ram", "1M"), 4, "too small")


class Configuration(CliTestCase):
    def with_config(self, text, *arguments):
        folder = self.folder / "drafthorse"
        folder.mkdir(exist_ok=True)
        (folder / "config").write_bytes(text)
        return execute(arguments, env={**os.environ, "XDG_CONFIG_HOME": str(self.folder)})

    def test_defaults_are_taken_and_the_command_line_wins(self):
        arguments = command("-p", PROMPT, "-n", "4")
        small = self.with_config(b"# a comment\n\n ram = 1M  # tiny\n", *arguments)
        self.assert_refused(small, 4, "1.0 MiB")
        self.assert_fine(self.with_config(b"ram = 1M\n", *arguments, "--ram", "1G"))
        self.assert_fine(self.with_config(b"ram = 1M\n", Setup.binary, "--no-config", *arguments[1:]))
        self.assertIn("memory budget", self.with_config(b"stats = true\r\n", *arguments).err)
        self.assertNotIn("memory budget", self.with_config(b"stats = false\n", *arguments).err)
        # A flag of another command's is no matter here.
        self.assert_fine(self.with_config(b"acceptance = 0.5\n", *arguments))

    def test_what_is_wrong_is_named_with_its_line(self):
        arguments = command("-p", PROMPT, "-n", "4")
        for text, *said in (
            (b"\ntreads = 1\n", "line 2", "threads"),
            (b"threads = many\n", "line 1", "many"),
            (b"threads\n", "line 1", "key = value"),
            (b"prompt = x\n", "line 1", "prompt"),
            (b"eviction = lur\n", "line 1", "lru"),
            (b"stats = perhaps\n", "line 1", "perhaps"),
        ):
            self.assert_refused(self.with_config(text, *arguments), USAGE, *said)
        result = self.with_config(os.urandom(5000), *arguments)
        self.assertIn(result.code, (0, USAGE), result)
