"""The work of `fastopt train --task words`: embeddings of the words of a text, and what they learned."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt.commands import picture
from fastopt.commands.corpus import Corpus, keep_share, negatives_table
from fastopt.commands.skipgram import WIDEST, Batches
from fastopt.errors import ConfigError
from fastopt.progress import need
from fastopt.rules import CATALOGUE
from fastopt.schema import Rule

EPOCHS, BATCH_SIZE, LR, DIM, WINDOW, NEGATIVES, THRESHOLD = 10, 2048, 0.2, 100, 5, 5, 1e-3
ASKED = "file", "string", "error", "socket", "thread", "tuple", "read", "month"  # of the standard library


@dataclass(frozen=True)
class Settings:
    """batch_size: positions of the text, each with its window, a step."""

    epochs: int = EPOCHS
    batch_size: int = BATCH_SIZE
    lr: float = LR
    dim: int = DIM
    window: int = WINDOW
    negatives: int = NEGATIVES
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("window", "negatives"):
            if not 1 <= getattr(self, name) <= WIDEST:
                raise ConfigError(f"--{name}: got {getattr(self, name)}; expected 1 to {WIDEST}.")


@dataclass(frozen=True)
class State:
    """How far a run is: tokens of the text so far, the rare and the left-out ones included, and the mean loss."""

    epoch: int
    tokens: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Embedding:
    """vectors: float32 (words, dim), each of length 1."""

    corpus: Corpus
    vectors: np.ndarray
    state: State

    def nearest(self, word: str, n: int = 6) -> list[tuple[str, float]]:
        """The n words of the largest cosine, and their cosines."""
        k = self.corpus.number(word)
        cosines = self.vectors @ self.vectors[k]
        cosines[k] = -np.inf
        best = np.argsort(-cosines, kind="stable")[: min(n, len(cosines) - 1)]
        return [(self.corpus.words[j], float(cosines[j])) for j in best]


def train(
    corpus: Corpus,
    settings: Settings = Settings(),
    rule: Rule = CATALOGUE["adagrad"],
    watch: Callable[[State], Any] = lambda state: None,
) -> Embedding:
    """Train with gradients of rows; `watch` hears of every step. Raises `ConfigError` if the loss is no number."""
    n, rng = len(corpus.words), np.random.default_rng(settings.seed)
    params = {
        "in": ((rng.random((n, settings.dim), np.float32) - np.float32(0.5)) / np.float32(settings.dim)),
        "out": np.zeros((n, settings.dim), np.float32),
    }
    optimizer = rule(params, lr=settings.lr)
    drawn, share = negatives_table(corpus.counts), keep_share(corpus.counts, THRESHOLD)
    batches = Batches(n, settings.dim, settings.window, settings.negatives, drawn, settings.batch_size)
    state, loss, scores = State(0, 0, 0.0, float("nan")), 0.0, 0
    # compiled on copies first: tokens per second are those of a run, whatever is in the cache
    first, _, _ = batches.gradients(params, corpus.tokens, 0, min(len(corpus.tokens), settings.batch_size), seed=0)
    rule({name: p.copy() for name, p in params.items()}, lr=settings.lr).step(first)
    begin = time.perf_counter()
    for epoch in range(settings.epochs):
        text = batches.thinned(corpus.tokens, share, seed=_seed(settings.seed, epoch, 0))
        for at in range(0, len(text), settings.batch_size):
            end = min(len(text), at + settings.batch_size)
            grads, more, count = batches.gradients(params, text, at, end, seed=_seed(settings.seed, epoch, 1))
            optimizer.step(grads)
            # a running mean over about the last hundred batches
            loss, scores = 0.99 * loss + more, 0.99 * scores + count
            if not np.isfinite(loss):
                raise ConfigError(f"the loss is {loss} in epoch {epoch + 1}; try a lower --lr than {settings.lr:g}.")
            tokens = epoch * corpus.read + round(corpus.read * end / len(text))
            state = State(epoch + 1, tokens, time.perf_counter() - begin, loss / max(1, scores))
            watch(state)
    lengths = np.linalg.norm(params["in"], axis=1, keepdims=True)
    return Embedding(corpus, params["in"] / np.maximum(lengths, np.float32(1e-30)), state)


def _seed(seed: int, epoch: int, purpose: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)[0])


def table(embedding: Embedding, words: Sequence[str]) -> Any:
    """The nearest neighbours of words as a rich table."""
    rich = need("rich.table", "rich", "the table")
    shown = rich.Table(title=f"{embedding.corpus.name}: nearest words, and the cosines of the angles between them")
    shown.add_column("word")
    shown.add_column("nearest")
    for word in words:
        near = embedding.nearest(word)
        shown.add_row(word.lower(), "  ".join(f"{other} {cosine:.2f}" for other, cosine in near))
    return shown


def asked(corpus: Corpus, words: Sequence[str] | None) -> list[str]:
    """The words whose neighbours are shown. Raises `ConfigError` for one that the text has not."""
    if words:
        for word in words:
            corpus.number(word)
        return list(dict.fromkeys(word.lower() for word in words))
    usual = [word for word in ASKED if word in corpus.words]
    # of another text: frequent words, but not those that are in every text
    some = [word for word in corpus.words[len(corpus.words) // 50 :] if len(word) > 4][: len(ASKED)]
    return usual if len(usual) > len(ASKED) // 2 else some or list(corpus.words[: len(ASKED)])


def plot(embedding: Embedding, words: Sequence[str], path: str) -> None:
    """The words and their neighbours in the plane of their two principal components."""
    pca = need("sklearn.decomposition", "scikit-learn", "--plot").PCA
    groups = [[word, *(other for other, _ in embedding.nearest(word))] for word in words]
    numbers = [embedding.corpus.number(word) for group in groups for word in group]
    # the sign of a component is arbitrary, but scikit-learn fixes it: the same vectors give the same picture
    places = pca(n_components=2, svd_solver="full").fit_transform(embedding.vectors[numbers])
    drawn = picture.figure(9, 7)
    axis, at, shown = drawn.subplots(), 0, set()
    for k, group in enumerate(groups):
        here = places[at : at + len(group)]
        at += len(group)
        axis.scatter(here[:, 0], here[:, 1], s=12, color=f"C{k % 10}")
        for word, (x, y) in zip(group, here, strict=True):
            if word not in shown:  # a word may be near to several
                weight = "bold" if word == group[0] else "normal"
                axis.annotate(word, (x, y), (3, 2), textcoords="offset points", fontsize=8, weight=weight)
            shown.add(word)
    axis.set(title=f"{embedding.corpus.name}: words and their nearest words", xticks=[], yticks=[])
    axis.set(xlabel="first principal component", ylabel="second principal component")
    picture.save(drawn, path)
