"""The plans of shipped recipes on their number of GPUs, as a table: ``python docs/plans.py``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cfg_distill.planning import device_of, fit_of, plan_of
from cfg_distill.recipe.quiet import quieten
from cfg_distill.recipe.resolved import Recipe

GPU = "h100"
RECIPES = (
    "musicgen/small_lora", "musicgen/small", "musicgen/stereo", "musicgen/melody", "musicgen/medium", "musicgen/large",
    "musicgen/large_full", "text/full_1b", "text/lora_4b", "text/lora_7b", "text/full_8b",
)  # fmt: skip
HEADER = "| recipe | GPUs | parameters | trained | every phase | rollout | scoring | peak | largest micro-batch | least time |"


def row(name: str) -> str:
    """A line of the table: memory in GB, as the recipe stands."""
    recipe = Recipe.read([f"recipes/{name}.yaml"])
    with fit_of(recipe) as fit:
        plan = plan_of(fit, device_of(GPU, None, recipe.devices), recipe.devices)
    asked, fitting = plan.asked, plan.fitting
    always = sum(asked.always.values())
    sizes = [always, asked.phases["rollout"].bytes, asked.phases["scoring"].bytes, asked.peak]
    counts = (plan.parameters[key] for key in ("student", "trained"))
    cells = [
        f"`{name}`",
        str(recipe.devices),
        *(f"{count / 1e6:,.0f} M" for count in counts),
        *(f"{size / 1e9:.1f}" for size in sizes),
        str(fitting.micro_batch if fitting else "none"),
        f"{sum(plan.seconds.values()):.2g} s",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    quieten()
    print(HEADER)
    print("|---|" + "---:|" * (HEADER.count("|") - 2))
    for name in RECIPES:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
