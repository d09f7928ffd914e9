"""A training loop of your own, which trains exactly what `bytegolf.train` trains; then with a loss of your own.

python examples/own_loop.py                                  # 20 steps of cpu-demo over data/default, three times
python examples/own_loop.py --preset hnet-2stage --steps 200 --z-loss 1e-3
python examples/own_loop.py --set data.path=data/notes train.seed=2
"""

import argparse
import tempfile

import torch

import bytegolf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu-demo")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--z-loss", type=float, default=1e-4, help="weight of the loss of one's own")
    parser.add_argument("--set", nargs="*", default=[], help="any other setting: section.key=value")
    given = parser.parse_args()
    # A budget in steps, since one in seconds gives each loop as many steps as the machine manages.
    budget = ["train.max_seconds=0", f"train.max_steps={given.steps}", "train.log_every=1", "eval.limit=65536"]
    settings = [*budget, *given.set]

    # 1. The whole job in one call: it trains, exports, and scores. Its losses are in metrics.jsonl.
    with tempfile.TemporaryDirectory() as folder:
        run = bytegolf.train(given.preset, out=f"{folder}/run", overrides=settings, quiet=True)
        expected = [row["loss"] for row in run.metrics() if row["kind"] == "train"]

    # 2. The same by hand. A step sets the routers' targets, takes gradients, clips, moves the weights, averages them.
    trainer = bytegolf.Trainer(given.preset, overrides=settings)
    losses = []
    for batch in trainer:  # until the budget is used up
        result = trainer.step(batch)
        losses.append(result.loss)
        if result.step % 5 == 0:
            print(f"step {result.step}: {result.bits_per_byte:.3f} bits per byte, {result.rates} chunks per byte")
    assert losses == expected, "not the same training: please report this"
    print(f"{len(losses)} losses, equal to those of bytegolf.train in every bit")

    # 3. The parts of a step, for what is yours: here a z-loss, which holds the logits' normaliser near 1.
    trainer = bytegolf.Trainer(given.preset, overrides=settings)

    def objective(out, token_losses):
        z = torch.logsumexp(trainer.model.cap(out.logits).float(), -1)
        return trainer.model.objective(out, token_losses) + given.z_loss * z.square().mean()

    while not trainer.done:
        trainer.prepare_step()
        trainer.gradients(trainer.next_batch(), objective)
        result = trainer.update()
    print(f"with a z-loss of {given.z_loss:g}: {result.bits_per_byte:.3f} bits per byte in the last step")

    with tempfile.TemporaryDirectory() as folder:  # any trainer's model becomes an artifact
        model = bytegolf.load(trainer.save(f"{folder}/mine"))
        print(model.chunks("The quick brown fox jumps over the lazy dog."))


if __name__ == "__main__":
    main()
