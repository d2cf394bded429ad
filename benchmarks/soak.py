"""A long run in which a random worker is killed every two seconds.

    python benchmarks/soak.py                       2,000 trials, 4 workers, PostgreSQL
    python benchmarks/soak.py --trials 200 --workers 8 --every 0 --more     no kills, more selectors

Ends with an error if a trial is lost, a score is wrong, or a worker hangs.
"""

import argparse
import math
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from faults.fleet import check, fleet, the_spec
from postgres import running_postgres

MORE = (30, 2)
"""Number of layers and budget with all selectors; there are few enough masks to try all."""


def others(n_trials: int) -> list[Any]:
    """The selectors besides sensitivity, greedy and random."""
    free = {"name": "tpe", "n_trials": n_trials}
    return ["alternating", "consecutive", "exhaustive", {"name": "gp", "n_masks": 10}, free]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=2000, help="of random and tpe")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between kills; 0: none")
    parser.add_argument("--more", action="store_true", help="the other selectors too")
    parser.add_argument("--storage", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.more and options.trials > math.comb(*MORE) + 1:
        parser.error(f"with --more there are only {math.comb(*MORE)} masks; give fewer --trials")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    moments = random.Random(options.seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.storage == "postgresql":
            url = stack.enter_context(running_postgres()).new_database()
        else:
            url = f"sqlite:///{folder}/soak.db"
        more = others(options.trials) if options.more else []
        n_layers, budget = MORE if options.more else (30, 5)
        spec = the_spec(0.05, options.trials, n_layers=n_layers, budget=budget, more=more)
        workers = stack.enter_context(fleet(url, folder, spec=spec))
        workers.create()
        workers.start(options.workers)
        start, n_kills = time.monotonic(), 0
        while options.every and len(workers.alive) == options.workers:
            time.sleep(options.every)
            if len(workers.alive) == options.workers:
                workers.kill(moments.choice(workers.alive))
                workers.start()
                n_kills += 1
        workers.wait(3600)
        check(workers, twice=n_kills)
        seconds = time.monotonic() - start
        n_scored = len(workers.scored())
        twice = n_scored - len(set(workers.scored()))
    print(
        f"{options.storage}: {options.workers} workers, {options.trials} trials of each selector "
        f"without a plan, {n_kills} kills, {seconds:.0f} s: nothing lost, wrong or hanging; "
        f"{n_scored} scores, {twice} of them computed twice"
    )


if __name__ == "__main__":
    main()
