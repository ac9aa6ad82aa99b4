"""What the README says works: its commands exist, its example method keeps the contract as pasted."""

from __future__ import annotations

import re
import subprocess
import sys

from harness.plugins import ROOT
from tests.dag import Project

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_method_works_as_pasted(tmp_path):
    project = Project(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]
    (project.folder / "methods" / "mine.py").write_text(code)
    command = [sys.executable, "-m", "harness.conformance", "mine"]
    for family in ("llama", "gpt2", "roberta"):
        command += ["--family", family]
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_that_the_readme_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z_]+@", README)
