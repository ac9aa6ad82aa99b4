"""What our loop costs over a bare torch loop, and against HF Trainer + PEFT: same weights, batches, labels, optimizer.

``python -m perf.overhead`` alternates blocks of steps of the contestants in one process, so that a drift of the machine
hits all alike, and prints the ratio of their times per step with a bootstrap interval over blocks.

``bare``: forward, cross-entropy at the supervised positions, backward, clip, fused AdamW: the least any loop must do.
``trainer``: HF Trainer's own ``training_step`` with PEFT's LoRA and the model's own loss, as a user would run it.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from harness import data
from harness.assets import asset_folder
from harness.contract import Run
from harness.models import find_targets, load_model
from harness.plugins import load_plugin
from perf.contest import Ours, batches, labels, ratio


class Bare:
    """The arithmetic and nothing else."""

    def __init__(self, model):
        self.model = model.train()
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0, fused=True)

    def step(self, batch: data.MicroBatch) -> None:
        hidden = self.model.base_model(**batch.inputs, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.positions)
        logits = self.model.get_output_embeddings()(picked).float()
        (F.cross_entropy(logits, batch.targets, reduction="sum") / batch.tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class HFTrainer:
    """HF Trainer's step on a PEFT model: its loss over all positions, its clipping, fused AdamW."""

    def __init__(self, model, rank: int, folder: Path):
        import peft
        from transformers import Trainer as HF
        from transformers import TrainingArguments

        roles = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=roles, lora_dropout=0.0)
        self.model = peft.get_peft_model(model, config).train()
        arguments = TrainingArguments(
            str(folder), report_to=[], use_cpu=not torch.cuda.is_available(), optim="adamw_torch_fused", max_grad_norm=1.0,
            per_device_train_batch_size=1, max_steps=10**6, logging_steps=10**6, save_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False, lr_scheduler_type="constant",
        )  # fmt: skip
        self.hf, self.arguments, self.HF = None, arguments, HF

    def run(self, sequence: list[data.MicroBatch]) -> float:
        """Seconds of ``Trainer.train`` over these batches, its own start and end left out by callbacks."""
        from transformers import TrainerCallback

        times: list[float] = []

        class Clock(TrainerCallback):
            def on_step_begin(self, *_, **__):
                times.append(time.perf_counter())

            def on_step_end(self, *_, **__):
                times.append(time.perf_counter())

        rows = [{**{k: v for k, v in b.inputs.items()}, "labels": labels(b)} for b in sequence]
        self.arguments.max_steps = len(rows)
        trainer = self.HF(
            self.model, self.arguments, train_dataset=rows, data_collator=lambda r: r[0], callbacks=[Clock()]
        )
        if self.hf is not None:
            trainer.optimizer = self.hf.optimizer
        trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
        trainer.train()
        self.hf = trainer
        return sum(b - a for a, b in zip(times[::2], times[1::2], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--supervised", type=int, default=32, help="tokens of a row that carry loss")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=1, help="steps in a block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    base, _ = load_model(options.model, None, torch.float32, 0)
    print(f"{options.model} from {asset_folder(options.model).name}, {options.rows} x {options.length} tokens, "
          f"{options.supervised} supervised a row, {options.threads} threads")  # fmt: skip

    def lora():
        model = copy.deepcopy(base)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        method = load_plugin("methods", "lora", rank=16, alpha=32, learning_rate=1e-4)
        torch.manual_seed(0)
        method.attach(model, Run(10**6, torch.float32, find_targets))
        return model, method

    ours, bare, peft = Ours(*lora(), options.out), Bare(lora()[0]), HFTrainer(copy.deepcopy(base), 16, options.out)
    made = batches(base.config.vocab_size, options.rows, options.length, options.supervised, options.steps)
    seconds: dict[str, list[float]] = {"ours": [], "bare": [], "trainer": []}

    def block(name: str) -> float:
        if name == "trainer":
            return peft.run(made)
        start = time.perf_counter()
        for batch in made:
            (ours if name == "ours" else bare).step(batch)
        return time.perf_counter() - start

    names = list(seconds)
    for number in range(-2, options.blocks):
        for name in names[number % 3 :] + names[: number % 3]:  # every order in turn
            spent = block(name)
            if number >= 0:
                seconds[name].append(spent / options.steps)
        if number >= 0 and number % 5 == 4:
            print(f"block {number + 1}/{options.blocks}", flush=True)
    result = {"settings": vars(options) | {"out": None}, "seconds": seconds}
    for other, bar in (("bare", 1.03), ("trainer", 1.0)):
        middle, low, high = ratio(seconds["ours"], seconds[other])
        result[f"ours_over_{other}"] = {"median": middle, "low": low, "high": high, "bar": bar}
        verdict = "met" if high < bar else "NOT met"
        print(f"ours / {other}: {middle:.4f}  95 % interval [{low:.4f}, {high:.4f}]  bar {bar}: {verdict}")
    (options.out / "overhead.json").write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
