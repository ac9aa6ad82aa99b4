"""MT-Bench: what the judge is asked and how its verdicts are read; the judge: endpoints, errors, a key that never leaks."""

from __future__ import annotations

import contextlib
import http.server
import json
import sys
import threading
import traceback

import pytest
import torch
import yaml

from evidence.grades import Formula, formula, numbers
from harness import judge as judges
from harness.failures import UserError
from harness.judge import JudgeError, judge, verdict_key
from harness.plugins import load_plugin
from harness.suite import load_suite

for name in ("mt-bench", "mt-bench-pairs"):  # tests reach into their modules, whichever of them runs first
    load_plugin("evals", name)

SECRET = "sk-very-secret-0123456789"
ASK = [("system", "Be fair."), ("user", "Rate it.")]


@pytest.fixture
def data(tmp_path):
    """Questions in the data's own columns: one with a reference that counts, one with a reference that does not."""
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["Write {question}.", "Again."]},
        {"question_id": 111, "category": "math", "turns": ["1+1?", "And 2+2?"], "reference": ["2", "4"]},
        {"question_id": 91, "category": "roleplay", "turns": ["Be a cat.", "Purr."]},
    ]
    references = [{"question_id": n, "choices": [{"index": 0, "turns": ["two", "four"]}]} for n in (111, 91)]
    prompts = [
        {"name": "single-v1", "system_prompt": "S", "prompt_template": "Q {question} A {answer}"},
        {
            "name": "single-v1-multi-turn",
            "system_prompt": "M",
            "prompt_template": "{question_1} {answer_1} {question_2} {answer_2}",
        },
        {"name": "single-math-v1", "system_prompt": "", "prompt_template": "{question} ({ref_answer_1}) {answer}"},
        {
            "name": "single-math-v1-multi-turn",
            "system_prompt": "",
            "prompt_template": "{ref_answer_1} {ref_answer_2} {answer_2}",
        },
    ]
    pair = "{question} A {answer_a} B {answer_b}"
    both = "{question_2} A {answer_a_1} {answer_a_2} B {answer_b_1} {answer_b_2}"
    for name, template in (("pair-v2", pair), ("pair-v2-multi-turn", both)):
        prompts.append({"name": name, "system_prompt": "", "prompt_template": template})
    for name, template in (("pair-math-v1", pair), ("pair-math-v1-multi-turn", both)):
        prompts.append({"name": name, "system_prompt": "", "prompt_template": "({ref_answer_1}) " + template})
    for file, rows in (("question", questions), ("reference_answer_gpt-4", references), ("judge_prompts", prompts)):
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lambda asset: tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNING_FORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(judges.time, "sleep", lambda seconds: None)


def said(*texts):
    return tuple({"texts": [text], "tokens": [3]} for text in texts)


def recorded(tmp_path, data, verdict, **fields):
    """The eval with a judge that says ``verdict(item id, turn, repetition)`` of the answers "a" and "b"."""
    path, rows = tmp_path / "verdicts.jsonl", []
    plugin = load_plugin("evals", "mt-bench", **fields)
    asked = sys.modules["tuning_fork_evals.mt_bench"].messages
    for item in plugin.items(data):
        for turn in (0, 1):
            for k in range(plugin.judgings):
                key = verdict_key(asked(item, ["a", "b"], turn), k)
                rows.append({"key": key, "text": verdict(item["id"], turn, k)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_plugin("evals", "mt-bench", judge=f"recorded:{path}", **fields)


# --------------------------------------------------------------------------- the eval


def test_two_turns_are_asked_with_the_answers_between_them(data):
    plugin = load_plugin("evals", "mt-bench", max_tokens=7)
    item = plugin.items(data)[0]
    (first,) = plugin.requests(item)
    assert first.turns == (("user", "Write {question}."),) and first.context == "user: Write {question}.\nassistant:"
    assert (first.temperature, first.max_tokens) == (0.7, 7)
    (second,) = plugin.requests(item, said(" Once.\n"))
    assert second.turns == (("user", "Write {question}."), ("assistant", "Once."), ("user", "Again."))
    assert plugin.requests(item, said("Once.", "Twice.")) == []
    assert plugin.requests(plugin.items(data)[1])[0].temperature == 0.0


def test_the_judge_sees_references_where_they_count_and_braces_are_text(data):
    asked = sys.modules["tuning_fork_evals.mt_bench"].messages
    writing, math, roleplay = load_plugin("evals", "mt-bench").items(data)
    assert asked(writing, ["{answer}", "b"], 0) == [("system", "S"), ("user", "Q Write {question}. A {answer}")]
    assert asked(writing, ["a", "b"], 1) == [("system", "M"), ("user", "Write {question}. a Again. b")]
    assert asked(math, ["a", "b"], 0) == [("user", "1+1? (two) a")]
    assert asked(math, ["a", "b"], 1) == [("user", "two four b")]
    assert roleplay["reference"] is None


@pytest.mark.parametrize(
    ("verdict", "number"),
    [("Rating: [[5]]", 5.0), ("[[7.5]] of 10", 7.5), ("[3] it is", 3.0), ("[[2]] or [[9]]", 2.0), ("5", None), ("[[11]]", None),
     ("[[rating]]", None), ("", None), ("[[0]]", None)],
)  # fmt: skip
def test_a_rating_is_the_number_in_brackets(verdict, number):
    assert sys.modules["tuning_fork_evals.mt_bench"].rating(verdict) == number


def test_ratings_are_averaged_and_those_left_out_are_counted(tmp_path, data):
    def verdict(item, turn, k):
        return "no idea" if (item, turn) == ("91", 1) else f"[[{ {'81': 4, '111': 8, '91': 6}[item] + turn + k }]]"

    plugin = recorded(tmp_path, data, verdict, judgings=2)
    assert plugin.pending() == ""
    grades = [plugin.grade(item, said("a", "b")) for item in plugin.items(data)]
    assert grades[0]["ratings"] == [[4.0, 5.0], [5.0, 6.0]] and grades[2]["ratings"] == [[6.0, 7.0], [None, None]]
    scores = plugin.aggregate(grades)
    first, second = [4, 5, 8, 9, 6, 7], [5, 6, 9, 10]
    assert scores == pytest.approx(
        {"rating": sum(first + second) / 10, "rating_turn_1": sum(first) / 6, "rating_turn_2": sum(second) / 4,
         "disagreement": 1.0, "unrated": 100 * 2 / 12}
    )  # fmt: skip
    # what tables take their interval over items from
    assert formula("rating", scores["rating"], numbers(grades), "of 10") == Formula("rating_sum", "rated")
    assert len(set(grades[0]["verdicts"])) == 2


def test_without_a_judge_it_is_pending():
    assert "no judge given" in load_plugin("evals", "mt-bench").pending()


def test_another_judge_scores_again_and_predicts_nothing_anew(tmp_path):
    def keys(evaluation, **fields):
        grid = [{"models": ["tiny-llama"], "corpora": ["generated-chat"], "variants": ["lora"], "seeds": [0],
                 "evals": [evaluation]}]  # fmt: skip
        suite = {"suite": "judged", "protocol": {"steps": 1}, "variants": {"lora": {"method": "lora"}}, "grid": grid}
        (tmp_path / "judged.yaml").write_text(yaml.safe_dump({**suite, "evals": {evaluation: fields}}))
        training = load_suite(str(tmp_path / "judged.yaml")).training("tiny-llama", "generated-chat", "lora", 0)
        return training.predict_key(evaluation), training.score_key(evaluation)

    for evaluation in ("mt-bench", "mt-bench-pairs"):
        given = [{}, {"judge": "model:smollm2-135m"}, {"judge": "https://host/v1#M"}, {"judgings": 2}]
        predicted, scored = zip(*(keys(evaluation, **fields) for fields in given), strict=True)
        assert len(set(predicted)) == 1 and len(set(scored)) == len(given)


def test_a_judge_of_no_kind_is_refused():
    for name in ("gpt-4", "https://host/v1", "model:", "recorded:/nowhere"):
        with pytest.raises(UserError, match="judge: "):
            load_plugin("evals", "mt-bench", judge=name)


# --------------------------------------------------------------------------- answers compared


def compared(tmp_path, data, say, theirs=("x", "y")):
    """The eval with a judge that says ``say(item id, turn, whether the model's answer is shown first)``; ours: "a", "b"."""
    answers = [{"question_id": n, "choices": [{"turns": list(theirs)}]} for n in (81, 111, 91)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    plugin = load_plugin("evals", "mt-bench-pairs")
    module = sys.modules["tuning_fork_evals.mt_bench_pairs"]
    rows = []
    for item in plugin.items(data):
        for turn in (0, 1):
            for ours_first, shown in ((True, (["a", "b"], theirs)), (False, (theirs, ["a", "b"]))):
                key = verdict_key(module.asked(item, *shown, turn), 0)
                rows.append({"key": key, "text": say(item["id"], turn, ours_first)})
    (tmp_path / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = {"judge": f"recorded:{tmp_path / 'verdicts.jsonl'}", "opponent": str(tmp_path / "other.jsonl")}
    return load_plugin("evals", "mt-bench-pairs", **judged)


def test_a_pair_is_shown_in_both_orders_and_with_its_reference(data):
    writing, math, _ = load_plugin("evals", "mt-bench-pairs").items(data)
    asked = sys.modules["tuning_fork_evals.mt_bench_pairs"].asked
    assert asked(writing, ["{b}", "2"], ["y", "4"], 0) == [("user", "Write {question}. A {b} B y")]
    assert asked(math, ["y", "4"], ["x", "2"], 1) == [("user", "(two) And 2+2? A y 4 B x 2")]


def test_only_a_verdict_of_both_orders_wins(tmp_path, data):
    said_of = {
        ("81", 0): ("[[A]]", "[[B]]"),  # ours, whichever place
        ("81", 1): ("[[B]]", "[[A]]"),  # theirs
        ("111", 0): ("[[A]]", "[[A]]"),  # the first place, twice
        ("111", 1): ("[[C]]", "[[C]] rather than [[A]]"),
        ("91", 0): ("[[A]]", "neither"),  # no verdict in one order
        ("91", 1): ("[[C]]", "[[B]]"),
    }
    plugin = compared(tmp_path, data, lambda item, turn, ours_first: said_of[item, turn][not ours_first])
    assert plugin.pending() == ""
    grades = [plugin.grade(item, said("a", "b")) for item in plugin.items(data)]
    assert [(g["won"], g["agreed"], g["rated"]) for g in grades] == [(1.0, 2, 2), (1.0, 1, 2), (0.5, 0, 1)]
    assert formula("win_rate", 50.0, numbers(grades), "%") == Formula("won", "rated", 100.0)
    assert plugin.aggregate(grades) == pytest.approx(
        {
            "win_rate": 100 * 2.5 / 5,
            "win_rate_turn_1": 100 * 1.5 / 2,
            "win_rate_turn_2": 100 * 1.0 / 3,
            "order_agreement": 100 * 3 / 5,
            "unrated": 100 / 6,
        }
    )
    assert "other.jsonl (sha256 " in plugin.signatures()["opponent"]


def test_a_model_against_itself_gets_a_half_from_any_judge_that_looks_at_places_only(tmp_path, data):
    plugin = compared(tmp_path, data, lambda item, turn, ours_first: "[[A]]", theirs=("c", "d"))
    scores = plugin.aggregate([plugin.grade(item, said("a", "b")) for item in plugin.items(data)])
    assert (scores["win_rate"], scores["order_agreement"]) == (50.0, 0.0)


def test_without_an_opponent_it_is_pending_and_a_bad_file_is_named(tmp_path, data):
    assert "no opponent given" in load_plugin("evals", "mt-bench-pairs").pending()
    (tmp_path / "bad.jsonl").write_text('{"question_id": 81, "choices": [{"turns": ["x", "y"]}]}\n{"question_id": 1}\n')
    given = {
        name: load_plugin("evals", "mt-bench-pairs", opponent=str(tmp_path / name))
        for name in ("bad.jsonl", "none.jsonl")
    }
    assert "bad.jsonl:2: no column choices" in given["bad.jsonl"].pending()
    assert "no such file" in given["none.jsonl"].pending() and given["none.jsonl"].signatures()["opponent"] == "none"
    (tmp_path / "few.jsonl").write_text('{"question_id": 1, "choices": [{"turns": ["x", "y"]}]}\n')
    plugin = load_plugin("evals", "mt-bench-pairs", opponent=str(tmp_path / "few.jsonl"))
    assert "no judge given" in plugin.pending()
    with pytest.raises(ValueError, match="no answer to both turns of question 81"):
        plugin.grade(plugin.items(data)[0], said("a", "b"))


# --------------------------------------------------------------------------- the endpoint


slept = threading.Event()  # never set: a sleep that no patch touches


class Host:
    """A chat endpoint on this machine that answers from a list: (status, headers, body)."""

    def __init__(self):
        self.script, self.seen, self.reason, self.drip = [], [], None, 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.seen.append((self.path, self.headers.get("Authorization"), json.loads(body)))
                status, headers, text = outer.script.pop(0)
                if status == 0:
                    self.connection.close()
                    return
                self.send_response(status, outer.reason)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # who asked may have given up
                    for place in range(0, len(text), 8 if outer.drip else len(text) or 1):
                        self.wfile.write(text[place : place + (8 if outer.drip else len(text))].encode())
                        self.wfile.flush()
                        slept.wait(outer.drip)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def host(monkeypatch):
    made = Host()
    monkeypatch.setenv(judges.KEY, SECRET)
    yield made
    made.server.shutdown()
    made.server.server_close()


def good(text="[[7]]"):
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}}]})


def test_an_endpoint_is_asked_once_for_the_same_question(host, tmp_path):
    host.script = [good(), good("[[8]]")]
    one = judge(f"{host.url}#some-model")
    assert one.ask(ASK) == one.ask(ASK) == judge(f"{host.url}#some-model").ask(ASK) == "[[7]]"
    assert one.ask(ASK, 1) == "[[8]]"
    path, authorization, body = host.seen[0]
    assert path == "/v1/chat/completions" and authorization == f"Bearer {SECRET}" and len(host.seen) == 2
    assert body["model"] == "some-model" and body["temperature"] == 0.0
    assert body["messages"] == [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Rate it."}]
    written = [p.read_text() for p in tmp_path.rglob("*") if p.is_file()]
    assert written and not any(SECRET in text for text in written)


def test_kept_verdicts_are_a_record_for_another_machine(host, tmp_path):
    host.script = [good("fair\u2028[[3]]"), good("[[4]]")]
    for repetition in (0, 1):
        judge(f"{host.url}#m").ask(ASK, repetition)
    kept = (tmp_path / "cache" / "verdicts").rglob("*.json")
    (tmp_path / "v.jsonl").write_bytes(b"".join(path.read_bytes() for path in kept) + b"\n")
    again = judge(f"recorded:{tmp_path / 'v.jsonl'}")
    assert [again.ask(ASK, repetition) for repetition in (0, 1)] == ["fair\u2028[[3]]", "[[4]]"]
    with pytest.raises(JudgeError, match="has no verdict for this answer"):
        judge(f"recorded:{tmp_path / 'v.jsonl'}").ask([("user", "other")])


def test_two_records_are_told_apart_and_keep_nothing(tmp_path):
    for name, text in (("a", "[[1]]"), ("b", "[[2]]")):
        (tmp_path / name).write_text(json.dumps({"key": verdict_key(ASK, 0), "text": text}))
        assert judge(f"recorded:{tmp_path / name}").ask(ASK) == text
    assert not (tmp_path / "cache").exists()


def test_judges_keep_their_verdicts_apart(host):
    host.script = [good("[[3]]"), good("[[4]]")]
    assert [judge(f"{host.url}#{name}").ask(ASK) for name in ("one", "other", "one")] == ["[[3]]", "[[4]]", "[[3]]"]


def test_a_busy_or_broken_endpoint_is_asked_again(host):
    host.script = [(429, {"Retry-After": "2"}, ""), (503, {}, "busy"), (0, {}, ""), good()]
    assert judge(f"{host.url}#m").ask(ASK) == "[[7]]" and len(host.seen) == 4
    host.script = [(500, {}, "")] * judges.ATTEMPTS
    with pytest.raises(JudgeError, match=r"no verdict in 6 attempts \(500 .*verdicts so far are kept"):
        judge(f"{host.url}#m").ask(ASK, 9)


def test_a_pause_is_as_long_as_the_endpoint_asks_and_never_endless(host, monkeypatch):
    slept = []
    monkeypatch.setattr(judges.time, "sleep", slept.append)
    host.script = [
        (429, {"Retry-After": "7"}, ""),
        (429, {"Retry-After": "86400"}, ""),
        (500, {"Retry-After": "soon"}, ""),
        good(),
    ]
    judge(f"{host.url}#m").ask(ASK)
    assert slept == [7.0, judges.LONGEST_PAUSE, 4.0]


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (401, {}, f"bad key {SECRET}", "refused with 401: is the key in TUNING_FORK_JUDGE_KEY right"),
        (404, {}, "no such model", "answered 404 Not Found: check the judge's address and model"),
        (302, {"Location": "http://127.0.0.1:9/steal"}, "", "answered 302"),
        (200, {}, f"<html>{SECRET}", "no verdict in 6 attempts .the answer is no chat completion"),
        (200, {}, json.dumps({"choices": []}), "no chat completion"),
        (200, {}, json.dumps({"choices": [{"message": {"content": None}}]}), "has no text"),
    ],
)
def test_errors_say_what_to_do_and_never_the_key(status, headers, body, message, host):
    host.script = [(status, headers, body)] * judges.ATTEMPTS
    with pytest.raises(JudgeError, match=message) as caught:
        judge(f"{host.url}#m").ask(ASK)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert len(host.seen) == (judges.ATTEMPTS if status == 200 else 1)


def test_a_garbled_answer_is_asked_for_again(host):
    host.script = [(200, {}, "{"), good()]
    assert judge(f"{host.url}#m").ask(ASK) == "[[7]]"


@pytest.mark.parametrize("status", [400, 500])
def test_a_status_line_that_repeats_the_key_is_not_quoted(status, host, monkeypatch):
    host.reason = f"no {SECRET}"
    host.script = [(status, {}, "")] * judges.ATTEMPTS
    with pytest.raises(JudgeError) as caught:
        judge(f"{host.url}#m").ask(ASK)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_verdict_that_repeats_the_key_is_kept_without_it(host, tmp_path):
    host.script = [good(f"your key is {SECRET} [[4]]")]
    assert judge(f"{host.url}#m").ask(ASK) == "your key is [key] [[4]]"
    assert not any(SECRET in p.read_text() for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize("bad", [SECRET + "\nX: y", SECRET + "\u00fc"])
def test_a_key_that_no_header_may_have_is_refused_unseen(bad, host, monkeypatch):
    monkeypatch.setenv(judges.KEY, bad)
    with pytest.raises(JudgeError, match="characters that no header may have") as caught:
        judge(f"{host.url}#m").ask(ASK)
    assert SECRET not in "".join(traceback.format_exception(caught.value)) and not host.seen


def test_white_space_around_a_key_is_no_part_of_it(host, monkeypatch):
    monkeypatch.setenv(judges.KEY, f" {SECRET}\n")
    host.script = [good()]
    assert judge(f"{host.url}#m").ask(ASK) == "[[7]]" and host.seen[0][1] == f"Bearer {SECRET}"


def test_an_answer_that_drips_is_given_up(host, monkeypatch):
    monkeypatch.setattr(judges, "SECONDS", 0.5)
    monkeypatch.setattr(judges, "ATTEMPTS", 2)
    host.drip, host.script = 0.2, [good("x" * 40)] * 2
    with pytest.raises(JudgeError, match="not whole after 0.5 s"):
        judge(f"{host.url}#m").ask(ASK)


def test_a_key_is_not_sent_in_the_clear(monkeypatch):
    monkeypatch.setenv(judges.KEY, SECRET)
    with pytest.raises(JudgeError, match="not sent over plain http to example.org"):
        judge("http://example.org/v1#m").ask(ASK)


def test_a_model_of_this_machine_may_judge():
    torch.set_num_threads(1)
    assert isinstance(judge("model:tiny-llama").ask(ASK), str)
