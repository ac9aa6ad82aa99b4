"""A judge: a language model that is asked for a verdict, and whose every verdict is kept.

``judge("https://host/v1#model")``   any OpenAI-compatible endpoint; its key is read from TUNING_FORK_JUDGE_KEY, is sent to
                                    that host alone, and over https or to this machine only
``judge("model:NAME")``              a model of config/catalogue.yaml, on this machine
``judge("recorded:FILE")``           verdicts that were kept before: JSON Lines of ``key`` and ``text``

A verdict's key hashes the messages and the repetition. Verdicts lie under their judge and key in the assets' folder, so that
the same question is never paid for twice, and a scoring that stopped goes on where it was; their files, put together, are
a record. A recorded judge keeps nothing.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import assets
from harness.failures import UserError

KEY = "TUNING_FORK_JUDGE_KEY"
MAX_TOKENS = 2048  # of a verdict
ATTEMPTS, LONGEST_PAUSE = 6, 60.0  # of a busy endpoint; seconds
SECONDS = 180.0  # for one answer
Messages = Sequence[tuple[str, str]]
"""Pairs of role and content."""


class JudgeError(RuntimeError):
    """No verdict could be had; the message says why and never holds the key."""


class Judge:
    """``ask`` gives the text of a verdict, kept or new."""

    def __init__(self, name: str, answer: Callable[[Messages, str], str], keeps: bool = True):
        self.name, self._answer, self._keeps = name, answer, keeps

    def ask(self, messages: Messages, repetition: int = 0) -> str:
        """Raises JudgeError."""
        key = verdict_key(messages, repetition)
        if not self._keeps:
            return self._answer(messages, key)
        kept = assets.cache() / "verdicts" / _hash(self.name) / f"{key}.json"
        if kept.is_file():
            return json.loads(kept.read_text(encoding="utf-8"))["text"]
        text = self._answer(messages, key)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}.part")
        row = json.dumps({"key": key, "judge": self.name, "text": text}, ensure_ascii=False)
        part.write_text(row + "\n", encoding="utf-8")  # so that files put together are a record
        part.replace(kept)
        return text


def judge(name: str) -> Judge:
    """The judge of that name, see above. Raises UserError for a name of another form."""
    kind, _, rest = name.partition(":")
    if kind in ("http", "https") and "#" in rest:
        return Judge(name, _endpoint(name))
    if kind == "model" and rest:
        return Judge(name, _local(rest))
    if kind == "recorded" and rest:
        return Judge(name, _recorded(Path(rest)), keeps=False)
    raise UserError(f"judge: {name!r} is none of https://HOST/v1#MODEL, model:NAME and recorded:FILE")


def verdict_key(messages: Messages, repetition: int) -> str:
    """Hexadecimal; the judge does not count, so that a record answers for whichever judge it was made with."""
    return _hash(json.dumps([list(map(list, messages)), repetition], ensure_ascii=False))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# --------------------------------------------------------------------------- an endpoint


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None  # another host must not get the key


def _endpoint(name: str) -> Callable[[Messages, str], str]:
    url, _, model = name.partition("#")
    host = urllib.parse.urlsplit(url).hostname
    opener = urllib.request.build_opener(_NoRedirect)

    def answer(messages: Messages, _: str) -> str:
        secret = os.environ.get(KEY, "").strip()
        if not (secret.isascii() and secret.isprintable()):  # the HTTP library's own error would show it
            raise JudgeError(f"{KEY} holds characters that no header may have, such as a line break: set it again")
        if secret and not url.startswith("https:") and host not in ("localhost", "127.0.0.1", "::1"):
            raise JudgeError(f"{KEY} is not sent over plain http to {host}: use https, or unset it")
        body = {"model": model, "temperature": 0.0, "max_tokens": MAX_TOKENS}
        body["messages"] = [{"role": role, "content": content} for role, content in messages]
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {secret}"} if secret else {})
        request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        text = _patiently(lambda: _sent(opener, request), host)
        return text.replace(secret, "[key]") if secret else text  # an endpoint may repeat what it was sent

    return answer


class _NoCompletion(Exception):
    """An answer that is no chat completion, or takes too long."""


def _sent(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> str:
    """The text of the endpoint's answer, all of it within SECONDS."""
    ends, parts = time.monotonic() + SECONDS, []
    with opener.open(request, timeout=SECONDS) as response:
        while part := response.read1(1 << 16):
            parts.append(part)
            if time.monotonic() > ends:
                raise _NoCompletion(f"the answer was not whole after {SECONDS:g} s")
    try:
        text = json.loads(b"".join(parts))["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise _NoCompletion("the answer is no chat completion") from None
    if not isinstance(text, str):
        raise _NoCompletion("the answer has no text")
    return text


def _patiently(call: Callable[[], str], host: str | None) -> str:
    """What ``call`` gives, after as many attempts as it takes. Raises JudgeError, which quotes nothing that was sent back."""
    why = ""
    for attempt in range(ATTEMPTS):
        pause = min(LONGEST_PAUSE, 2.0**attempt)
        try:
            return call()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                raise JudgeError(f"{host} refused with {error.code}: is the key in {KEY} right, and set?") from None
            why = f"{error.code} {http.client.responses.get(error.code, '')}".strip()
            if error.code != 429 and error.code < 500:
                raise JudgeError(f"{host} answered {why}: check the judge's address and model") from None
            given = error.headers.get("Retry-After", "")
            pause = min(LONGEST_PAUSE, float(given)) if given.isdigit() else pause
        except _NoCompletion as error:
            why = str(error)
        except (OSError, http.client.HTTPException) as error:  # time-outs, refused and broken connections
            why = type(error).__name__
        if attempt + 1 < ATTEMPTS:
            time.sleep(pause)
    raise JudgeError(
        f"{host} gave no verdict in {ATTEMPTS} attempts ({why}); verdicts so far are kept, score again later"
    )


# --------------------------------------------------------------------------- this machine, and a record


def _local(name: str) -> Callable[[Messages, str], str]:
    replies = []

    def answer(messages: Messages, _: str) -> str:
        import torch

        from harness.contract import Generate
        from harness.language_model import Asked, LanguageModel
        from harness.models import load_model
        from harness.seeds import Streams

        if not replies:
            model, tokenizer = load_model(name, None, torch.float32, 0)
            replies.append(LanguageModel(model.eval(), tokenizer, 1, Streams(0), None))
        room = min(MAX_TOKENS, replies[0].lm.max_length // 4)
        request = Generate.conversation(messages, ("<|im_end|>", "\nuser:"), room)
        return replies[0].answer([Asked("verdict", 0, request)])[0]["texts"][0]

    return answer


def _recorded(path: Path) -> Callable[[Messages, str], str]:
    if not path.is_file():
        raise UserError(f"judge: recorded:{path}: there is no such file")
    known = {}
    # Not by splitlines(), which cuts at line separators inside a verdict, too.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            known[row["key"]] = row["text"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{path}:{number}: not a verdict {{"key": ..., "text": ...}}') from None

    def answer(_: Messages, key: str) -> str:
        if key not in known:
            raise JudgeError(f"{path} has no verdict for this answer (key {key})")
        return known[key]

    return answer
