"""Train a few steps, in as many processes as torchrun started: ``train_some.py PRESET DATA DEVICE [KEY=VALUE …]``."""

from __future__ import annotations

import json
import sys

import torch

import bytegolf
from bytegolf.config import Config
from bytegolf.distributed import join

preset, data, device, *changes = sys.argv[1:]
with join(device) as world:
    trainer = bytegolf.Trainer(Config.load(preset, changes), data, world=world)
    losses, memory = [], []
    for batch in trainer:
        losses.append(trainer.step(batch).loss)
        memory.append(torch.cuda.memory_allocated() if device == "cuda" else 0)
    losses = [sum(world.total(loss / world.size)) for loss in losses]
    compiled = trainer.stepper.compiled
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    if world.leads:
        graphs = len(compiled.shapes) if compiled else 0
        print(json.dumps({"losses": losses, "memory": memory, "peak": peak, "graphs": graphs}))
