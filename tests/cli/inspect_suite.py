"""`drafthorse inspect`: what a file holds, whether it runs, whether it can draft."""

import json

import gguf_layout
from support import PROMPT, CliTestCase, Setup, execute, run

USAGE, FILE = 2, 3


def inspect(*arguments):
    return execute([Setup.binary, "inspect", *map(str, arguments)])


class Inspect(CliTestCase):
    def described(self, *arguments):
        result = inspect(*arguments, "--json")
        self.assert_fine(result)
        self.assertEqual(result.err, "")
        return json.loads(result.out)

    def test_parts_add_up(self):
        model = self.described(Setup.target())
        self.assertTrue(model["runs"])
        self.assertEqual((model["layers"], model["experts_per_layer"], model["experts_per_token"]), (8, 8, 2))
        by_type = sum(group["bytes"] for group in model["types"].values())
        by_part = model["vocabulary_bytes"] + model["dense_bytes"] + model["experts_bytes"]
        self.assertEqual(by_type, by_part)
        self.assertLess(by_part, model["file_bytes"])
        self.assertEqual(model["file_bytes"], Setup.target().stat().st_size)
        self.assertEqual(sum(layer["experts_bytes"] for layer in model["by_layer"]), model["experts_bytes"])
        self.assertEqual(len(model["by_layer"]), 8)
        self.assertGreaterEqual(model["slot_bytes"], model["experts_bytes"] // 64)

    def test_dense_model(self):
        model = self.described(Setup.draft())
        self.assertEqual((model["experts_per_layer"], model["experts_bytes"], model["slot_bytes"]), (0, 0, 0))
        self.assertIn(b"a dense model", inspect(Setup.draft()).out)

    def test_least_budget_is_what_a_run_needs(self):
        least = self.described(Setup.target())["least_budget_bytes"]
        self.assert_fine(run("-p", PROMPT, "-n", "1", "--ram", least + (1 << 20)))
        self.assertEqual(run("-p", PROMPT, "-n", "1", "--ram", least - (4 << 20)).code, 4)

    def test_draft_for(self):
        draft = self.described(Setup.draft(), "--draft-for", Setup.target())["draft_for"]
        self.assertTrue(draft["suitable"])
        self.assertGreater(draft["least_budget_bytes"], 0)
        larger = self.described(Setup.target(), "--draft-for", Setup.draft())["draft_for"]
        self.assertTrue(larger["suitable"])
        self.assertIn("no smaller", " ".join(larger["remarks"]))

    def test_foreign_vocabulary_cannot_draft(self):
        data = bytearray(Setup.draft().read_bytes())
        at, length = gguf_layout.nth_string(data, gguf_layout.read_layout(data), "tokenizer.ggml.tokens", 1500)
        data[at : at + length] = b"~" * length
        path = self.write("foreign.gguf", data)
        draft = self.described(path, "--draft-for", Setup.target())["draft_for"]
        self.assertFalse(draft["suitable"])
        self.assertIn("1500", draft["reason"])
        self.assertIn(b"cannot draft for", inspect(path, "--draft-for", Setup.target()).out)

    def test_architecture_that_is_not_computed(self):
        data = Setup.target().read_bytes()
        at = gguf_layout.read_layout(data).values["general.architecture"] + 8
        path = self.write("other.gguf", data[:at] + b"ll\x1b[m" + data[at + 5 :])
        model = self.described(path)
        self.assertFalse(model["runs"])
        self.assertIn("not supported", model["problem"])
        self.assertGreater(model["experts_bytes"], 0)
        text = inspect(path)
        self.assert_fine(text)
        self.assertIn(b"cannot be run", text.out)
        self.assertNotIn(b"\x1b", text.out)  # nothing out of a file steers the terminal
        self.assertFalse(self.described(path, "--draft-for", Setup.target())["draft_for"]["suitable"])

    def test_refusals(self):
        self.assert_refused(inspect(), USAGE, "FILE")
        self.assert_refused(inspect(self.folder / "missing.gguf"), FILE, "missing.gguf")
        self.assert_refused(inspect(Setup.target(), "--draft-for", self.folder / "none"), FILE, "none")
        text = self.write("text.gguf", b"This is a text about llamas.\n" * 100)
        self.assert_refused(inspect(text), FILE, "not a GGUF file")
        self.assert_refused(inspect(Setup.target(), "--draft-for", ""), USAGE)
