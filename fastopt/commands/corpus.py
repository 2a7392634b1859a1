"""The text of `fastopt train --task words`: a file, or the documentation inside the standard library; as numbers."""

import ast
import math
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastopt.errors import ConfigError

WORD = re.compile(r"[^\W\d_]{2,}")  # letters of any language; snake_case falls into its words
CAP = 24_000_000  # characters
_LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "lib2to3",
    "ensurepip",
    "encodings",
    "__pycache__",
}
# strings that are no documentation are matched, too, so that a # inside one starts no comment
_PROSE = re.compile(
    r'"""(?P<a>.*?)"""|\'\'\'(?P<b>.*?)\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#(?P<c>[^\n]*)', re.S
)


@dataclass(frozen=True)
class Corpus:
    """A text as numbers of words, the most frequent word 0.

    Attributes:
        tokens: int32, the text without the words that are too rare.
        counts: int64, how often each word occurs.
        read: words of the text, the rare ones included.
    """

    name: str
    words: tuple[str, ...]
    tokens: np.ndarray
    counts: np.ndarray
    read: int

    def number(self, word: str) -> int:
        """Of a word. Raises `ConfigError` for one that the text has not, or not often enough."""
        try:
            return self.words.index(word.lower())
        except ValueError:
            raise ConfigError(f"--words: {word!r} is not among the {len(self.words):,} words of {self.name}.") from None


def corpus(name: str, texts: Iterable[str], min_count: int = 5) -> Corpus:
    """Lower-cased words of texts that occur `min_count` times or more. Raises `ConfigError` if they are too few."""
    found = [word for text in texts for word in WORD.findall(text.lower())]
    counter = Counter(found)
    # equally frequent words in the order of the alphabet: the numbers depend on the text alone
    words = sorted((w for w, n in counter.items() if n >= min_count), key=lambda w: (-counter[w], w))
    numbers = {word: k for k, word in enumerate(words)}
    tokens = np.array([numbers[word] for word in found if word in numbers], np.int32)
    if len(words) < 10 or len(tokens) < 100:
        raise ConfigError(
            f"{name} has {len(found):,} words, and {len(words):,} different ones occur {min_count} times or more; "
            "expected at least 10 such words, 100 in all: give more text, or a lower --min-count."
        )
    return Corpus(name, tuple(words), tokens, np.array([counter[w] for w in words], np.int64), len(found))


def from_file(path: str, min_count: int = 5) -> Corpus:
    """The corpus of a text file in UTF-8."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--text: cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--text: {path} is not UTF-8 text: byte {error.start} cannot be decoded.") from error
    if not text.strip():
        raise ConfigError(f"--text: {path} is empty; expected a text.")
    return corpus(Path(path).name, [text], min_count)


def standard_library(min_count: int = 5, cap: int = CAP, folder: str | None = None) -> Corpus:
    """The docstrings and comments of the standard library's sources, in the order of the files' names."""
    return corpus("the standard library", _texts(cap, folder), min_count)


def text(size: int, folder: str | None = None) -> str:
    """As much of the same, runs of white space as one blank."""
    return re.sub(r"\s+", " ", " ".join(_texts(2 * size, folder)))[:size]


def _texts(cap: int, folder: str | None) -> list[str]:
    root = Path(folder or sysconfig.get_paths()["stdlib"])
    texts, left = [], cap
    for path in sorted(root.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(path.relative_to(root).parts) and left > 0:
            texts.append(_prose(path)[:left])
            left -= len(texts[-1])
    if not any(texts):
        raise ConfigError(f"the standard library's sources are not in {root}; give a text: --text FILE.")
    return texts


def _prose(path: Path) -> str:
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # a few files are in other encodings on purpose
    if path.parent.name == "pydoc_data":
        return "\n".join(_strings(source))  # the language reference, in one-line strings
    return "\n".join(m["a"] or m["b"] or m["c"] or "" for m in _PROSE.finditer(source))


def _strings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def keep_share(counts: np.ndarray, threshold: float) -> np.ndarray:
    """float32, the share of each word that is read: frequent words are left out at random.

    Mikolov et al. 2013, arXiv:1310.4546, Section 2.3, keeps sqrt(threshold / f) of a word with frequency f; their
    program, and gensim, keep sqrt(threshold / f) + threshold / f, and so does this.
    """
    frequency = counts / counts.sum()
    return np.minimum(1, np.sqrt(threshold / frequency) + threshold / frequency).astype(np.float32)


def negatives_table(counts: np.ndarray, power: float = 0.75, size: int = 1 << 17) -> np.ndarray:
    """int32: each word as often as it should be drawn, in proportion to count**power, at least once."""
    weights = counts.astype(np.float64) ** power
    times = np.maximum(1, np.floor(weights * (max(size, 4 * len(counts)) / math.fsum(weights)))).astype(np.int64)
    return np.repeat(np.arange(len(counts), dtype=np.int32), times)
