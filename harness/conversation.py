"""Conversations as text and tokens: one form for training and evaluation.

A tokenizer with a chat template tells them as ``apply_chat_template`` does, a system turn of the template's own included;
others as lines of "role: content" and the end token. The begin token stands in front once: the template's, or else the
tokenizer's, as lm-evaluation-harness encodes a context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.failures import UserError

Turns = Sequence[tuple[str, str]]
"""Pairs of role and content."""
DATE = "26 Jul 2024"  # what Llama's templates say where they know no date: the text must not depend on the day


def asked(turns: Turns, tokenizer: Any) -> str:
    """The text after which the assistant's next turn stands. Raises UserError where the template refuses the turns."""
    return _told(turns, tokenizer, True)


def encoded(turns: Turns, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a conversation, and the (first, end) of each assistant's turn among them, what ends it included.

    Each turn begins where ``asked`` of the turns before it ends. Raises UserError where the template refuses the turns,
    or tells a turn otherwise when another follows: what is trained on would not be what is asked.
    """
    text = _told(turns, tokenizer, False)
    begin = _begin(text, tokenizer)
    spans = []
    for place, (role, _) in enumerate(turns):
        if role == "assistant":
            before, whole = asked(turns[:place], tokenizer), _told(turns[: place + 1], tokenizer, False)
            if not (whole.startswith(before) and text.startswith(whole)):
                raise UserError(
                    f"the model's chat template tells the turns before turn {place + 1} otherwise once it is there, or "
                    "that turn once others follow, so no text can be both trained on and asked. Use rows of one "
                    "question and answer, or take the template out of the model's tokenizer files."
                )
            spans.append(tuple(len(begin) + len(_plain(part, tokenizer)) for part in (before, whole)))
    return begin + _plain(text, tokenizer), spans


def _told(turns: Turns, tokenizer: Any, asks: bool) -> str:
    """The turns as text; ``asks``: up to where the assistant goes on."""
    if not getattr(tokenizer, "chat_template", None):
        lines = [f"{role}: {content}{tokenizer.eos_token or ''}\n" for role, content in turns]
        return "".join(lines) + ("assistant:" if asks else "")
    from jinja2 import TemplateError

    if not turns:
        raise UserError("a conversation that the assistant begins has no form in a chat template: put a turn before it")
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks, date_string=DATE)
    except TemplateError as error:
        roles = ", ".join(role for role, _ in turns)
        raise UserError(f"the model's chat template refuses turns of {roles}: {error}") from None


def _begin(text: str, tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text, unless the text has it already."""
    if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        return []
    whole, own = tokenizer("a")["input_ids"], _plain("a", tokenizer)
    return whole[: next(place for place in range(len(whole)) if whole[place : place + len(own)] == own)]


def _plain(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
