"""Two processes that train in shards (FSDP), each on a pretended device of its own; what they tell each other goes
through gloo, which sees what the devices hold: ``ranks.py RENDEZVOUS PRESET DATA [KEY=VALUE …]``.

Each prints a line of JSON: the losses, where the shards are, and what a step says in which a tensor strays to the CPU.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pretend_cuda import build, run

build.load(build.build(run.cache()))


from pretend_cuda import flex, streams, tensors  # noqa: E402


def main(rendezvous: str, preset: str, data: str, *changes: str) -> dict[str, Any]:
    """Train, and take one more step with a fault."""
    import bytegolf
    from bytegolf.config import Config
    from bytegolf.distributed import join
    from bytegolf.ops import attention, flex_attention

    flex_attention._compiled = lambda function: flex.flex_attention  # type: ignore[assignment]
    streams.answer(Path(rendezvous))
    os.environ["LOCAL_RANK"] = "0"  # each has the one device that there is
    config = Config.load(preset, changes)
    with join("cuda") as world:
        trainer = bytegolf.Trainer(config, data, world=world)
        places = {str(each.to_local().device) for each in trainer.model.parameters()}  # type: ignore[attr-defined]
        losses = [sum(world.total(trainer.step(batch).loss / world.size)) for batch in trainer]
        there: Any = attention
        angles = there.rotary_angles
        there.rotary_angles = lambda *args: tuple(each.cpu() for each in angles(*args))  # the planted fault
        try:
            trainer.step()
            caught = ""
        except RuntimeError as error:
            caught = str(error)
    return {"losses": losses, "places": sorted(places), "caught": caught}


if __name__ == "__main__":
    with tensors.pretended():
        importlib.import_module("bytegolf.training.loop")  # what takes a while, once, before there are two
        other = os.fork()
        os.environ.update(WORLD_SIZE="2", RANK="0" if other else "1")
        os.write(1, (json.dumps(main(*sys.argv[1:])) + "\n").encode())  # at once, or the other's might come between
        if other:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
