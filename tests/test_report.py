"""The report: what it says, that every link leads somewhere, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_results import MANY, collected

from evidence import report, report_findings
from evidence.collected import Collected
from evidence.report_rows import cost_rows, score_rows
from evidence.summary import failed_rows
from harness import dag
from harness.plugins import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "input", "br", "img", "hr"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Fake results with every kind of failure, and their report."""
    folder = collected(tmp_path_factory.mktemp("r") / "fake")
    report.build(Collected(folder / "collected"), folder, folder / "report", "hybrid")
    return folder


class Page(HTMLParser):
    """Links, ids and text of a page; raises where elements are not closed in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.ids, self.open, self.text = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"{path}: not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.links += [given[name] for name in ("href", "src") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.text.append(data)


def test_every_link_leads_to_a_file_and_a_place_in_it(results):
    pages = {path: Page(path) for path in (results / "report").rglob("*.html")}
    assert len(pages) > 10
    for path, page in pages.items():
        assert len(page.ids) == len(set(page.ids))
        for link in page.links:
            if link.startswith("data:"):
                continue
            assert "//" not in link, f"{path}: {link} needs a network"
            target, _, place = link.partition("#")
            file = (path.parent / target).resolve() if target else path
            assert file.is_file(), f"{path}: {link}"
            assert not place or place in pages[file].ids, f"{path}: {link}"


def test_a_cost_leads_to_its_record(results):
    rows = cost_rows(Collected(results / "collected"))
    assert rows and all(row.href.endswith("#cost") for row in rows)
    page = Page(results / "report" / rows[0].href.partition("#")[0])
    assert f"../../cost/{rows[0].model}/{rows[0].corpus}/{rows[0].variant}/cost.json" in page.links


def test_full_fine_tuning_trains_100_percent(results):
    assert any("(100 %)" in text for text in Page(results / "report" / "index.html").text)


def test_what_failed_is_stale_or_of_another_stack_stands_in_the_rows_and_in_no_average(results):
    rows = {(r.corpus, r.model, r.variant): r for r in score_rows(Collected(results / "collected"))}
    oom, diverged = rows["snippets", "tiny-llama", "dora"], rows["arithmetic", "tiny-llama", "lora"]
    stale, other = rows["headlines", "tiny-llama", "lora"], rows["headlines", "tiny-llama", "dora"]
    missing = rows["phrases-en-de", "tiny-llama", "full"]
    assert [run.text for run in oom.runs][1] == "oom" and "limit of 4000 MB" in oom.runs[1].why and oom.seeds == 1
    assert diverged.runs[0].text == "diverged" and missing.runs[1].text == "missing"
    assert "stale" in stale.runs[1].why and stale.seeds == 1
    assert "torch 2.12.0" in other.runs[1].why and other.seeds == 1
    for row in (oom, diverged, stale, other, missing):
        assert "(1 of 2)" in row.average and any("seed" in mark for mark in row.marks)
    text = " ".join(Page(results / "report" / "index.html").text)
    for said in ("oom in train", "diverged in train", "missing in train", "stale: its train record", "torch 2.12.0"):
        assert said in text
    page = Page(results / "report" / oom.href)
    assert "resident memory passed the limit" in " ".join(page.text)


def test_what_failed_can_be_run_again_by_the_suite_s_own_path(results):
    page = (results / "report/index.html").read_text(encoding="utf-8")
    assert "make retry SUITE=config/fake.yaml STATUS=oom,timeout,error" in page


def test_numbers_are_those_of_the_tables(results):
    loaded = Collected(results / "collected")
    for row in score_rows(loaded):
        runs = loaded.runs[
            (loaded.runs["corpus"] == row.corpus) & (loaded.runs["model"] == row.model)
            & (loaded.runs["variant"] == row.variant) & loaded.runs["headline" if row.headline else "reference"]
            & (loaded.runs["status"] == "ok")
            & (loaded.runs["stale"] == "") & (loaded.runs["other_stack"] == "")
        ]  # fmt: skip
        if row.seeds:
            assert row.mean == pytest.approx(runs["value"].mean()) and row.seeds == len(runs)
    costs = cost_rows(loaded)
    failed = [row for row in costs if row.status != "ok"]
    assert len(costs) == len(loaded.costs) and len(failed) == 1 and failed[0].why and failed[0].step is None


def test_a_changed_statistic_runs_the_notebooks_that_show_it(monkeypatch):
    keys = {name: dag.notebook_key(name) for name in ("compare_two_methods", "learning_curves")}
    evidence_key = dag.evidence_key
    monkeypatch.setattr(dag, "evidence_key", lambda module: evidence_key(module) + "x" * (module == "paired"))
    assert dag.notebook_key("compare_two_methods") != keys["compare_two_methods"]
    assert dag.notebook_key("learning_curves") == keys["learning_curves"]


def test_a_changed_template_makes_the_report_again(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "evidence" / "page", tmp_path / "evidence" / "page")
    monkeypatch.setattr(dag, "ROOT", tmp_path)
    monkeypatch.setattr(dag, "code_hash", lambda files: "code")
    before, tables = dag.evidence_key("report"), dag.evidence_key("tables")
    with open(tmp_path / "evidence" / "page" / "report.css", "a") as style:
        style.write("/* x */")
    assert dag.evidence_key("report") != before and dag.evidence_key("tables") == tables


def test_the_folder_is_replaced_whole(tmp_path):
    folder = collected(tmp_path / "fake", failures=False)
    index = report.build(Collected(folder / "collected"), folder, folder / "report")
    (folder / "report" / "trainings" / "of-an-older-suite.html").write_text("x")
    assert report.build(Collected(folder / "collected"), folder, folder / "report") == index
    assert not (folder / "report" / "trainings" / "of-an-older-suite.html").exists()
    assert [path.name for path in folder.glob(".report*")] == []
    assert "What the paper claims" not in index.read_text()


def test_a_verdict_says_whether_the_protocol_is_the_papers_own(tmp_path):
    folder = collected(tmp_path / "fake", failures=False)
    suite = folder / "collected" / "suite.json"
    for name, differs in (("hybrid-small", True), ("hybrid", False)):
        suite.write_text(json.dumps({**json.loads(suite.read_text()), "suite": name}))
        text = report.build(Collected(folder / "collected"), folder, folder / "report", "hybrid").read_text()
        cells = re.findall(r'<span class="verdict(.*?)</td>', text)
        told = [cell for cell in cells if "not run" not in cell]
        assert told and all(("protocol differs" in cell) == differs for cell in told)
        assert all(cell.startswith('"') == differs for cell in told)  # its colour


def test_nothing_collected_is_said_in_a_line(tmp_path, capsys):
    assert report.main(["--collected", str(tmp_path), "--out", str(tmp_path / "report")]) == 2
    assert "nothing collected here yet" in capsys.readouterr().err


# --------------------------------------------------------------------------- the sentences


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Eight methods under four seeds, without failures."""
    folder = tmp_path_factory.mktemp("c") / "fake"
    return Collected(collected(folder, failures=False, seeds=(0, 1, 2, 3), variants=MANY) / "collected")


def test_the_sentences_follow_from_the_rows(clean):
    rows, costs = score_rows(clean), cost_rows(clean)
    said = {f.title: f.text for f in report_findings.findings(rows, costs, failed_rows(clean))}
    scores = [row for row in rows if row.headline]
    assert len(said) == 5
    first = {}
    for row in scores:
        if row.tier:
            first.setdefault(row.method, []).append(row.tier)
    contests = len({(r.corpus, r.model) for r in scores if r.tier})
    sunk = {row.method for row in scores if row.tier and row.at_floor}
    always = [
        m for m, tiers in first.items() if len(tiers) == contests and all(t == "1" for t in tiers) and m not in sunk
    ]
    if always:
        assert any(said["What to use"].startswith(f"{method}:") for method in always)
    else:
        assert said["What to use"].startswith("No method belongs to the best everywhere")
    held = [
        r
        for r in scores
        if r.difference and r.difference["covers"] == "seeds and items" and r.difference["p_holm"] < 0.05
    ]
    assert (f"{len(held)} of" in said["How sure"]) == bool(held)
    steps = {row.method: row.step for row in costs if row.model == "tiny-llama" and row.corpus == "headlines"}
    assert min(steps, key=steps.get) in said["What it costs"] or "full fine-tuning" in said["What it costs"]
    assert said["What went wrong"].startswith("Nothing failed")


def test_two_seeds_are_called_a_hint_and_no_difference(results):
    loaded = Collected(results / "collected")
    scores = score_rows(loaded)
    assert "fewer than three" in report_findings.how_sure(scores)
    failed = failed_rows(loaded)
    said = report_findings.what_went_wrong(scores, failed)
    assert said.startswith(f"{len(failed)} rows of the plan have no result") and "2 numbers" in said


def test_without_data_each_sentence_says_so():
    said = [finding.text for finding in report_findings.findings([], [], [])]
    assert said[0].startswith("Nothing can be recommended") and "no difference has an interval" in said[1]
    assert "not measured" in said[2] and said[3].startswith("Nothing") and said[4].startswith("Nothing failed")


# --------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("NOT RUN: needs Chromium (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        running = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


def opened(browser, results, width=1280):
    said = []
    page = browser.new_page(viewport={"width": width, "height": 800}, offline=True)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((results / "report" / "index.html").as_uri())
    page.wait_for_selector("#plot-curves .main-svg")
    return page, said


def test_the_page_opens_from_disk_draws_and_says_nothing_to_the_console(browser, results):
    page, said = opened(browser, results)
    assert said == [] and page.locator(".main-svg").count() >= 3
    choice = page.locator('select[data-figures="curves"]')
    before = page.locator("#title-curves").inner_text()
    choice.select_option("1")
    assert page.locator("#title-curves").inner_text() != before and said == []


def test_tables_sort_by_mouse_and_by_keyboard(browser, results):
    page, _ = opened(browser, results)
    head = page.locator("#score-table thead th").nth(3)
    column = "[...document.querySelectorAll('#score-table tbody tr')].map(r => r.cells[3].dataset.value)"
    head.locator("button").click()
    up = [float(value) for value in page.evaluate(column) if value]
    assert up == sorted(up) and head.get_attribute("aria-sort") == "ascending"
    head.locator("button").focus()
    page.keyboard.press("Enter")
    down = [float(value) for value in page.evaluate(column) if value]
    assert down == sorted(up, reverse=True) and head.get_attribute("aria-sort") == "descending"
    names = "[...document.querySelectorAll('#score-table tbody tr')].map(r => r.cells[2].innerText)"
    page.locator("#score-table thead th").nth(2).locator("button").click()
    assert page.evaluate(names) == sorted(page.evaluate(names), key=str.casefold)


def test_rows_are_found_by_words_and_by_benchmark(browser, results):
    page, _ = opened(browser, results)
    rows = page.locator("#score-table tbody tr:visible")
    everything = rows.count()
    page.fill('[data-filter="score-table"]', "dora headlines")
    assert 0 < rows.count() < everything
    assert all("DoRA" in text for text in rows.all_inner_texts())
    assert page.locator("#score-table-count").inner_text() == f"{rows.count()} of {everything} rows"
    page.fill('[data-filter="score-table"]', "")
    page.select_option('select[data-column="benchmark"]', "Arithmetic problems (multilingual templates)")
    assert all("Arithmetic" in text for text in rows.all_inner_texts()) and rows.count() < everything


def test_the_first_key_reaches_the_answers_and_every_control_can_be_reached(browser, results):
    page, _ = opened(browser, results)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName"))
    assert {"A", "INPUT", "SELECT", "BUTTON"} <= reached


def test_a_phone_scrolls_tables_not_the_page(browser, results):
    page, _ = opened(browser, results, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("(t => t.scrollWidth > t.clientWidth)(document.querySelector('.scroll'))")


def test_it_prints_with_everything_told(browser, results, tmp_path):
    page, _ = opened(browser, results)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator(".tools").first.is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")
    page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert (tmp_path / "report.pdf").stat().st_size > 20_000


def test_contrast_of_text_is_enough_to_read():
    style = (ROOT / "evidence" / "page" / "report.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style))

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ink in ("ink", "soft", "accent", "bad", "good"):
        for ground in ("ground", "shade"):
            dark, light = sorted((luminance(colours[ink]), luminance(colours[ground])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)  # WCAG 2.1, AA


def test_what_stands_in_the_page_as_data_cannot_end_the_script():
    assert "</script>" not in report._script({"title": "</script><script>alert(1)</script>"})
    assert json.loads(report._script([1.5, "<b>"])) == [1.5, "<b>"]
