"""Who meets whom in ``perf.step_cost``: our methods, their counterparts in other libraries, and the rounds they share.

A counterpart runs in our loop, which leaves the difference to the method's own code: PEFT's adapters through the method
``peft``, the optimizers of galore-torch, APOLLO and Fira through ``perf/peers.py``. LoRA runs also in a bare torch loop with
the model's own loss over all positions, as a user of PEFT would write it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.contract import Method
from harness.plugins import load_plugin
from perf import floor, peers
from perf.peers import NEVER

RANK, BLOCK, FACTORS, BUTTERFLY = 16, 32, 3, 8
GALORE_RANK = 128
MOST = 4  # contestants of a round beside our LoRA


@dataclass(frozen=True)
class Entry:
    """A contestant: a method with its fields.

    ``method``: the name of a plug-in, or a class of ``perf.peers``. ``peer``: the name of its counterpart. ``beside``:
    others to compare it with in its round. ``every_weight``: the base's weights get gradients. ``own``: FLOPs a token of
    its own products; ``once``: those of a step, however many tokens it has
    (of APOLLO and Fira we count GaLore's: APOLLO's are fewer, Fira's more).
    """

    name: str
    label: str
    method: str | type[Method]
    fields: dict = field(default_factory=dict)
    own: floor.Own = floor.nothing
    once: floor.Own = floor.nothing
    every_weight: bool = False
    peer: str = ""
    beside: tuple[str, ...] = ()
    own_loss: bool = False
    refreshes: bool = False

    def make(self) -> Method:
        return load_plugin("methods", self.method, **self.fields) if self.ours else self.method(**self.fields)

    @property
    def ours(self) -> bool:
        return isinstance(self.method, str)

    @property
    def foreign(self) -> bool:
        """Is it another library's, drawn pale?"""
        return not self.ours or self.method == "peft"


_LORA, _BLOCKS = {"rank": RANK, "alpha": 32.0}, {"factors": FACTORS, "block_size": BUTTERFLY}
_PEFT_LORA = {"r": RANK, "lora_alpha": 32}
_REACH = BUTTERFLY << (FACTORS - 1)
OWN_LOSS = "peft-lora-own-loss"


def _peft(name: str, label: str, own: floor.Own, kind: str, own_loss: bool = False, **config: object) -> Entry:
    return Entry(name, label, "peft", {"type": kind, "config": config}, own, own_loss=own_loss)


def _adapter(name: str, label: str, method: str, fields: dict, own: floor.Own = floor.nothing, peer: str = "") -> Entry:
    return Entry(name, label, method, fields, own, peer=peer)


FULL = Entry("full", "Full FT", "full", every_weight=True)
LORA = _adapter("lora", "LoRA", "lora", _LORA, floor.low_rank(RANK), "peft-lora")
_BOTH = floor.both(floor.centred(RANK), floor.rotation(_REACH))
ADAPTERS = (
    FULL,
    LORA,
    _adapter("dora", "DoRA", "dora", _LORA, floor.low_rank(RANK), "peft-dora"),
    _adapter("oft", "OFT", "oft", {"block_size": BLOCK}, floor.rotation(BLOCK), "peft-oft"),
    _adapter("boft", f"BOFT m={FACTORS}", "boft", _BLOCKS, floor.rotation(_REACH), "peft-boft"),
    _adapter("lora-ga", "LoRA-GA", "lora-ga", {"rank": RANK}, floor.centred(RANK)),
    _adapter(
        "lora-ga-subtract", "LoRA-GA, subtract", "lora-ga", {"rank": RANK, "base": "subtract"}, floor.low_rank(RANK)
    ),
    _adapter("urnn", "uRNN", "urnn", {}),
    _adapter("hybrid", "Hybrid", "hybrid", {"rank": RANK, **_BLOCKS}, _BOTH),
)
_PROJECTED = {"rank": GALORE_RANK, "refresh_every": NEVER}
_projected = {"once": floor.projected(GALORE_RANK), "every_weight": True, "beside": ("full",), "refreshes": True}
_factors = {"own": floor.low_rank(RANK)}
LOW_RANK = (
    FULL,
    LORA,
    Entry("galore", "GaLore r=128", "galore", _PROJECTED, peer="galore-torch", **_projected),
    Entry("dpi-glrp", "DPI-GLRP (our reading)", "dpi-glrp", {**_PROJECTED, "backend": "block"}, **_projected),
    Entry("dpi-glrp-seq", "DPI-GLRP, sequential", "dpi-glrp", {**_PROJECTED, "backend": "sequential"}, **_projected),
    Entry("apollo", "APOLLO (apollo-torch)", peers.Apollo, {"rank": GALORE_RANK}, **_projected),
    Entry("fira", "Fira (fira)", peers.Fira, {"rank": GALORE_RANK}, **_projected),
    Entry("smt", "SMT b=64", "smt", {"block_size": 64, "warmup_steps": 1}, beside=("full",)),
    Entry("lorsum", "LoRSum K=1, EMA", "lorsum", {**_LORA, "metric": "none"}, own=floor.proximal(RANK)),
    Entry("lorsum-diag", "LoRSum K=1, EMA, diagonal K-FAC", "lorsum", {**_LORA, "metric": "kfac"}, own=floor.proximal(RANK)),
    Entry("scaled-gd", "ScaledGD, AdamW", "scaled-gd", {**_LORA, "update": "adamw"}, **_factors),
    Entry("lora-pro", "LoRA-Pro", "lora-pro", _LORA, **_factors),
    Entry("alt-lora", "AltLoRA", "alt-lora", _LORA, **_factors),
    Entry("lora-rite", "LoRA-RITE", "lora-rite", _LORA, **_factors),
)  # fmt: skip
COUNTERPARTS = (
    _peft("peft-lora", "LoRA (PEFT)", floor.low_rank(RANK), "LORA", **_PEFT_LORA),
    _peft(OWN_LOSS, "LoRA (PEFT, model's loss)", floor.low_rank(RANK), "LORA", own_loss=True, **_PEFT_LORA),
    _peft("peft-dora", "DoRA (PEFT)", floor.low_rank(RANK), "DORA", **_PEFT_LORA),
    _peft("peft-oft", "OFT (PEFT)", floor.rotation(BLOCK), "OFT", oft_block_size=BLOCK),
    _peft("peft-boft", "BOFT m=1 (PEFT)", floor.rotation(BUTTERFLY), "BOFT", boft_block_size=BUTTERFLY),
    Entry("galore-torch", "GaLore (galore-torch)", peers.GaLoreTorch, {"rank": GALORE_RANK}, **_projected),
)
FAMILIES = {"adapters": ADAPTERS, "low-rank": LOW_RANK}
ENTRIES = {entry.name: entry for entry in (*ADAPTERS, *LOW_RANK, *COUNTERPARTS)}


def order(family: str) -> list[str]:
    """The rows of a family's table: each method and behind it its counterparts."""
    names = []
    for entry in FAMILIES[family]:
        names += [entry.name, *([entry.peer] if entry.peer else []), *([OWN_LOSS] if entry.name == "lora" else [])]
    return names


def chosen(family: str, names: Sequence[str]) -> list[Entry]:
    """A family's methods of these names, LoRA always, what they are compared with, and their counterparts."""
    wanted = {"lora", *names} | {other for name in names for other in ENTRIES[name].beside}
    picked = [entry for entry in FAMILIES[family] if entry.name in wanted]
    peers_of = {entry.peer for entry in picked} | {OWN_LOSS}
    return [*picked, *(entry for entry in COUNTERPARTS if entry.name in peers_of)]


def rounds(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Our LoRA with up to three others in each; a method shares a round with its counterpart and what it is beside."""
    by_name = {entry.name: entry for entry in entries}
    lora = by_name.pop("lora")
    groups = [{lora.peer, OWN_LOSS}]
    for entry in entries:
        if entry.name in by_name and entry.name not in {"full"} and entry not in COUNTERPARTS:
            groups.append({entry.name, *entry.beside, *([entry.peer] if entry.peer else [])})
    filled: list[set[str]] = []
    for group in sorted(groups, key=len, reverse=True):
        place = next((made for made in filled if len(made | group) <= MOST), None)
        if place is None:
            filled.append(place := set())
        place |= group
    if "full" in by_name and not any("full" in made for made in filled):
        place = next((made for made in filled if len(made) < MOST), None)
        if place is None:
            filled.append(place := set())
        place.add("full")
    return [[lora, *(entry for entry in entries if entry.name in made)] for made in filled]
