"""What answering an eval's requests costs beside lm-evaluation-harness's own ``HFLM``, on the same requests, in turn.

``python -m perf.evaluation`` asks SmolLM2 problems of GSM8K without and with five worked examples (generation up to
the stop strings), the answers of benchmarks, and the endings of sentences among four (likelihoods). Stock runs at
the fastest of several batch sizes, each tried on all the requests, ours at its default. Where GSM8K is not
prepared its rows are made up, and other benchmarks that are not are left out; the output says so. Ratios: stock's time
over ours, medians over rounds with a 95 % bootstrap interval; texts and likelihoods are compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness import assets
from harness.contract import Choices, Generate, Request
from harness.device import choose_device
from harness.language_model import Asked, LanguageModel
from harness.models import load_model
from harness.plugins import load_plugin
from harness.seeds import Streams
from perf.contest import ratio

SIZES = (1, 4, 8, 16, 32)  # that stock may choose from
ENDINGS = 4
LIKELIHOODS = (
    "commonsense-likelihood-openbookqa",
    "commonsense-likelihood-arc-easy",
    "glue-sst2",
    "glue-mnli",
    "glue-qnli",
)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    device = choose_device(options.threads)
    model, tokenizer = load_model(options.model, None, torch.float32, 0)
    model.to(device).eval()
    ours = LanguageModel(model, tokenizer, options.batch_size, Streams(0), None)
    asked, source = tasks(options)
    print(f"{options.model}, {device.type}, {options.threads} threads, {options.items} items; {source}", flush=True)

    def stock(size: int) -> HFLM:
        return HFLM(model, tokenizer=tokenizer, batch_size=size)

    found = {name: contest(name, requests, ours, stock, options.rounds) for name, requests in asked.items()}
    write(found, options, source)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--likelihoods", type=int, default=128, help="items of each benchmark's likelihoods")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16, help="ours, the protocol's default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    return parser.parse_args(argv)


# --------------------------------------------------------------------------- requests


def tasks(options: argparse.Namespace) -> tuple[dict[str, list[Request]], str]:
    """Requests by task, and where they come from."""
    made = {}
    try:
        for shots in (0, 5):
            plugin = load_plugin("evals", "gsm8k", n_shot=shots, limit=options.items, max_tokens=options.max_tokens)
            items = plugin.items(assets.asset_folder)
            made[f"generation, {shots or 'no'} worked examples"] = [plugin.requests(item)[0] for item in items]
        texts, source = [item["answer"] for item in items], "GSM8K's test problems"
    except assets.AssetMissing as error:
        print(f"made-up problems instead of GSM8K: {error}", flush=True)
        texts = [_sum(number, True) for number in range(options.items)]
        source = "made-up problems (GSM8K is NOT prepared)"
        shown = "".join(f"Question: {_sum(n, False)}\nAnswer: {_sum(n, True)}\n\n" for n in range(100, 105))
        for shots, before in ((0, ""), (5, shown)):
            prompts = [f"{before}Question: {_sum(number, False)}\nAnswer:" for number in range(options.items)]
            stops = ("Question:", "</s>", "<|im_end|>")
            made[f"generation, {shots or 'no'} worked examples"] = [
                Generate(p, stops, options.max_tokens) for p in prompts
            ]
    made["likelihood of four endings"] = endings(texts)
    for task in LIKELIHOODS:
        try:
            plugin = load_plugin("evals", task, limit=options.likelihoods)
            made[f"likelihood, {task}"] = [plugin.requests(i)[0] for i in plugin.items(assets.asset_folder)]
        except assets.AssetMissing as error:
            print(f"NOT RUN: {task}: {error}", flush=True)
    return made, source


def _sum(number: int, answer: bool) -> str:
    a, b = 3 + 7 * number % 50, 5 + 11 * number % 70
    if answer:
        return f"There are {a} apples and then {b} more, so {a} + {b} = <<{a}+{b}={a + b}>>{a + b} apples in all.\n#### {a + b}"
    return (
        f"A market woman has {a} apples in a basket and her son brings {b} more. How many apples do they have in all?"
    )


def endings(texts: Sequence[str]) -> list[Choices]:
    """A worked answer's first half, to be followed by its own second half or those of the next answers."""
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in (text.split() for text in texts)]
    return [
        Choices(" ".join(first), tuple(" " + " ".join(halves[(n + k) % len(halves)][1]) for k in range(ENDINGS)))
        for n, (first, _) in enumerate(halves)
    ]


# --------------------------------------------------------------------------- the contest


def contest(name: str, requests: list[Request], ours: LanguageModel, stock: Callable[[int], HFLM], rounds: int) -> dict:
    """Seconds of both sides by round, in turn, and how far their answers lie apart."""
    tried = {size: timed(lambda size=size: answers_of_stock(stock(size), requests))[0] for size in SIZES}
    best = min(tried, key=tried.get)
    sides = {"ours": lambda: answers_of_ours(ours, requests), "stock": lambda: answers_of_stock(stock(best), requests)}
    seconds, apart = {side: [] for side in sides}, 0.0
    for number in range(rounds):
        answers = {}
        for side in list(sides)[:: 1 if number % 2 else -1]:
            spent, answers[side] = timed(sides[side])
            seconds[side].append(spent)
        apart = max(apart, difference(*answers.values()))
        print(
            f"{name}, round {number + 1}/{rounds}: {', '.join(f'{s} {t[-1]:.1f} s' for s, t in seconds.items())}",
            flush=True,
        )
    return {
        "requests": len(requests),
        "batch_size_of_stock": best,
        "trial_seconds": tried,
        "seconds": seconds,
        "ratio": ratio(seconds["stock"], seconds["ours"]),
        "apart": apart,
        "kind": "share of texts that differ" if isinstance(requests[0], Generate) else "nats",
    }


def timed(call: Callable[[], list]) -> tuple[float, list]:
    start = time.perf_counter()
    made = call()
    return time.perf_counter() - start, made


def answers_of_ours(ours: LanguageModel, requests: list[Request]) -> list:
    asked = [Asked(str(number), 0, request) for number, request in enumerate(requests)]
    found: dict[int, dict] = {}
    for batch in ours.batches(asked):
        found.update(zip(batch, ours.answer([asked[index] for index in batch]), strict=True))
    key = "texts" if isinstance(requests[0], Generate) else "loglikelihoods"
    return [value for index in range(len(asked)) for value in found[index][key]]


def answers_of_stock(lm: HFLM, requests: list[Request]) -> list:
    if isinstance(requests[0], Generate):
        settings = {"until": list(requests[0].until), "max_gen_toks": requests[0].max_tokens, "do_sample": False}
        pairs = [(request.context, settings) for request in requests]
        made = [Instance("generate_until", {}, pair, number) for number, pair in enumerate(pairs)]
        return lm.generate_until(made, disable_tqdm=True)
    pairs = [(request.context, text) for request in requests for text in request.continuations]
    made = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return [value for value, _ in lm.loglikelihood(made, disable_tqdm=True)]


def difference(a: list, b: list) -> float:
    if isinstance(a[0], str):
        return sum(x != y for x, y in zip(a, b, strict=True)) / len(a)
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


# --------------------------------------------------------------------------- what came out


def write(found: dict[str, dict], options: argparse.Namespace, source: str) -> None:
    lines = ["| task | requests | stock's batch | stock / ours | answers apart |", "|---|---|---|---|---|"]
    for name, row in found.items():
        middle, low, high = row["ratio"]
        apart = f"{row['apart']:.2g} {row['kind']}"
        cells = (name, row["requests"], row["batch_size_of_stock"], f"{middle:.2f} [{low:.2f}, {high:.2f}]", apart)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    table = "\n".join(lines)
    print(f"\n{table}")
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {"model": options.model, "threads": options.threads, "source": source, "torch": torch.__version__}
    (options.out / "evaluation.json").write_text(
        json.dumps({"settings": settings, "tasks": found}, indent=1), encoding="utf-8"
    )
    (options.out / "evaluation.md").write_text(f"{options.model}, {source}.\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
