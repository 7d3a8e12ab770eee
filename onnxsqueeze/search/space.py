"""What a search may try: forms of structure with a ratio, and forms of numbers behind them, as pipelines."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NUMBERS", "RATIOS", "STRUCTURES", "Candidate", "Numbers", "candidates", "hopeless"]

RATIOS = tuple(round(0.85 * 0.9**step, 3) for step in range(24))
"""What may be left of the cost of the layers: 0.85 to 0.075 in steps of a tenth."""
STRUCTURES = {
    "prune": "prune{{ratio={0}}}",
    "prune by params": "prune{{ratio={0} by=params}}",
    "prune with heads and streams": "prune{{ratio={0} residual heads}}",
    "lowrank": "lowrank{{ratio={0}}}",
    "lowrank by params": "lowrank{{ratio={0} by=params}}",
    "depthwise": "depthwise{{ratio={0}}}",
    "prune, lowrank": "prune{{ratio={1}}},lowrank{{ratio={1}}}",
}
"""Forms of structure by name: the passes for a ratio, and for its root where two share it."""


@dataclass(frozen=True)
class Numbers:
    """A form of numbers: its pass, and what is expected of it before it is measured.

    ``size`` of the bytes of weights and ``latency`` are left, ``error`` is the relative squared error of the answers.
    """

    text: str
    size: float
    latency: float
    error: float
    data: bool = False
    """Whether it is tried only where there is data to fit it to."""
    coded: float | None = None
    """The bytes of weights that are left once they are packed."""


NUMBERS = {
    "float": Numbers("", 1.0, 1.0, 1e-10),
    "half": Numbers("half", 0.5, 1.0, 1e-7),
    "int8": Numbers("int8", 0.26, 0.6, 3e-4),
    "6 bits": Numbers("bits{weights=6}", 0.2, 1.0, 1e-5),
    "4 bits": Numbers("bits{weights=4}", 0.15, 1.0, 3e-4),
    "3 bits": Numbers("bits{weights=3}", 0.12, 1.0, 3e-3, True),
    "2 bits": Numbers("bits{weights=2}", 0.09, 1.0, 3e-2, True),
    "8 levels": Numbers("palette{bits=3}", 0.12, 1.0, 1e-3, True),
    "4 levels": Numbers("palette{bits=2}", 0.09, 1.0, 1e-2, True),
    "6 bits in integers": Numbers("bits{weights=6 activations=8}", 0.2, 0.6, 3e-4, True),
    "4 bits in integers": Numbers("bits{weights=4 activations=8}", 0.15, 0.6, 6e-4, True),
    "3 bits in integers": Numbers("bits{weights=3 activations=8}", 0.12, 0.6, 4e-3, True),
    "coded to 12 %": Numbers("code{size=0.12}", 0.26, 1.0, 1e-3, True, 0.12),
    "coded to 8 %": Numbers("code{size=0.08}", 0.26, 1.0, 3e-3, True, 0.08),
    "coded to 5 %": Numbers("code{size=0.05}", 0.26, 1.0, 2e-2, True, 0.05),
}
"""Forms of numbers by name; bytes and errors are those that were seen on the models that ship."""
HALF = 0.6
CODED = tuple(name for name in NUMBERS if name.startswith("coded"))


@dataclass(frozen=True)
class Candidate:
    """A pipeline that may be tried: a form of structure ("" for none) at a ratio, then a form of numbers."""

    structure: str
    ratio: float
    numbers: str

    @property
    def bare(self) -> Candidate:
        """The same structure in float."""
        return Candidate(self.structure, self.ratio, "float")

    @property
    def pipeline(self) -> str:
        """The passes as pipeline text."""
        first = STRUCTURES[self.structure].format(self.ratio, round(self.ratio**0.5, 3)) if self.structure else ""
        parts = [each for each in (first, NUMBERS[self.numbers].text) if each]
        return ",".join(parts) or "canonical"


def candidates(data: bool, packed: bool) -> list[Candidate]:
    """Return all that may be tried: with ``data`` to fit to, forms for the wire if ``packed`` counts."""
    numbers = [name for name, each in NUMBERS.items() if (data or not each.data) and (packed or name not in CODED)]
    found = [Candidate("", 1.0, name) for name in numbers]
    for structure in STRUCTURES if data else ():
        found += [Candidate(structure, ratio, name) for ratio in RATIOS for name in numbers]
    return found


def hopeless(other: Candidate, failed: Candidate, problem: str) -> bool:
    """Whether a candidate cannot come to something after another has not, for a reason in words."""
    culprit = problem.partition("{")[0].split(" ")[0]
    idle = problem.endswith("nothing to do")
    if idle and culprit not in NUMBERS[failed.numbers].text and failed.structure:
        if failed.ratio <= HALF:  # what finds nothing to save half of finds nothing at all
            return culprit in STRUCTURES.get(other.structure, "")
        return other.structure == failed.structure and other.ratio >= failed.ratio
    bare = failed.numbers == "float"
    alike = other.structure == failed.structure and (bare or other.numbers == failed.numbers)
    return alike and other.ratio <= failed.ratio
