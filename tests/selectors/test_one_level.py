"""With one level, every selector proposes the masks that it proposed before there were levels.

``proposals.json`` holds what the selectors proposed then. To record it again, because a selector is
meant to propose other masks: ``python tests/selectors/test_one_level.py``, and say so in the
changelog.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from selector_workers import Simulation, pairwise_loss

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import selector_of

FILE = Path(__file__).with_name("proposals.json")
NAMES = (
    "alternating",
    "consecutive",
    "sensitivity",
    "greedy",
    "gp",
    "tpe",
    "random",
    "exhaustive",
)
CASES: dict[str, dict[str, Any]] = {
    "alone": {"size": (12, 5), "seed": 1},
    "three workers of which some die": {"size": (9, 3), "seed": 2, "n_workers": 3, "kill": 0.2},
    "layers without a score": {"size": (8, 4), "seed": 3, "n_workers": 2, "invalid": (2, 5)},
    "a large model": {"size": (30, 10), "seed": 4, "n_trials": 60},
}


def proposed(name: str, case: str) -> list[str]:
    """The masks that the selector proposes, in order."""
    told = CASES[case]
    n_layers, n_converted = told["size"]
    if name == "exhaustive" and n_layers == 30:
        n_converted = 3
    simulation = Simulation(
        lambda: selector_of(name, SearchSpace(n_layers, n_converted), told["seed"]),
        pairwise_loss(n_layers, told["seed"]),
        told.get("n_workers", 1),
        told["seed"],
        told.get("kill", 0.0),
        invalid=[LayerMask.of([layer], n_layers) for layer in told.get("invalid", ())],
    )
    return [str(mask) for mask in simulation.run(told.get("n_trials", 40)).masks]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_the_proposals_are_those_of_before(name: str, case: str) -> None:
    assert proposed(name, case) == json.loads(FILE.read_text())[name][case]


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    found = {name: {case: proposed(name, case) for case in CASES} for name in NAMES}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
