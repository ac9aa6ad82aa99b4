"""Kill -9 everything at random moments of the smoke suite, then let it finish: ``python -m tests.kill_smoke --times 10``.

Finished records must stay as they are, byte for byte, and losses, predictions and scores must equal those of a run
that nobody interrupted. Takes some six minutes; ``tests/test_dag.py`` does the same on a smaller suite.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from tests.dag import Project, same_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = (Project(Path(folder) / name, suite="smoke") for name in ("whole", "killed"))
        started = time.monotonic()
        whole.run()
        print(f"uninterrupted: {time.monotonic() - started:.0f} s, {len(whole.records())} records", flush=True)
        finished: dict[str, bytes] = {}
        for number in range(options.times):
            process = killed.start()
            wait = draw.uniform(3, 13)  # ten of them take about as long as the suite
            time.sleep(wait)
            killed.kill_everything()
            process.wait(timeout=30)
            now = killed.records()
            changed = [name for name in finished if now.get(name, finished[name]) != finished[name]]
            assert not changed, f"finished, and changed since: {changed}"
            finished |= now
            print(f"kill {number + 1} after {wait:.0f} s: {len(finished)} records finished", flush=True)
        killed.run("--nolock")
        after = killed.records()
        assert all(after[name] == content for name, content in finished.items())
        same_results(whole, killed)
        print(f"then the same command: {len(after)} records, all equal to the uninterrupted run's")


if __name__ == "__main__":
    main()
