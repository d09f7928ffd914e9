"""bytegolf: learned tokenization in 16,000,000 bytes.

Text → documents → tokens → shards → batches → model → loss → optimiser → checkpoint → artifact → score, samples and
chunks: one folder a stage of that way, and a module imports only from stages before its own.
"""

__version__ = "0.1.0"
