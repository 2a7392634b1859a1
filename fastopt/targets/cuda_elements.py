"""What a pass does to an element on CUDA: a function, and the lines that call it for one element or several."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastopt.blocks import BLOCK
from fastopt.codecs import Codec
from fastopt.lowered import Lowered
from fastopt.passes import Number, Pass
from fastopt.statements import Level
from fastopt.targets import masters, text

SHARED = 48 << 10  # bytes of shared memory that every GPU gives a block
WARP = 32  # threads
LANES = BLOCK // WARP  # those of a block of numbers in 8 bits, which a warp takes
_USUAL = 4  # lanes: those of float32

_UPDATE = """

@cuda.jit(device=True)
def update_{name}({arguments}):
{body}
    return {results}
"""


@dataclass(frozen=True)
class Elements:
    """What a pass does to an element: the function that a kernel calls for each, and the buffers around it."""

    name: str
    lowered: Lowered
    q: Pass
    of: dict[str, Codec]  # how every buffer is stored
    threads: int  # of a block

    @property
    def inputs(self) -> list[tuple[str, str]]:
        """(argument of the function, buffer): what is loaded."""
        found = []
        for local, b in self.q.loads:
            if b == "p" and self.lowered.master:
                found += [(local, b)] if self.lowered.master != "float32" else []
                found.append(("master", "master"))
            else:
                found.append((local, b))
        return found

    @property
    def outputs(self) -> list[tuple[str, str]]:
        """(buffer, its code): what is stored."""
        chances, found = text.chances(self.lowered), []
        for b, value in self.q.stores:
            if b == "p" and self.lowered.master:
                found += masters.codes(self.lowered.master, self.of).items()
            elif b == "g":
                found.append((b, f"np.{self.of[b].moved}(0)"))  # 0, whose code is 0 in every codec
            else:
                found.append((b, text.result(b, value, self.of, chances)))
        return found

    @property
    def buffers(self) -> list[str]:
        """What is loaded or stored."""
        return list(dict.fromkeys([b for _, b in self.inputs] + self.stored))

    @property
    def stored(self) -> list[str]:
        return [b for b, _ in self.outputs]

    @property
    def blocked(self) -> list[str]:
        """Those in 8 bits."""
        return [b for b in self.buffers if self.of[b].blocked]

    @property
    def lanes(self) -> int:
        """Elements of the widest access; fewer where a block's sums of so many columns would not fit."""
        if self.blocked:
            return LANES
        lanes = 16 // min((self.of[b].itemsize for b in self.buffers), default=16)
        while lanes > _USUAL and self.shared(lanes) > SHARED:
            lanes //= 2
        return lanes

    def shared(self, lanes: int) -> int:
        """Bytes of shared memory for sums."""
        tables = max(len(self.sums(Level.REDUCED)), len(self.sums(Level.ROW)))
        return 8 * self.threads * (tables + lanes * len(self.sums(Level.COLUMN)))

    def sums(self, *levels: Level) -> list[tuple[Number, str]]:
        """The totals that end the pass: of parameters (REDUCED), rows, columns."""
        return [(n, value) for n, value in self.q.totals if n.level in levels]

    @property
    def _lines(self) -> list[str]:
        """The statements on an element."""
        kind = self.lowered.master
        loads = [
            (local, masters.load(kind, self.of, local, "master") if b == "p" and kind else text.load(b, local, self.of))
            for local, b in self.q.loads
        ]
        lines = [f"{local} = {value}" for local, value in loads if local != value] + list(self.q.body)
        lines += [f"whole = {value}" for b, value in self.q.stores if b == "p" and kind]
        return lines

    @property
    def _results(self) -> list[str]:
        return [code for _, code in self.outputs] + [f"wide({value})" for _, value in self.q.totals]

    @property
    def noises(self) -> list[tuple[str, str]]:
        """(key, its seed) of the random numbers that the statements draw."""
        named = text.words([*self._lines, *self._results])
        return [(key, seed) for key, seed in self.lowered.noises if key in named]

    @property
    def dice(self) -> list[str]:
        """Keys of the random bits by which the results are rounded."""
        named = text.words(self._results)
        return [key for key in text.dice(self.lowered) if key in named]

    def columns(self, *more: str) -> list[tuple[int, str]]:
        """(k, name) of the columns of `hyper` that the statements, or these lines, name."""
        named = text.words([*self._lines, *self._results, *more])
        return [(k, n) for k, n in enumerate(text.names(self.lowered)) if n in named]

    @property
    def _constants(self) -> list[str]:
        """What the function is given besides elements, numbers and, for random numbers, the index."""
        return [n for _, n in self.columns()] + [key for key, _ in self.noises] + self.dice

    def function(self) -> str:
        given = [argument for argument, _ in self.inputs] + [n.name for n in self.q.uses] + self._constants
        return _UPDATE.format(
            name=self.name,
            arguments=", ".join(given + ["i"] * bool(self.noises or self.dice)),
            body=text.indent(self._lines or ["pass"], 4),
            results=listing(self._results),
        )

    def lines(self, n: int) -> list[str]:
        """Load n elements of every buffer, from `i` on, update each, store and add up."""
        of, lanes = self.of, range(n)
        lines = [f"{local}_in = {of[b].moved}_load({b}_at, i, {n})" for local, b in self.inputs]
        lines += self.updates(n)
        lines += [f"{of[b].moved}_store({b}_at, i, ({listing(f'{b}_out{k}' for k in lanes)}))" for b in self.stored]
        lines += self.adds(lanes)
        return lines + columns_lines([slot(t) for t, _ in self.sums(Level.COLUMN)], n, self.lanes)

    def updates(self, n: int) -> list[str]:
        """Call the function for n loaded elements, from `i` on."""
        totals, lines = [slot(t) for t, _ in self.q.totals], []
        for k in range(n):
            given = [f"{local}_in[{k}]" for local, _ in self.inputs]
            given += [_at(u, k) if u.level is Level.COLUMN else u.name for u in self.q.uses]
            given += self._constants + [f"i + np.uint64({k})"] * bool(self.noises or self.dice)
            results = listing([f"{b}_out{k}" for b in self.stored] + [f"total{t}_out{k}" for t in totals])
            lines.append(f"{results} = update_{self.name}({', '.join(given)})")
        return lines

    def adds(self, lanes: Iterable[int]) -> list[str]:
        """Add these of the results to the sums that a thread has for itself."""
        flat = [slot(t) for t, _ in self.sums(Level.REDUCED, Level.ROW)]
        return [f"sum{t} += total{t}_out{k}" for t in flat for k in lanes]


def columns_lines(slots: list[int], n: int, lanes: int) -> list[str]:
    """Add what `n` elements, from column `j` on, give to the sums of their columns."""
    if not slots:
        return []
    lines = ["if narrow:"]
    for c, t in enumerate(slots):
        lines += [
            f"    seats[np.uint64({c}), thread * np.uint64({lanes}) + np.uint64({k})] += total{t}_out{k}"
            for k in range(n)
        ]
    lines.append("else:")
    for t in slots:
        for k in range(n):
            old = f"float64_load(partial{t}_at, part + j + np.uint64({k}), 1)[0]"
            lines.append(f"    float64_store(partial{t}_at, part + j + np.uint64({k}), ({old} + total{t}_out{k},))")
    return lines


def misaligned(it: Elements) -> str:
    """A test: is some buffer's element `lo` off a 16-byte boundary?"""
    places = [f"({b}_at + lo * np.uint64({it.of[b].itemsize}))" for b in it.buffers]
    return f"({' | '.join(places) or 'np.uint64(0)'}) & np.uint64(15) != np.uint64(0)"


def listing(items: Iterable[str]) -> str:
    """A tuple without parentheses."""
    items = list(items)
    return f"{items[0]}," if len(items) == 1 else ", ".join(items)


def slot(n: Number) -> int:
    """Which of the rule's totals a number is."""
    assert n.total is not None
    return n.total[0]


def _at(n: Number, k: int) -> str:
    return f"real(float64_load({n.vector}_at, j + np.uint64({k}), 1)[0])"
