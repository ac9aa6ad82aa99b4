"""Method cards: docs/methods.md says what the code says, and its numbers are right."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness import card, shape_cost
from harness.contract import Run, Step
from harness.plugins import available, load_plugin
from harness.roles import find_targets
from harness.tiny import tiny_configuration, tiny_model

METHODS = available("methods")
PAGE = card.PAGE.read_text(encoding="utf-8")
cost = functools.cache(shape_cost.cost)


@pytest.fixture(autouse=True)
def _each_method_once(monkeypatch):
    monkeypatch.setattr(shape_cost, "cost", cost)


@pytest.mark.parametrize("name", METHODS)
def test_the_page_holds_the_card_as_the_code_gives_it(name):
    assert card.card(name) in PAGE, "renew it: python -m harness.card --write"


def test_the_page_holds_nothing_else():
    assert card.document() == PAGE, "renew it: python -m harness.card --write"
    assert [line[3:] for line in PAGE.splitlines() if line.startswith("## ")] == METHODS


# --------------------------------------------------------------------------- text


SOURCE = '''
class Some:
    rank: int = 4  # of the | update
    alpha: float = field(
        default=2.0,
        metadata={},
    )  # s = alpha / rank
    plain: bool = False
    start: str = "zero"
    """What A
    starts from."""
    later: int = 1
    known: ClassVar[int] = 3  # no option, and harmless
'''


def test_remarks_are_the_string_under_a_field_or_the_comment_beside_it(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(SOURCE)
    found = card._remarks(path, "Some")
    assert found["rank"] == "of the \\| update" and found["alpha"] == "s = alpha / rank"
    assert found["start"] == "What A starts from." and found["plain"] == found["later"] == ""


def test_options_name_every_field_with_its_default_and_search_space():
    text = card._options("lora")
    assert "| `rank` | `16` | 4, 8, 16, 32, 64 |" in text and "| `rslora` | `false` |" in text
    assert "| `learning_rate` | `0.003` | 1e-05 to 0.01, log-uniform |" in text
    assert "| `targets` | `all-linear` |" in text
    assert "| `config` | `{}` |" in card._options("peft")


def test_the_command_prints_the_cards_asked_for(capsys):
    assert card.main(["full", "lora"]) == 0
    said = capsys.readouterr().out
    assert said == card.card("full") + "\n" + card.card("lora")
    assert "theta <- AdamW" in said and "arxiv.org/abs/2106.09685" in said and "Hu et al." in said


def test_an_unknown_name_is_refused_with_the_nearest(capsys):
    from harness.failures import guard

    assert guard(card.main)(["lora", "loar"]) == 2
    captured = capsys.readouterr()
    assert "Did you mean lora" in captured.err and not captured.out


# --------------------------------------------------------------------------- numbers


def test_lora_is_counted_as_by_hand():
    found = cost("lora")
    hidden, kv, ffn, rank = 576, 192, 1536, 16
    shapes = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden), *[(hidden, ffn)] * 3]
    trained = 30 * rank * sum(i + o for i, o in shapes)
    assert (found.trained, found.effective, found.total) == (trained, trained, 134_515_008)
    assert found.forward - found.base_forward == 2 * trained
    assert found.base_forward == 30 * 2 * sum(i * o for i, o in shapes)  # an attention with a mask counts nothing
    assert found.added == found.gradients == 4 * trained and found.once == 0
    assert found.tensors == {"A": 210, "B": 210}
    assert found.state == 2 * 4 * trained + 420 * 4  # AdamW: two numbers each, and a count a tensor


def test_full_training_takes_three_forwards_and_adds_nothing():
    found = cost("full")
    assert found.trained == found.total and found.added == found.once == 0
    assert found.forward == found.base_forward and found.training == pytest.approx(3 * found.forward, rel=1e-3)


def test_a_method_that_refuses_the_standard_model_says_so_and_is_counted_on_the_tiny_one():
    found = cost("hybrid-literal")
    assert found.model.startswith("the tiny Llama")
    assert found.total == sum(p.numel() for p in tiny_model("llama")[0].parameters())
    assert found.notes[0].startswith("Not on SmolLM2-135M's shapes: ")


@pytest.mark.parametrize("name", ["lora", "boft"])
def test_counts_of_one_and_two_blocks_give_those_of_three_on_real_tensors(name):
    """A tiny Llama of three blocks on three rows, run for real under torch's own counter."""
    blocks, rows = 3, 3
    place = shape_cost._Place("tiny", blocks, lambda layers: tiny_configuration("llama", layers=layers))
    found = shape_cost._cost(name, place)
    model, method = tiny_model("llama", layers=blocks)[0].requires_grad_(False).train(), load_plugin("methods", name)
    bare = sum(p.numel() for p in model.parameters())
    method.attach(model, Run(1000, torch.float32, find_targets))
    optimizer, step = method.optimizer(model), Step(0, 1000, 1e-4)
    with FlopCounterMode(display=False) as whole:
        method.before_step(model, step)
        with FlopCounterMode(display=False) as forward:
            hidden = shape_cost._body(model, rows)
        hidden.sum().backward()
        method.after_backward(model, step)
    tokens = rows * shape_cost.LENGTH
    assert forward.get_total_flops() == found.forward * tokens
    assert whole.get_total_flops() == found.training * tokens + found.once
    trained = [p for p in model.parameters() if p.requires_grad]
    assert found.trained == sum(p.numel() for p in trained) and found.total == bare
    assert found.gradients == sum(p.grad.numel() * p.grad.element_size() for p in trained)
    optimizer.step()
    held = [v for state in optimizer.state.values() for v in state.values()]
    assert found.state == sum(v.numel() * v.element_size() for v in held)
