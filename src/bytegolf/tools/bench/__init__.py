"""Benchmarks of what a trained model can do, beside what chance would give, with n and standard error.

- ``likelihood``: log-likelihoods of continuations and whole texts, which every task asks for; multiple-choice questions
  from local files; BPB of perturbed texts,
- ``characters``: tasks about letters, ``boundaries``: chunks against words and morphemes,
- ``lm_eval``: the same model for the tasks of lm-evaluation-harness, where that is installed.
"""
