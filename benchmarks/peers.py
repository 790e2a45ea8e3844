# SPDX-License-Identifier: Apache-2.0
"""The package beside its peers, in equal processor time; prints Markdown.

    python benchmarks/peers.py                                # three hours
    python benchmarks/peers.py --only relay --methods ours MINE --budgets 5
    python benchmarks/peers.py --report                       # what has been measured
    python benchmarks/peers.py --page docs/peers.md           # and renew the page

Every method runs on every task in a fresh process. Its clock counts the processor
seconds of that process (`time.process_time`) from the first call of the method on, so
compiling is included, and other work on the machine is not. Imports are not counted.
What is reached at the end of a budget is valued without the package, after the clock.
Results are appended to a file, and those in the file are not run again.

Each peer is tuned first: of its settings, it gets those that end best, by the truth, on
the task `TUNED` after `TUNING` seconds.
"""

import argparse
from collections.abc import Sequence
import contextlib
import datetime
import io
import json
import math
import os
from pathlib import Path
import platform
import subprocess
import sys
from typing import Any

import numpy as np
from peers_rivals import PEERS, Reached, bound, can, neighbours, ours, train
from peers_tasks import TASKS, Task

import jax

import numpyro

METHODS = ("ours", *PEERS, "KSG")
TUNED = "precoder"
TUNING = 10.0
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"  # for each product of matrices
BUDGETS = 10.0, 30.0, 100.0  # processor seconds
RESULTS = "<!-- What follows is printed by benchmarks/peers.py. -->\n"
FILE = Path(__file__).parent / "output" / "peers.jsonl"


# -- one run, in a fresh process ---------------------------------------------------


def at_budgets(reached: Reached, budgets: Sequence[float]) -> dict[float, Any]:
    """What was reached last within each budget, and when; None before the first."""
    found: dict[float, Any] = dict.fromkeys(budgets)
    for spent, state in reached:
        for budget in budgets:
            if spent <= budget:
                found[budget] = (spent, state)
        if spent > max(budgets):
            break
    return found


def measure(name: str, method: str, setting: int, budgets: Sequence[float]) -> Any:
    """One row of results: the number reached at each budget, in nats."""
    task = TASKS[name]()
    row = {"task": name, "method": method, "setting": setting, "truth": task.truth}
    if method == "ours":  # it runs to its end in any case
        budgets = sorted({*BUDGETS, *budgets})
        reached = ours(task)
    elif method == "KSG":
        reached = neighbours(task, max(budgets))
    else:
        settings = PEERS[method].grid[setting]
        reached = train(task, PEERS[method], settings, max(budgets))
    found = at_budgets(reached, budgets)
    row["start"] = at(task, task.params)[0] if task.value else None
    values: dict[int, Any] = {}  # a state is valued once
    for budget, seen in found.items():
        if seen is None:
            row[f"{budget:g}"] = None
            continue
        spent, state = seen
        if id(state) not in values:
            values[id(state)] = number(task, method, setting, state)
        row[f"{budget:g}"] = [round(spent, 2), *values[id(state)]]
    return row


def at(task: Task, params: Any) -> tuple[float, float]:
    assert task.value is not None
    return task.value({name: np.asarray(p) for name, p in params.items()})


def number(task: Task, method: str, setting: int, state: Any) -> tuple[float, float]:
    """The information at the parameters reached, or the value found; its error."""
    if task.value is not None:
        return at(task, state[0])
    if method in PEERS:
        peer = PEERS[method]
        return bound(task, peer, peer.grid[setting], state[1]), math.nan
    return state


# -- all runs --------------------------------------------------------------------------


class Runs:
    """Runs in fresh processes, and the file of those that were made before.

    Args:
        path: File of JSON lines.
        fresh: Whether to make the runs that are not in the file.
    """

    def __init__(self, path: Path, fresh: bool = True) -> None:
        self.path, self.fresh = path, fresh
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def row(self, name: str, method: str, setting: int, budgets: Any) -> Any:
        """The result of one run; None if it has not been made."""
        key = {"task": name, "method": method, "setting": setting}
        found: dict[str, Any] = {}
        for row in self.rows:
            if row.items() >= key.items():
                found |= row
        more = [str(b) for b in budgets if f"{b:g}" not in found]
        if not more or not self.fresh:
            return found or None
        child = [sys.executable, __file__, "--child", name, method, str(setting)]
        finished = subprocess.run(
            [*child, "--budgets", *more],
            capture_output=True,
            text=True,
            env=os.environ | {"XLA_FLAGS": ONE_THREAD, "OMP_NUM_THREADS": "1"},
        )
        if finished.returncode:
            raise SystemExit(f"{method} on {name}: {finished.stderr[-2000:]}")
        line = finished.stdout.splitlines()[-1]
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, file=sys.stderr, flush=True)
        self.rows.append(json.loads(line))
        return found | self.rows[-1]

    def tuned(self, method: str) -> tuple[int, list[float]]:
        """Which settings of a peer end best on TUNED, and what is missing with each."""
        grid = PEERS[method].grid
        rows = [self.row(TUNED, method, i, [TUNING]) for i in range(len(grid))]
        gaps = [off(row, TUNING) for row in rows]
        return int(np.argmin(gaps)), gaps


# -- the tables ------------------------------------------------------------------------


def line(*cells: Any) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def cell(row: Any, budget: float, wins: bool) -> str:
    """What a method reached by the end of a budget."""
    if row == "cannot":
        return "no"
    if row is None or f"{budget:g}" not in row:
        return ""  # not measured
    seen = row[f"{budget:g}"]
    if seen is None:
        return "not yet"
    _, value, error = seen
    if row["start"] is None:
        text = f"{value - row['truth']:+.3f}"
        if math.isfinite(error) and error:
            text += f" +- {error:.3f}"
    else:
        text = f"{1 - value / row['truth']:.2%}"
        if error:
            text += f" +- {error / row['truth']:.2%}"
    return f"**{text}**" if wins else text


def off(row: Any, budget: float) -> float:
    """Distance of a row from the truth, rounded as it is printed."""
    if not isinstance(row, dict) or row.get(f"{budget:g}") is None:
        return math.inf
    gap = abs(row[f"{budget:g}"][1] - row["truth"])
    return round(gap, 3) if row["start"] is None else round(gap / row["truth"], 4)


def table(
    title: str, rows: dict[str, dict[str, Any]], methods: Any, budgets: Any
) -> None:
    if not rows:
        return
    print(f"\n## {title}\n")
    start = ("at the start",) if title.startswith("Ascents") else ()
    line("task", "truth, nats", *start, "seconds", *methods)
    line("---", "---:", *("---:" for _ in start), "---:", *("---:" for _ in methods))
    for name, found in rows.items():
        known = next((r for r in found.values() if isinstance(r, dict)), None)
        for budget in budgets if known else ():
            gaps = {m: off(found.get(m), budget) for m in methods}
            at = f"{budget:g}"
            ran = [r for r in found.values() if isinstance(r, dict) and at in r]
            least = min(gaps.values()) if len(ran) > 1 else -1.0  # no contest of one
            cells = [
                cell(found.get(m), budget, gaps[m] == least < math.inf) for m in methods
            ]
            first = [f"{1 - known['start'] / known['truth']:.1%}"] if start else []
            line(name, f"{known['truth']:.5f}", *first, f"{budget:g}", *cells)


def report(runs: Runs, options: argparse.Namespace) -> None:
    """Everything that was measured, after measuring what was not."""
    budgets, methods = options.budgets, options.methods
    peers = [method for method in methods if method in PEERS]
    if options.setting is None:
        settings = {method: runs.tuned(method) for method in peers}
    else:
        settings = {method: (options.setting, []) for method in peers}
    kinds: dict[bool, dict[str, dict[str, Any]]] = {True: {}, False: {}}
    for name in options.only:
        task = TASKS[name]()
        kinds[task.value is not None][name] = {
            m: runs.row(name, m, settings.get(m, (0, []))[0], budgets)
            if can(m, task)
            else "cannot"
            for m in methods
        }
    print(f"{datetime.date.today()}, Python {platform.python_version()}, "
          f"jax {jax.__version__}, numpyro {numpyro.__version__}, "
          f"{os.cpu_count()} cores, {processor()}")  # fmt: skip
    print("\n## Settings\n")
    line("peer", "rate, batch, width or contrasts", f"missing on {TUNED}")
    line("---", "---", "---:")
    for method, (chosen, gaps) in settings.items():
        for i, each in enumerate(PEERS[method].grid):
            text = "{:g}, {}, {}".format(*each)
            gap = f"{gaps[i]:.2%}" if gaps and gaps[i] < math.inf else ""
            line(method, f"**{text}**" if i == chosen else text, gap)
    title = "Ascents: share of the maximum that is missing"
    table(title, kinds[True], [m for m in methods if m != "KSG"], budgets)
    values = [m for m in methods if m not in ("contrastive", "denoising")]
    table("Values: error in nats", kinds[False], values, budgets)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.exists() else []
    named = [n.split(":")[1].strip() for n in names if n.startswith("model name")]
    return named[0] if named else platform.processor()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--setting", type=int, help="of the peers, in place of tuning")
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--page", type=Path, help="write the results to this page")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        name, method, setting = options.child
        print(json.dumps(measure(name, method, int(setting), options.budgets)))
        return
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        report(Runs(options.file, not options.report), options)
    print(text.getvalue())
    if options.page:
        kept = options.page.read_text().split(RESULTS)[0]
        options.page.write_text(f"{kept}{RESULTS}\n{text.getvalue()}")


if __name__ == "__main__":
    main()
