"""Whether what bytegolf wrote is still what it wrote: checkpoints, shards, artifacts, compressed files, results."""
