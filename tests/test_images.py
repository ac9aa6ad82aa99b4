"""Images: from the hub's column to the pixels that a model takes; DINOv2 out of an ONNX file; CIFAR-100."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rows_made_here import Assets

from harness import assets, images, models, sources
from harness.plugins import load_plugin

HALF = (0.5, 0.5, 0.5)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(number: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def row(number: int) -> dict:
    cell = {"bytes": base64.b64encode(png(picture(number))).decode(), "path": None}
    return {"img": cell, "fine_label": number % 100, "coarse_label": number % 20}


@pytest.fixture
def data(tmp_path):
    made = Assets(tmp_path)
    made.write("cifar100", "train.jsonl", [row(number) for number in range(120)])
    made.write("cifar100", "test.jsonl", [row(1000 + number) for number in range(6)])
    return made


def test_cifar100_gives_the_pixels_as_they_came(data):
    corpus = load_plugin("corpora", "cifar100")
    train, validation = corpus.examples("train", data), corpus.examples("validation", data)
    assert len(train) + len(validation) == 120 and validation
    assert sorted(example.label for example in [*train, *validation]) == sorted(n % 100 for n in range(120))
    pixels = {n: picture(n) for n in range(120)}
    for example in train[:10]:
        assert any((example.input == pixels[n]).all() for n in (example.label, example.label + 100) if n in pixels)
    evaluation = load_plugin("evals", "cifar100")
    item = evaluation.items(data)[3]
    (asked,) = evaluation.requests(item)
    assert (asked.input == picture(1003)).all() and item["label"] == 3 and len(asked.continuations) == 100
    likelihoods = [-5.0] * 100
    likelihoods[3] = -1.0
    grades = [evaluation.grade(item, [{"loglikelihoods": likelihoods}]), evaluation.majority(train, [item])[0]]
    assert grades[0]["correct"] == 1 and evaluation.aggregate([grades[0], {"correct": 0}]) == {"accuracy": 50.0}


def test_a_cell_that_is_no_image_is_named(data):
    data.write(
        "cifar100", "train.jsonl", [row(0), {**row(1), "img": {"bytes": "bm8gaW1hZ2U="}}, *map(row, range(2, 60))]
    )
    with pytest.raises(ValueError, match=r"train.jsonl:2: column img: no image in it \(UnidentifiedImageError"):
        for split in ("train", "validation"):
            load_plugin("corpora", "cifar100").examples(split, data)


@pytest.mark.parametrize("label", ["7", -1, 100])
def test_a_fine_label_that_is_no_class_is_named(label, data):
    said = rf":2: column fine_label: {label!r} is not an integer from 0 to 99"
    data.write("cifar100", "train.jsonl", [row(0), {**row(1), "fine_label": label}])
    data.write("cifar100", "test.jsonl", [row(0), {**row(1), "fine_label": label}])
    with pytest.raises(ValueError, match=rf"train\.jsonl{said}"):
        load_plugin("corpora", "cifar100").examples("train", data)
    with pytest.raises(ValueError, match=rf"test\.jsonl{said}"):
        load_plugin("evals", "cifar100").items(data)


def test_the_hub_s_image_column_becomes_base64():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.Value("int64")})
    rows = datasets.Dataset.from_list([{"img": {"bytes": png(picture(7)), "path": None}, "fine_label": 7}], features)
    (line,) = [json.loads(json.dumps(r, default=sources._base64)) for r in sources._undecoded(rows)]
    assert line["img"]["bytes"] == row(7)["img"]["bytes"] and line["fine_label"] == 7


@pytest.mark.parametrize(("mean", "std"), [(HALF, HALF), (MEAN, STD)])
def test_pixels_are_resized_and_standardised_as_an_image_processor_does(mean, std):
    shown = torch.from_numpy(picture(0)).permute(2, 0, 1).float()[None] / 127.5 - 1
    found = images.adapted(shown, 48, mean, std)[0]
    resized = np.asarray(Image.fromarray(picture(0)).resize((48, 48), Image.BILINEAR), np.float32) / 255
    expected = torch.from_numpy((resized - np.array(mean)) / np.array(std)).permute(2, 0, 1)
    assert (found - expected).abs().max() < 1.1 / 255 / min(std)  # PIL rounds to whole levels after either pass
    same = images.adapted(shown, 32, HALF, HALF)
    torch.testing.assert_close(same, shown)


def test_a_model_takes_images_of_any_side():
    model, _ = models.load_model("tiny-vit", 3, torch.float32, seed=0)
    small, large = torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    bare = model(pixel_values=images.adapted(small, 32, MEAN, STD)).logits
    images.adapt(model, 32, MEAN, STD)
    torch.testing.assert_close(model(pixel_values=small).logits, bare)
    assert model(pixel_values=large).logits.shape == (2, 3)


def exported(model, path) -> None:
    """An ONNX file that names the tensors of ``model`` (a Dinov2Model) as torch's exporter does."""
    onnx = pytest.importorskip("onnx", reason="NOT RUN: onnx is not installed (pip install '.[images]')")
    from onnx import helper, numpy_helper

    renamed = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    stored, nodes = [], []
    for name, tensor in model.state_dict().items():
        for new, old in renamed.items():
            name = name.replace(f".{new}.", f".{old}.")
        array = tensor.numpy()
        layer = "encoder.layer" in name and name.endswith("weight") and array.ndim == 2
        if layer or name == "embeddings.position_embeddings":
            place = name.removesuffix(".weight").replace(".", "/")
            parts = {f"/backbone/{place}/MatMul": array.T}
            if not layer:
                parts = {"/backbone/embeddings/Concat_6": array[:, :1], "/backbone/embeddings/Reshape_1": array[:, 1:]}
            for node, part in parts.items():
                stored.append(numpy_helper.from_array(np.ascontiguousarray(part), f"onnx::{len(stored)}"))
                nodes.append(helper.make_node("MatMul" if layer else node.split("/")[-1].split("_")[0],
                                              [stored[-1].name, "x"], [node], name=node))  # fmt: skip
        elif name != "embeddings.mask_token":
            stored.append(numpy_helper.from_array(array, f"backbone.{name}"))
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], stored)), path)


def test_dinov2_comes_out_of_an_onnx_file_as_it_went_in(tmp_path):
    from transformers import AutoModel, Dinov2Config, Dinov2Model

    from harness.dinov2 import convert

    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 42, "patch_size": 14}
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**sizes)).eval()
    exported(model, tmp_path / "model.onnx")
    convert(tmp_path / "model.onnx", tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert loaded.config.image_size == 42 and loaded.config.num_attention_heads == 2
    shown = torch.randn(1, 3, 42, 42)
    torch.testing.assert_close(loaded(shown).last_hidden_state, model(shown).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_the_real_dinov2_takes_cifar_s_images():
    try:
        assets.asset_folder("dinov2-s")
    except assets.AssetMissing as missing:
        pytest.skip(f"NOT RUN: {missing}")
    model, tokenizer = models.load_model("dinov2-s", 100, torch.float32, seed=0)
    shown = torch.from_numpy(picture(0)).permute(2, 0, 1).float()[None] / 127.5 - 1
    with torch.no_grad():
        assert model(pixel_values=shown).logits.shape == (1, 100)
    assert tokenizer is None and [n for n, _ in models.head_parameters(model)] == [
        "classifier.weight",
        "classifier.bias",
    ]
