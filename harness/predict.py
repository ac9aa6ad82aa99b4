"""Stage ``predict``: one eval's raw outputs from one training, item by item.

``python -m harness.predict --suite quick --model M --corpus C --variant V --seed 0 --eval E`` works from a shell, too.
The model that answers is the merged one, a plain model of the base's architecture; where a method cannot merge it is
the attached one, and the record says so. Answers are appended to ``predictions.part.jsonl`` batch by batch, so an
interrupted prediction goes on where it was; ``predictions.jsonl.zst`` and the record come at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import record
from harness.assets import asset_folder, go_offline, revisions
from harness.contract import Eval, Generate, NotMergeable, Step
from harness.failures import BadAnswer, UserError, guard
from harness.provenance import provenance
from harness.rows import write_rows
from harness.suite import Training, catalogue, find_plugin, load_plugin, load_suite, predict_record, train_record

if TYPE_CHECKING:
    from harness.language_model import Asked

MERGE_ERROR = {"float32": 0.01, "bfloat16": 0.25, "bfloat16-mixed": 0.25}
"""How far a merged model's logits may be from the attached one's, of the largest logit: a hundred times what rounding of the
type has been seen to do."""
TELL_EVERY = 5.0  # seconds between lines of progress


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    suite = load_suite(arguments.suite)
    training = suite.training(arguments.model, arguments.corpus, arguments.variant, arguments.seed)
    if training.variant == "majority":
        raise UserError("the majority row has no model to ask: it is scored only (python -m harness.score)")
    target = arguments.out or predict_record(training, arguments.eval)
    trained = _trained(training)
    if trained["status"] == "ok":
        content = predict(training, arguments.eval, trained, target.parent)
    else:
        content = {"status": "skipped", "reason": f"train {trained['status']}"}
    record.write(target, {**_opening(training, arguments.eval), **content})
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m harness.predict", description="Answer one eval with one training.")
    for name in ("suite", "model", "corpus", "variant", "eval"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, help="the record to write, instead of the suite's own place")
    return parser.parse_args(argv)


def _trained(training: Training) -> dict:
    """The record of the training. Raises UserError where there is none, or another specification's."""
    path = train_record(training)
    if not path.is_file():
        raise UserError(f"{path} does not exist: train first (python -m harness.train with the same arguments)")
    trained = record.read(path)
    if trained["status"] == "ok" and trained["key"] != training.key:
        raise UserError(
            f"{path} belongs to another specification (key {trained['key']}, now {training.key}): the suite or the "
            "code has changed since. Train again, or go back to what it was trained with."
        )
    return trained


def _opening(training: Training, evaluation: str) -> dict:
    return {
        "stage": "predict",
        **training.identity,
        "eval": evaluation,
        "reason": "",
        "key": training.predict_key(evaluation),
        "assets": _assets(evaluation),
        "provenance": provenance(training.protocol["threads"]),
    }


def _assets(evaluation: str) -> dict[str, str]:
    """The revision of everything that the eval reads."""
    return revisions(find_plugin("evals", evaluation).names("assets"))


def predict(training: Training, evaluation: str, trained: dict, folder: Path) -> dict:
    """Answer every item and write the predictions into ``folder``; what the record says of it."""
    go_offline()
    from harness.language_model import answerer
    from harness.measure import Phases, rss_peak_bytes

    phases = Phases()
    with phases("load"):
        plugin: Eval = load_plugin("evals", evaluation, **training.suite.settings("evals", evaluation))
        items = _checked(plugin.items(asset_folder), evaluation)
        model, merging = restore_for_prediction(training, trained, _first_requests(plugin, items))
        replies = answerer(*model, training.protocol, _streams(training))
    weights = trained.get("files", {}).get("delta", {}).get("sha256", "")
    identity = f"{training.predict_key(evaluation)} {weights} {json.dumps(_assets(evaluation))}"
    journal = _Journal(folder / "predictions.part.jsonl", identity)
    with phases("predict"):
        outputs, prompts, generated = _answer_all(plugin, items, replies, journal)
    path = folder / "predictions.jsonl.zst"
    rows = ({"item": key, "prompt_sha256": prompts.get(key), "outputs": outputs[key]} for key in outputs)
    write_rows(path, list(rows))
    journal.discard()
    return {
        "status": "ok",
        "n_items": len(items),
        "n_requests": sum(len(given) for given in outputs.values()),
        "batch_size": training.protocol["eval_batch_size"],
        "answering": replies.answering,
        **merging,
        "tokens_generated": generated,
        "phases": phases.record,
        "memory": {"rss_peak_bytes": rss_peak_bytes()},
        "files": {"predictions": record.file_entry(path)},
    }


# --------------------------------------------------------------------------- the model


def restore_for_prediction(training: Training, trained: dict, asked: Sequence[Asked]) -> tuple[tuple, dict]:
    """((model, tokenizer, kind), what the record says of merging): the trained model, merged where that is possible.

    The error of merging is the largest difference of logits on the contexts of ``asked``.
    """
    from harness import models
    from harness.device import choose_device
    from harness.setup import DTYPE, attach, float32_head, labels

    protocol, streams = training.protocol, _streams(training)
    device = choose_device(protocol["threads"])
    corpus = load_plugin("corpora", training.corpus, **training.corpus_fields())
    heads = labels(corpus, catalogue()["models"][training.model]["architecture"])
    dtype = DTYPE[protocol["precision"]]
    model, tokenizer = models.load_model(training.model, heads, dtype, streams.seed("init", "head"))
    model.to(device)
    kind = models.kind(model)
    merging: dict[str, Any] = {"merged": True, "merge_error": 0.0}
    if training.trains:
        known = set(model.state_dict())
        method = load_plugin("methods", training.method, **training.hyperparameters_given())
        attach(model, method, trained["steps"], dtype, streams)
        _fill(model, record.checked_file(train_record(training), trained, "delta"), known)
        streams.seed_torch("init", "before_step", trained["steps"], 0)
        method.before_step(model, Step(trained["steps"], trained["steps"], 0.0))
        merging = _merge(method, (model, tokenizer, kind), protocol, asked)
    else:
        float32_head(model)
    return (model.eval(), tokenizer, kind), merging


def _fill(model: Any, path: Path, known: set[str]) -> None:
    """Copy the delta into the model: every tensor must have its place, and all that the method added its tensor."""
    from safetensors.torch import load_file

    from harness.checkpoint import fill, persistent_buffers

    tensors = load_file(str(path))
    try:
        fill(model, tensors)
    except KeyError as error:
        raise UserError(f"{path}: no place for the tensor {error} in the attached model. Train again.") from None
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = sorted((trains | set(persistent_buffers(model))) - known - set(tensors))
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing[:3])} ({len(missing)} tensors in all). Train again.")


def _merge(method: Any, model: tuple, protocol: dict, asked: Sequence[Asked]) -> dict:
    from harness.language_model import checked_logits

    attached = checked_logits(*model, protocol, asked)
    try:
        method.merge(model[0])
    except NotMergeable as error:
        return {"merged": False, "merge_error": None, "merge_reason": str(error)}
    apart = float((checked_logits(*model, protocol, asked) - attached).abs().max())
    largest, share = float(attached.abs().max()), MERGE_ERROR[protocol["precision"]]
    if not apart <= share * largest:  # no number is not less either
        raise BadAnswer(
            f"method {type(method).__name__}: the merged model's logits differ from the trained one's by {apart:.3g}, the "
            f"largest of which is {largest:.3g}; rounding explains at most {share:.0%} of it. Its merge() is wrong "
            "(make check METHOD=... tells), and answers of that model would not be the method's."
        )
    return {"merged": True, "merge_error": apart}


def _streams(training: Training) -> Any:
    from harness.seeds import Streams

    return Streams(training.seed, training.protocol["streams"])


# --------------------------------------------------------------------------- the answers


def _checked(items: Sequence[dict], evaluation: str) -> Sequence[dict]:
    ids = [item["id"] for item in items]
    if not items or len(set(ids)) != len(ids):
        what = "ids that are not unique" if items else "no items"
        raise UserError(f"eval {evaluation} has {what}: every item of `items` needs its own string 'id'")
    return items


def _first_requests(plugin: Eval, items: Sequence[dict]) -> list[Asked]:
    """The first request of the first few items."""
    from harness.language_model import CHECKED_CONTEXTS, Asked

    return [Asked(item["id"], 0, plugin.requests(item, ())[0]) for item in items[:CHECKED_CONTEXTS]]


def _answer_all(plugin: Eval, items: Sequence[dict], replies: Any, journal: _Journal) -> tuple[dict, dict, int]:
    """Outputs by item, hashes of first prompts by item, and the number of generated tokens. Round after round."""
    from harness.language_model import Asked

    outputs: dict[str, list[dict]] = {item["id"]: [] for item in items}
    prompts: dict[str, str] = {}
    generated = 0
    while True:
        asked = [
            Asked(item["id"], len(outputs[item["id"]]) + number, request)
            for item in items
            for number, request in enumerate(plugin.requests(item, tuple(outputs[item["id"]])))
        ]
        if not asked:
            return outputs, prompts, generated
        _answer_round(asked, replies, journal)
        for one in asked:
            output = journal.outputs[one.item, one.place]
            outputs[one.item].append(output)
            prompts.setdefault(one.item, hashlib.sha256(one.request.context.encode()).hexdigest())
            generated += sum(output["tokens"]) if isinstance(one.request, Generate) else 0


def _answer_round(asked: Sequence[Asked], replies: Any, journal: _Journal) -> None:
    """Answer what the journal does not have, whole batches only: what shares a batch never changes."""
    batches = replies.batches(asked)
    started = told = time.monotonic()
    cost_done, cost_all = 0, sum(_cost(asked[index]) for batch in batches for index in batch)
    answered = 0
    for batch in batches:
        members = [asked[index] for index in batch]
        cost = sum(map(_cost, members))
        if journal.has(members):
            cost_all -= cost
        else:
            journal.add(members, replies.answer(members))
            cost_done += cost
        answered += len(members)
        if time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            left = (told - started) / max(1, cost_done) * (cost_all - cost_done)
            print(f"{answered}/{len(asked)} answers  about {left:.0f} s left", flush=True)


def _cost(asked: Asked) -> int:
    """A rough measure of the work of a request: a generated token costs about ten read ones; four letters make one."""
    request = asked.request
    work = len(request.context) // 4 + 1
    return work + 10 * request.max_tokens * request.samples if isinstance(request, Generate) else work


class _Journal:
    """Answers so far, in memory and appended to a file whose first line names what is being predicted."""

    def __init__(self, path: Path, identity: str):
        self.path, self.outputs = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (open until the prediction ends)
        kept = self._read(identity)
        self.file.truncate(kept)
        if not kept:
            self._append(json.dumps(identity) + "\n")
        elif self.outputs:
            print(f"going on after {len(self.outputs)} answers", flush=True)

    def _read(self, identity: str) -> int:
        """Take the answers of an earlier start of this very prediction; the number of bytes that are whole lines."""
        kept = 0
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True)):
            content = _json(line)
            if content is None or (number == 0 and content != identity):
                break  # cut by a kill, damaged by a power cut, or another prediction's
            if number:
                item, place, output = content
                self.outputs[item, place] = output
            kept += len(line)
        return kept

    def has(self, asked: Sequence[Asked]) -> bool:
        return all((one.item, one.place) in self.outputs for one in asked)

    def add(self, asked: Sequence[Asked], outputs: Sequence[dict]) -> None:
        """Keep a batch's answers, here and on disk."""
        for one, output in zip(asked, outputs, strict=True):
            self.outputs[one.item, one.place] = output
        rows = [(one.item, one.place, output) for one, output in zip(asked, outputs, strict=True)]
        self._append("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def discard(self) -> None:
        self.file.close()
        self.path.unlink()

    def _append(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()


def _json(line: bytes) -> Any:
    """What a whole line holds; None where it was cut or damaged."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


if __name__ == "__main__":
    sys.exit(guard(main)())
