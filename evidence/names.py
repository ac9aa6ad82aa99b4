"""How tables and figures name a variant: its family's usual spelling, then what the suite added.

``lora-r16`` is of the family ``lora`` and reads "LoRA r=16"; ``peft-dora-r4`` is of ``dora``: "DoRA r=4 (PEFT)".
"""

from __future__ import annotations

import re

LOSS_UNITS = "Loss: nats, or squared error where a value is predicted."
FAMILIES = {
    "untuned": "Untuned",
    "majority": "Majority class",
    "full": "Full FT",
    "lora": "LoRA",
    "dora": "DoRA",
    "boft": "BOFT",
    "lora-ga": "LoRA-GA",
    "urnn": "uRNN",
    "hybrid": "Hybrid",
    "galore": "GaLore",
    "dpi-glrp": "DPI-GLRP",
    "power-iteration": "Power iteration",
    "smt": "SMT",
    "lorsum": "LoRSum",
    "svdlora": "SVDLoRA",
    "scaled-gd": "ScaledGD",
    "lora-pro": "LoRA-Pro",
    "alt-lora": "AltLoRA",
    "lora-rite": "LoRA-RITE",
    "pissa": "PiSSA",
    "adalora": "AdaLoRA",
    "vera": "VeRA",
    "ia3": "IA3",
    "oft": "OFT",
    "lora-plus": "LoRA+",
    "rslora": "rsLoRA",
}
"""Labels of the methods that have a colour of their own, in the order of tables without a suite."""


def family_of(variant: str) -> str:
    """The longest family whose words stand in the variant's name, one after another; empty if none does."""
    words = f"-{variant}-"
    return max((name for name in FAMILIES if f"-{name}-" in words), key=len, default="")


def label_of(variant: str) -> str:
    """The variant's name for readers; one of no known family stays as the suite wrote it."""
    family = family_of(variant)
    if not family:
        return variant
    words = f"-{variant}-".replace(f"-{family}-", "-", 1).strip("-")
    rest = re.split(r"(?<!\de)-", words)  # the minus of 1e-5 parts no words
    bridged = "peft" in rest
    added = [re.sub(r"^([a-z])(\d+)$", r"\1=\2", word) for word in rest if word not in ("", "peft")]
    return " ".join([FAMILIES[family], *added]) + (" (PEFT)" if bridged else "")
