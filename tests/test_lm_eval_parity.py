"""The untuned SmolLM2 through this harness and through stock lm-evaluation-harness, item by item, on real rows.

Stock YAML, stock ``HFLM``, stock ``simple_evaluate``; only the data come from files instead of the hub. By default a
few GSM8K items with short answers; ``TUNING_FORK_PARITY_ITEMS=64`` runs that many of each with the stock length
(HumanEval: 256 tokens) and writes what it found to standard output. docs/lm_eval_parity.md has the last full run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from rows_made_here import COLUMNS

from evals._programs import STOPS
from harness import assets
from harness.plugins import load_plugin
from harness.seeds import Streams
from harness.suite import PROTOCOL

FULL = int(os.environ.get("TUNING_FORK_PARITY_ITEMS", "0"))
MIRROR = os.environ.get("TUNING_FORK_MIRROR")
BATCH = 16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MIRROR, reason="NOT RUN: needs real rows, set TUNING_FORK_MIRROR"),
    pytest.mark.skipif(
        not (assets.cache() / "smollm2-135m" / "asset.json").is_file(),
        reason="NOT RUN: needs SmolLM2-135M, python -m harness.prepare smollm2-135m",
    ),
]


@pytest.fixture(scope="module")
def smollm():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    folder = assets.cache() / "smollm2-135m"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def source(asset: str) -> Path:
    names = {"gsm8k": "openai/gsm8k/main", "mbpp": "google-research-datasets/mbpp/full"}
    if asset == "humaneval":  # from a package
        if not (assets.cache() / asset / "asset.json").is_file():
            pytest.skip("NOT RUN: needs HumanEval, python -m harness.prepare humaneval")
        return assets.asset_folder(asset)
    return Path(MIRROR) / names.get(asset, f"nyu-mll/glue/{asset.removeprefix('glue-')}")


def ours(smollm, plugin, items):
    """(outputs, grade) of each item, through this harness."""
    from harness.language_model import Asked, answerer

    replies = answerer(*smollm, "causal", {**PROTOCOL, "eval_batch_size": BATCH}, Streams(0))
    asked = [Asked(item["id"], place, r) for item in items for place, r in enumerate(plugin.requests(item))]
    outputs: dict[str, dict[int, dict]] = {item["id"]: {} for item in items}
    for batch in replies.batches(asked):
        for index, output in zip(batch, replies.answer([asked[i] for i in batch]), strict=True):
            outputs[asked[index].item][asked[index].place] = output
    ordered = {key: [found[place] for place in sorted(found)] for key, found in outputs.items()}
    return [(ordered[item["id"]], plugin.grade(item, ordered[item["id"]])) for item in items]


def stock(smollm, tmp_path, yaml: str, rows: dict[str, list[dict]], more: str = "", size: int = BATCH) -> list[dict]:
    """lm-evaluation-harness's samples of one of its own tasks on these rows, in their order."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for split, content in rows.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    files = {split: str(tmp_path / f"{split}.jsonl") for split in rows}
    task = f"""
include: {Path(lm_eval.__file__).parent / "tasks" / yaml}
task: parity
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {json.dumps(files)}, cache_dir: {tmp_path / "cache"}}}
num_fewshot: 0
{more}
"""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "parity.yaml").write_text(task, encoding="utf-8")
    model, tokenizer = smollm
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size),
        tasks=["parity"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    return found["samples"]["parity"]


def timed(function, *arguments, **keywords):
    start = time.process_time()
    return function(*arguments, **keywords), time.process_time() - start


GLUE = ("cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte")


@pytest.mark.parametrize("task", GLUE if FULL else ("sst2", "mnli"))
def test_glue_equals_stock_item_by_item(task, smollm, tmp_path):
    plugin = load_plugin("evals", f"glue-{task}", limit=FULL or 32)
    items = plugin.items(source)
    rows = [
        {**dict(zip(COLUMNS[task], item["texts"], strict=True)), "label": item["label"], "idx": n}
        for n, item in enumerate(items)
    ]
    split = {"mnli": "validation_matched"}.get(task, "validation")
    mine, seconds = timed(ours, smollm, plugin, items)
    samples, stock_seconds = timed(
        stock, smollm, tmp_path, f"glue/{task}/default.yaml", {"train": rows[:2], split: rows}
    )
    theirs = {sample["doc"]["idx"]: sample for sample in samples}
    compare_choices(task, mine, [theirs[n] for n in range(len(items))], seconds, stock_seconds)


def compare_choices(task, mine, samples, seconds, stock_seconds):
    """Every likelihood to 1e-3 nats, and every grade, but where two answers lie within 1e-3 nats."""
    worst, ties = 0.0, []
    for number, ((outputs, grade), sample) in enumerate(zip(mine, samples, strict=True)):
        found = [value for output in outputs for value in output["loglikelihoods"]]
        theirs = [float(response[0][0]) for response in sample["resps"]]
        worst = max(worst, *(abs(a - b) for a, b in zip(theirs, found, strict=True)))
        right = sample["acc"] if "acc" in sample else len(set(sample["mcc"])) == 1  # CoLA: (gold, predicted)
        if grade["correct"] != int(right):
            ties.append(number)
            first, second, *_ = sorted(theirs, reverse=True)
            assert first - second < 1e-3, number
    assert worst < 1e-3
    correct = sum(grade["correct"] for _, grade in mine)
    print(
        f"\n{task}: {len(mine)} items, {correct} correct, grades differ (ties): {ties}; likelihoods to {worst:.2g} nats"
    )
    print(f"{task}: CPU seconds ours {seconds:.1f}, stock {stock_seconds:.1f}")


@pytest.mark.parametrize(("task", "file"), [("openbookqa", "openbookqa/test"), ("arc-easy", "ARC-Easy/train")])
def test_commonsense_equals_stock_item_by_item(task, file, smollm, tmp_path):
    """The mirror's rows are LLM-Adapters' instructions: taken apart, they are rows in the hub's columns."""
    path = Path(MIRROR) / "LLM-Adapters" / f"{file}.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines()[: FULL or 16]:
        row = json.loads(line)
        body, listed, _ = row["instruction"].split("\n\n")
        texts = re.split(r" ?Answer\d: ", listed)[1:]
        choices = {"text": texts, "label": list("ABCDE"[: len(texts)])}
        key = "ABCDE"[int(row["answer"].removeprefix("answer")) - 1]
        name = "question_stem" if task == "openbookqa" else "question"
        rows.append({"id": str(len(rows)), name: body.split("question: ", 1)[1], "choices": choices, "answerKey": key})
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plugin = load_plugin("evals", f"commonsense-likelihood-{task}")
    items = plugin.items(lambda asset: folder)
    mine, seconds = timed(ours, smollm, plugin, items)
    yaml = {"openbookqa": "openbookqa/openbookqa.yaml", "arc-easy": "arc/arc_easy.yaml"}[task]
    samples, stock_seconds = timed(
        stock, smollm, tmp_path, yaml, {"train": rows[:2], "validation": rows[:2], "test": rows}
    )
    samples.sort(key=lambda sample: int(sample["doc"]["id"]))
    compare_choices(task, mine, samples, seconds, stock_seconds)
    for (_, grade), sample in zip(mine, samples, strict=True):
        assert grade["correct_norm"] == int(sample["acc_norm"])


@pytest.mark.parametrize(
    ("task", "until", "fields"), [("mbpp", ("[DONE]",), {}), ("humaneval", STOPS, {"stock_prompt": True})]
)
def test_programs_equal_stock_text_by_text(task, until, fields, smollm):
    """Stock's own metric runs programs in this process, so texts are compared, and our grades come from the sandbox."""
    from lm_eval.models.huggingface import HFLM

    tokens = 256 if FULL else 24
    plugin = load_plugin("evals", task, limit=FULL or 4, max_tokens=tokens, **fields)
    items = plugin.items(source)
    mine, seconds = timed(ours, smollm, plugin, items)
    model, tokenizer = smollm
    settings = {"until": list(until), "do_sample": False, "max_gen_toks": tokens}
    contexts = [plugin.requests(item)[0].context for item in items]
    asked = [Instance("generate_until", {}, (context, settings), n) for n, context in enumerate(contexts)]
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH)
    theirs, stock_seconds = timed(lm.generate_until, asked, disable_tqdm=True)
    different = [
        item["id"]
        for item, (outputs, _), text in zip(items, mine, theirs, strict=True)
        if outputs[0]["texts"][0] != text
    ]
    passed = sum(grade["c"] for _, grade in mine)
    empty = sum(not text.strip() for text in theirs)
    print(
        f"\n{task}: {len(items)} items, {passed} passed, {empty} texts empty; texts differ in {len(different)}: {different}"
    )
    print(f"{task}: CPU seconds ours {seconds:.1f} (with reference likelihoods), stock {stock_seconds:.1f}")
    assert not different


def test_wikitext_equals_stock_page_by_page(smollm, tmp_path):
    """The mirror's rows are lines: a page runs from one title to the next. Short form: pages' first lines."""
    lines = [
        json.loads(line)["text"]
        for line in (Path(MIRROR) / "Salesforce/wikitext/wikitext-2-v1/validation.jsonl")
        .read_text("utf-8")
        .splitlines()
    ]
    starts = [n for n, line in enumerate(lines) if re.fullmatch(r" = [^=].*[^=] = ", line)]
    spans = list(pairwise([*starts, len(lines)]))[: 8 if FULL else 3]
    pages = ["\n".join(lines[a : (b if FULL else a + 6)]) for a, b in spans]
    rows = [{"page": page} for page in pages]
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plugin = load_plugin("evals", "wikitext-2")
    mine, seconds = timed(ours, smollm, plugin, plugin.items(lambda asset: folder))
    splits = {"train": rows[:2], "validation": rows[:2], "test": rows}
    # one window at a time: 8,192 tokens' logits are 1.6 GB, and stock makes as many again
    samples, stock_seconds = timed(stock, smollm, tmp_path, "wikitext/wikitext.yaml", splits, size=1)
    theirs = {sample["doc"]["page"]: sample["word_perplexity"] for sample in samples}  # (log-likelihood, words)
    apart = [abs(grade["nll"] + theirs[page][0]) for page, (_, grade) in zip(pages, mine, strict=True)]
    found = plugin.aggregate([grade for _, grade in mine])["word_perplexity"]
    expected = math.exp(-sum(nats for nats, _ in theirs.values()) / sum(words for _, words in theirs.values()))
    print(
        f"\nwikitext: {len(rows)} pages, word perplexity {found:.6f}, stock {expected:.6f}; nats a page to {max(apart):.2g}"
    )
    print(f"wikitext: CPU seconds ours {seconds:.1f}, stock {stock_seconds:.1f}")
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(distance < 1e-5 * -theirs[page][0] for page, distance in zip(pages, apart, strict=True))


def test_gsm8k_equals_stock_item_by_item(smollm, tmp_path):
    tokens = 256 if FULL else 32
    plugin = load_plugin("evals", "gsm8k", limit=FULL or 8, max_tokens=tokens)
    items = plugin.items(source)
    rows = [
        {"question": item["context"].removeprefix("Question: ").removesuffix("\nAnswer:"), "answer": item["answer"]}
        for item in items
    ]
    mine, seconds = timed(ours, smollm, plugin, items)
    shorter = (
        ""
        if FULL
        else f"""generation_kwargs:
  until: ["Question:", "</s>", "<|im_end|>"]
  do_sample: false
  temperature: 0.0
  max_gen_toks: {tokens}"""
    )
    samples, stock_seconds = timed(
        stock, smollm, tmp_path, "gsm8k/gsm8k.yaml", {"train": rows[:2], "test": rows}, shorter
    )
    theirs: dict[str, dict] = {}
    for sample in samples:
        theirs.setdefault(sample["doc"]["question"], {})[sample["filter"]] = sample
    different_texts = []
    for row, item, (outputs, grade) in zip(rows, items, mine, strict=True):
        strict, flexible = (theirs[row["question"]][name] for name in ("strict-match", "flexible-extract"))
        if strict["resps"][0][0] != outputs[0]["texts"][0]:
            different_texts.append(item["id"])
            continue
        assert grade["strict_answer"] == strict["filtered_resps"][0]
        assert grade["flexible_answer"] == flexible["filtered_resps"][0]
        assert grade["strict"] == int(strict["exact_match"])
        assert grade["flexible"] == int(flexible["exact_match"])
    shares = plugin.aggregate([grade for _, grade in mine])
    print(f"\ngsm8k: {len(items)} items, {tokens} tokens; texts differ in {len(different_texts)}: {different_texts}")
    print(f"gsm8k: {shares}; CPU seconds ours {seconds:.1f} (with reference likelihoods), stock {stock_seconds:.1f}")
    assert not different_texts
