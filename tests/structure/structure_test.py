"""Holds the documents and the includes to the tree.

Usage: structure_test.py SOURCE_DIR
"""

import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(sys.argv.pop(1)).resolve()
DOCUMENTS = ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"]
LAYERS = {
    "base": set(),
    "io": {"base"},
    "backend": {"base"},
    "ops": {"base"},
    "model": {"base", "io", "backend", "ops"},
    "plan": {"base"},
    "predict": {"base"},
    "expert": {"base", "io", "ops", "predict"},
    "schedule": {"base", "io", "ops", "plan", "predict", "expert"},
    "simulate": {"base", "io", "ops", "plan", "predict", "expert", "schedule"},
    "forward": {"base", "io", "backend", "ops", "model", "plan", "predict", "expert"},
    "profile": {"base", "io", "backend", "ops", "plan"},
    "draft": {"base", "io", "backend", "ops", "model", "plan", "predict", "expert", "forward"},
    "engine": {"base", "io", "backend", "ops", "model", "plan", "predict", "expert", "schedule", "forward", "draft"},
}
MOST_LINES = 800


def sources(folder):
    return [path for path in (ROOT / folder).rglob("*") if path.suffix in (".h", ".cc")]


def code():
    return "\n".join(path.read_text() for folder in ("src", "apps", "tools") for path in sources(folder))


class Documents(unittest.TestCase):
    def test_paths_exist(self):
        for document in DOCUMENTS:
            text = (ROOT / document).read_text()
            for name in re.findall(r"`((?:src|apps|tests|tools|models|docs|bench|cmake)/[\w./-]*)`", text):
                self.assertTrue((ROOT / name).exists(), f"{document} names {name}, which is not there")

    def test_functions_exist(self):
        text = code()
        for document in DOCUMENTS:
            for name in re.findall(r"`([A-Z]\w+::\w+)`", (ROOT / document).read_text()):
                self.assertTrue(re.search(re.escape(name) + r"\(", text), f"{document} names {name}")
                owner, function = name.split("::")
                self.assertRegex(text, rf"(class|struct) {owner}\b")
                self.assertRegex(text, rf"\b{function}\(")
            for name in re.findall(r"`([a-z]\w*_\w+)` \(`?(?:src)", (ROOT / document).read_text()):
                self.assertRegex(text, rf"\b{name}\(", f"{document} names {name}")


class Tree(unittest.TestCase):
    def test_includes_go_downwards(self):
        for layer, allowed in LAYERS.items():
            for path in sources(f"src/{layer}"):
                if "testing" in path.parts or path.stem.endswith(("_test", "_bench")):
                    continue
                for included in re.findall(r'#include "(\w+)/', path.read_text()):
                    if included in LAYERS and included != layer:
                        self.assertIn(included, allowed, f"{path.relative_to(ROOT)} includes {included}/")

    def test_every_layer_is_known(self):
        folders = {path.name for path in (ROOT / "src").iterdir() if path.is_dir()}
        self.assertEqual(folders, set(LAYERS))

    def test_files_are_not_long(self):
        for folder in ("src", "apps", "tools", "tests"):
            for path in sources(folder):
                lines = len(path.read_text().splitlines())
                self.assertLessEqual(lines, MOST_LINES, f"{path.relative_to(ROOT)} has {lines} lines")

    def test_no_private_headers(self):
        for folder in ("src", "apps", "tools", "tests"):
            for path in sources(folder):
                for included in re.findall(r"#include [<\"]((?:ggml|llama)[\w./-]*)", path.read_text()):
                    public = {"ggml.h", "ggml-alloc.h", "ggml-backend.h", "ggml-cpu.h", "ggml-rpc.h", "llama.h"}
                    self.assertIn(included, public, str(path))

    def test_tracked_files_only_hold_text_of_ours(self):
        listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "*.cc", "*.h"], capture_output=True, text=True)
        if listed.returncode != 0:
            self.skipTest("not a git checkout")
        for name in listed.stdout.split():
            text = (ROOT / name).read_text()
            self.assertNotRegex(text, r"\b(TODO|FIXME|XXX)\b", name)
            if not name.startswith("apps/"):
                self.assertNotRegex(text, r"\bgetenv\(", name)


if __name__ == "__main__":
    unittest.main()
