"""The text models are trained on: Python's standard library, manual pages and documentation that stand on any Debian.

Nothing is downloaded. Files are split by name: a file whose name hashes into the held-out share is never trained on,
whichever of several versions of a library it is found in.
"""

import dataclasses
import gzip
import hashlib
import re
import sysconfig
from pathlib import Path

HELD_OUT_EVERY = 25  # files
SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "encodings",
    "lib2to3",
    "pydoc_data",
    "cjkencodings",
    "tzdata",
}
MOST_BYTES = 400_000  # of a file; longer ones are tables
LEAST_BYTES = 200
LEAST_ASCII = 0.97  # share of characters
DOCUMENT_NAMES = re.compile(r"^(README|NEWS|FAQ|TODO|INSTALL|HACKING|.*\.(txt|md|rst))[^/]*?(\.gz)?$", re.IGNORECASE)


@dataclasses.dataclass
class TextFile:
    kind: str  # "python", "manual" or "document"
    name: str  # below its root
    text: str

    @property
    def is_held_out(self):
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % HELD_OUT_EVERY == 0


def default_python_library():
    return sysconfig.get_paths()["stdlib"]


def read_text(path):
    """A file's text, unpacked; empty if it is no text worth training on."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return ""
    if not LEAST_BYTES <= len(data) <= MOST_BYTES or "\0" in text:
        return ""
    if sum(character < "\x80" for character in text) < LEAST_ASCII * len(text):
        return ""
    return text


def python_files(root, with_tests=True):
    root = Path(root)
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(name.parts) or (not with_tests and {"test", "tests"}.intersection(name.parts)):
            continue
        if text := read_text(path):
            yield TextFile("python", str(name), text)


def debian_files(dpkg="/var/lib/dpkg"):
    """Every file of the installed packages of Debian's main section, which holds free licences only."""
    names = set()
    if not (Path(dpkg) / "status").exists():
        return names
    for paragraph in (Path(dpkg) / "status").read_text("utf-8", "ignore").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Section|Maintainer|Architecture): (.*)$", paragraph, re.MULTILINE))
        name = fields.get("Package", "")
        is_main = "/" not in fields.get("Section", "/")
        is_debian = re.search(r"@([a-z.]+\.)?debian\.(org|net)\b", fields.get("Maintainer", ""))
        if not (is_main and is_debian):
            continue
        for listing in (f"{name}.list", f"{name}:{fields.get('Architecture')}.list"):
            path = Path(dpkg) / "info" / listing
            if path.exists():
                names.update(path.read_text().split("\n"))
    return names


def manual_pages(root, allowed):
    """English manual pages, their markup taken off; only of the `allowed` files."""
    root = Path(root)
    for path in sorted(root.glob("man[1-8]/*.gz")):
        if path.is_symlink() or str(path) not in allowed:
            continue
        text = plain_manual(read_text(path))
        if len(text) >= LEAST_BYTES:
            yield TextFile("manual", str(path.relative_to(root)), text)


def documents(root, allowed):
    """Readme files, news and other documents as they are; only of the `allowed` files."""
    root = Path(root)
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or str(path) not in allowed or not path.is_file() or not DOCUMENT_NAMES.match(path.name):
            continue
        if text := read_text(path):
            yield TextFile("document", str(path.relative_to(root)), text)


ROFF_ESCAPES = [
    (re.compile(r"\\f(\[[^]]*\]|\(..|.)"), ""),
    (re.compile(r"\\s[-+]?\d"), ""),
    (re.compile(r"\\\*?\((aq|cq|oq)"), "'"),
    (re.compile(r"\\\*?\((lq|rq|dq)"), '"'),
    (re.compile(r"\\\*?\((em|en|hy|mi)"), "-"),
    (re.compile(r"\\\*?\(bu"), "*"),
    (re.compile(r"\\\*?\(.."), ""),
    (re.compile(r"\\\*?\[[^]]*\]"), ""),
    (re.compile(r"\\[&|^%:/,c]"), ""),
    (re.compile(r"\\[-e]"), lambda match: "-" if match[0] == r"\-" else "\\"),
    (re.compile(r"\\[ ~0]"), " "),
]
ROFF_HEADING = re.compile(r"^\.\s*S[HS]\s+")
ROFF_FONT = re.compile(r"^\.\s*(B|I|BR|BI|IR|IB|RB|RI|SM|SB|IP|Nm|Nd|Ar|Fl|Xr)\s+")


def plain_manual(source):
    """The text of a page in roff: headings, paragraphs, and what fonts were set around; the rest of the markup goes."""
    lines = []
    in_definition = False
    for line in source.splitlines():
        if in_definition or re.match(r"^\.\s*(de|ig)\b", line):  # a macro or a comment, up to ".."
            in_definition = not line.startswith("..")
            continue
        if line.startswith(('.\\"', "'\\\"", "'")):
            continue
        if ROFF_HEADING.match(line):
            line = "\n" + ROFF_HEADING.sub("", line).replace('"', "")
        elif ROFF_FONT.match(line):
            line = ROFF_FONT.sub("", line).replace('"', "")
        elif re.match(r"^\.\s*(PP|P|LP|sp|Pp|TP)\b", line):
            line = ""
        elif line.startswith("."):
            continue
        for pattern, plain in ROFF_ESCAPES:
            line = pattern.sub(plain, line)
        lines.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def without_copies(files):
    """Each text once."""
    seen = set()
    for file in files:
        key = hashlib.sha256(file.text.encode()).digest()
        if key not in seen:
            seen.add(key)
            yield file
